"""The ways that are compared: each way to edit a clip, or to tune on it, as one call on a session's parts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch

from ctxedit.bench.speed.limits import synchronize
from ctxedit.bench.speed.store import MapStore, edit_with_store
from ctxedit.config import Config, merge
from ctxedit.diffusion.forward import marginal
from ctxedit.diffusion.parameterization import loss_weight
from ctxedit.editing.parts import Parts
from ctxedit.editing.stages import invert_now
from ctxedit.errors import ConfigError
from ctxedit.models.backbones.stable_diffusion import StableDiffusion
from ctxedit.stages import edit as editing
from ctxedit.stages import tune as tuning
from ctxedit.tables import DEFAULT_PRESET

#: The source prompt of the drawn clip, and the target prompt.
PROMPTS = ("a tiger walking on the beach", "a panda walking on the beach")
#: Names of the ways that are not presets.
STORED, DIFFUSERS, PLAIN = "stored maps (FateZero's way)", "diffusers, frame by frame", "plain loop"
#: The preset whose settings the way with stored maps uses.
STORED_PRESET = "fatezero"
#: The stored maps' counterpart here: the same settings, without a store.
STORED_HERE = f"{STORED_PRESET}, no blend"

#: The range of steps, as shares, in which the partly guided way uses guidance.
GUIDED = (0.0, 0.6)
#: The default preset with settings that are off by default.
SECOND_ORDER = f"{DEFAULT_PRESET}, dpm++2m in half the steps"
PARTLY_GUIDED = f"{DEFAULT_PRESET}, guided in {GUIDED[1]:.0%} of the steps"
FEW_FRAMES = f"{DEFAULT_PRESET}, half of the frames"

Task = Literal["edit", "tune"]


@dataclass
class Clock:
    """Seconds of each phase, in order; ``device`` is synchronized at the beginning and the end of each.

    Attributes:
        laps: name, seconds and processor seconds of each phase.
        stored_bytes: of attention maps that the way stored.
    """

    device: torch.device
    laps: list[tuple[str, float, float]] = field(default_factory=list)
    stored_bytes: int = 0
    _since: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        synchronize(self.device)  # what was queued before is not part of the first phase
        self._since = time.perf_counter(), time.process_time()

    def lap(self, name: str) -> None:
        """End the phase that began at the last call, or when the clock was created."""
        synchronize(self.device)
        now = time.perf_counter(), time.process_time()
        self.laps.append((name, now[0] - self._since[0], now[1] - self._since[1]))
        self._since = now

    def seconds(self) -> dict[str, float]:
        """Seconds by phase, repeated ones added."""
        found: dict[str, float] = {}
        for name, seconds, _ in self.laps:
            found[name] = found.get(name, 0.0) + seconds
        return found

    def processor_seconds(self) -> float:
        """Of all phases but the warm-up, and of all threads of this process."""
        return sum(used for name, _, used in self.laps if name != WARM_UP)


#: A phase of this name is not part of the result.
WARM_UP = "warm-up"


@dataclass(frozen=True)
class Way:
    """One way to do the task.

    Attributes:
        name: name of the preset or other way.
        task: ``edit`` (invert and sample) or ``tune``.
        config: settings with which its session is opened.
        run: does it once, on the parts of a session and a folder for temporary files, and tells the clock.
    """

    name: str
    task: Task
    config: Config
    run: Callable[[Parts, Path, Clock], None]


def edits(presets: Sequence[tuple[str, Config]]) -> list[Way]:
    """Every way to edit: stored maps, diffusers' pipeline and the presets.

    Args:
        presets: by name; ``fatezero`` is among them or not, its settings serve the stored maps.
    """
    return [Way(name, "edit", config, _edit) for name, config in presets]


def rivals(config: Config, fatezero: Config) -> list[Way]:
    """The ways that are not ctxedit's: stored maps, with their counterpart here, and diffusers' own pipeline.

    Args:
        config: of the default preset; the pipeline takes steps and guidance from it.
        fatezero: of the preset that the stored maps are compared with, without masks.
    """
    plain = replace(fatezero, fusion=replace(fatezero.fusion, blend="none"))
    return [
        Way(STORED, "edit", plain, _edit_stored),
        Way(STORED_HERE, "edit", plain, _edit),
        Way(DIFFUSERS, "edit", config, _edit_diffusers),
    ]


def faster(config: Config) -> list[Way]:
    """The default preset with each setting that saves passes of the network, or frames of a tuning step."""
    steps, frames = max(1, config.edit.steps // 2), max(1, config.clip.frames // 2)
    second = merge(config, {name: {"steps": steps, "solver": "dpm++2m"} for name in ("invert", "edit")})
    partly = merge(config, {"edit": {"guidance_interval": GUIDED}})
    few = merge(config, {"tune": {"frames": frames}})
    return [
        Way(SECOND_ORDER, "edit", second, _edit),
        Way(PARTLY_GUIDED, "edit", partly, _edit),
        Way(FEW_FRAMES, "tune", few, _tune),
    ]


def tunings(presets: Sequence[tuple[str, Config]], plain: Config) -> list[Way]:
    """Every way to tune: the presets that tune, and a plain loop with the settings of ``plain``."""
    found = [Way(name, "tune", config, _tune) for name, config in presets if config.tune.steps]
    return [Way(PLAIN, "tune", plain, _tune_plain), *found]


# -- edits -------------------------------------------------------------------------------------------------


def _edit(parts: Parts, folder: Path, clock: Clock) -> None:
    source, target = PROMPTS
    config, backbone = parts.config, parts.backbone
    if config.edit.start == "noise":
        trajectory = parts.latents[None]
    else:
        trajectory = invert_now(parts, source)
        clock.lap("invert")
    inverted = editing.InvertedClip(
        backbone, source, trajectory, backbone.levels(config.edit.steps), parts.view
    )
    editing.edit(inverted, target, config, parts.shift(target))
    clock.lap("sample")


def _edit_stored(parts: Parts, folder: Path, clock: Clock) -> None:
    config, backbone = parts.config, _image_model(parts)

    def inverted(store: MapStore) -> None:
        clock.stored_bytes = store.bytes
        clock.lap("invert")

    edit_with_store(
        backbone, parts.latents, PROMPTS, config.edit.steps, parts.view, config.fusion, config.edit.guidance,
        inverted,
    )  # fmt: skip
    clock.lap("sample")


@torch.no_grad()
def _edit_diffusers(parts: Parts, folder: Path, clock: Clock) -> None:
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    from diffusers.models.attention_processor import AttnProcessor2_0

    config, backbone = parts.config, _image_model(parts)
    backbone.unet.set_attn_processor(AttnProcessor2_0())
    # The pipeline passes each network's output on unchanged; this session ends with this way.
    torch.nn.Module.to(backbone.text_encoder, backbone.dtype)
    scheduler = DDIMScheduler.from_pretrained(backbone.path, subfolder="scheduler")
    pipe = StableDiffusionPipeline(
        backbone.vae, backbone.text_encoder, backbone.tokenizer, backbone.unet, scheduler, None, None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    height, width = (side * backbone.factor for side in parts.view.side)
    generator = torch.Generator().manual_seed(config.seed)
    noise = torch.randn(parts.latents.shape, generator=generator).to(parts.device, backbone.dtype)
    for frame in noise.split(1):
        pipe(
            PROMPTS[1], height, width, num_inference_steps=config.edit.steps,
            guidance_scale=config.edit.guidance, latents=frame, output_type="latent",
        )  # fmt: skip
    clock.lap("sample")


def _image_model(parts: Parts) -> StableDiffusion:
    backbone = parts.backbone
    if type(backbone) is not StableDiffusion:
        raise ConfigError(
            f"{backbone.name}: stored maps and diffusers' pipeline need Stable Diffusion 1.x or 2.x",
            "leave --model out, or name one of these",
        )
    return backbone


# -- tuning ------------------------------------------------------------------------------------------------


def _tune(parts: Parts, folder: Path, clock: Clock) -> None:
    source, config = PROMPTS[0], parts.config.tune
    shift, frames = parts.shift(source), tuning.frames_of_step(parts.config)
    draw = parts.draw if frames < parts.config.clip.frames else None

    def report(row: tuning.TuneStep) -> None:
        clock.lap("step" if row.step > 1 else WARM_UP)

    tuning.tune(
        parts.backbone, parts.latents, parts.backbone.condition([source]), parts.view, config, folder,
        parts.config.seed, shift and replace(shift, frames=frames), parts.temporal, report, draw=draw,
    )  # fmt: skip


def _tune_plain(parts: Parts, folder: Path, clock: Clock) -> None:
    """The loop of diffusers' training examples: float32 weights, autocast for half precision, AdamW.

    Trained modules, random draws, the frames that each frame attends to and checkpointing are the preset's;
    there is no context adapter.
    """
    config, backbone = parts.config.tune, parts.backbone
    half = backbone.dtype if backbone.dtype != torch.float32 else None
    dtype, backbone.dtype = backbone.dtype, torch.float32
    net = backbone.networks[0].float()
    names = [name for name in config.trainable_modules if name not in (tuning.ADAPTER, tuning.TEMPORAL)]
    trained = list(backbone.select(names).values())
    for parameter in trained:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained, config.lr, weight_decay=config.weight_decay)
    latents, context = parts.latents.float(), backbone.condition([PROMPTS[0]])
    try:
        with backbone.checkpointing() if config.gradient_checkpointing else nullcontext():
            for step in range(config.steps):
                generator = torch.Generator().manual_seed(step)
                t, a, s = backbone.training_level(generator)
                noise = torch.randn(latents.shape, generator=generator).to(latents)
                with torch.autocast(parts.device.type, half, enabled=half is not None):
                    x0 = backbone.predict_x0(marginal(latents, noise, a, s), t, context, a, s, parts.view)
                loss = loss_weight(a, s).to(latents) * ((x0.float() - latents) ** 2).mean()
                loss.backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                clock.lap("step" if step else WARM_UP)
    finally:
        backbone.dtype = dtype
        net.to(dtype)
        for parameter in trained:
            parameter.requires_grad_(False)
