"""Measure the memory that full-size checkpoints take, beside what the dry run states.

Usage::

    python tests/memory.py table                                 # what the plan states, for the two README.md
    python tests/memory.py make sd14 FOLDER                      # a folder of the real shapes, random weights
    python tests/memory.py measure FOLDER/sd14 edit bfloat16 8   # prints one row as JSON
    python tests/memory.py measure FOLDER/sd14 tune float32 2 384  # at 384² instead of 512²
    python tests/memory.py passes FOLDER/sd14 float32 2          # seconds of the UNet's passes over 2 frames
    python tests/memory.py measure FOLDER/blip2 caption bfloat16 # of a folder that `make blip2` made

Stages: ``tune``, ``invert`` (after encoding) and ``edit`` (with decoding) make one step, at 512² (SDXL:
1024²) unless a size is given; ``encode`` and ``decode`` are what the autoencoder does of it; ``caption``
captions one frame. Each measurement needs a process of its own, because a process does not shrink again. What
is measured is resident memory, beyond what the imports take.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

PROMPT, TARGET = "a tiger walking on the beach", "a panda walking on the beach"


def resident() -> int:
    """Bytes of this process in memory: weights that are used as they are in their file count as well."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


class Meter:
    """The most memory while a block runs."""

    def __enter__(self) -> Meter:
        self.peak, self.began, self._stop = resident(), time.monotonic(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self.peak = max(self.peak, resident())

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        self.seconds = time.monotonic() - self.began


def make_sd14(folder: Path) -> None:
    """Stable Diffusion 1.4's own configuration with random weights, in bfloat16."""
    import torch
    from tiny import stable_diffusion_1

    stable_diffusion_1(folder / "words").to(torch.bfloat16).save_pretrained(folder / "sd14")


def make_sdxl(folder: Path) -> None:
    """Stable Diffusion XL base's own configuration with random weights, in bfloat16."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from tiny import text_encoder
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    from ctxedit.training.tokenizer import build

    torch.set_default_dtype(torch.bfloat16)
    tokenizer = build(folder / "words", captions=2000)
    tokenizer.model_max_length = 77
    sizes = {"max_position_embeddings": 77, "vocab_size": 49408}
    ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    first = text_encoder(
        tokenizer,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        **sizes,
    )
    second = CLIPTextModelWithProjection(
        CLIPTextConfig(
            hidden_size=1280,
            intermediate_size=5120,
            num_hidden_layers=32,
            num_attention_heads=20,
            projection_dim=1280,
            hidden_act="gelu",
            **sizes,
            **ends,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=128, block_out_channels=(320, 640, 1280), cross_attention_dim=2048,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10), attention_head_dim=(5, 10, 20), use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4, layers_per_block=2, latent_channels=4, sample_size=1024,
        scaling_factor=0.13025, force_upcast=True,
    )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    )
    StableDiffusionXLPipeline(
        vae, first, second, tokenizer, tokenizer, unet, scheduler, add_watermarker=False
    ).save_pretrained(folder / "sdxl")


def make_blip2(folder: Path) -> None:
    """BLIP-2's own configuration with OPT 2.7b and random weights, in bfloat16 and shards of 5 GB.

    Its weights are never there in another precision, and its vocabulary is a small one.
    """
    import torch
    from transformers import Blip2Config, Blip2ForConditionalGeneration, BlipImageProcessorPil

    from ctxedit.training.tokenizer import build

    tokenizer = build(folder / "words", captions=2000)
    ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = {
        "model_type": "opt", "hidden_size": 2560, "ffn_dim": 10240, "num_hidden_layers": 32,
        "num_attention_heads": 32, "word_embed_proj_dim": 2560, "vocab_size": 50304,
        "max_position_embeddings": 2048, **ends,
    }  # fmt: skip
    # Its defaults are the published sizes of vision transformer and Q-Former.
    config = Blip2Config(text_config=text, num_query_tokens=32, image_token_index=50265)
    with torch.device("meta"):
        model = Blip2ForConditionalGeneration(config).to(torch.bfloat16)
    model = model.to_empty(device="cpu")
    model.tie_weights()
    drawn = torch.randn(1 << 22, generator=torch.Generator().manual_seed(0)).mul_(0.02).to(torch.bfloat16)
    for parameter in model.parameters():
        flat = parameter.data.view(-1)
        for start in range(0, len(flat), len(drawn)):
            flat[start : start + len(drawn)] = drawn[: len(flat) - start]
    for name, buffer in model.named_buffers():
        if name.endswith("position_ids"):
            buffer.copy_(torch.arange(buffer.shape[-1]).expand_as(buffer))
    model.save_pretrained(folder / "blip2", max_shard_size="5GB")
    tokenizer.save_pretrained(folder / "blip2")
    BlipImageProcessorPil(size={"height": 224, "width": 224}).save_pretrained(folder / "blip2")


def measure_caption(model: Path, dtype: str) -> dict[str, Any]:
    """One caption of one frame, as `ctxedit caption` makes it: gigabytes measured and foretold, seconds."""
    import numpy as np
    import torch
    import transformers.models.blip_2.modeling_blip_2  # noqa: F401 - what is imported is not counted

    from ctxedit import config
    from ctxedit.editing import captioning
    from ctxedit.media.write import write_clip
    from ctxedit.stages.caption import make_captioner

    frame = np.random.default_rng(0).integers(0, 255, (1, 512, 512, 3), dtype=np.uint8)
    flags = {"model": "sd14", "captioner": str(model), "dtype": dtype, "clip": {"frames": 1, "stride": 1}}
    settings = config.load("contextdiff", flags=flags, environ={})
    with tempfile.TemporaryDirectory() as place:
        clip = write_clip(Path(place) / "clip.mp4", frame, Fraction(8))
        foretold = captioning.plan(clip, settings, True, None)["peak_bytes"]
    before = resident()
    with Meter() as loading:
        captioner = make_captioner(str(model), None, torch.device("cpu"), getattr(torch, dtype), True, None)
    with Meter() as working:
        captioner.caption(list(frame))
    return _row(model, "caption", dtype, 1, foretold, before, loading, working)


def parts_for(model: Path, stage: str, dtype: str, frames: int, place: Path, side: int) -> Any:
    """The session's networks for one step of a stage, and the estimate of the plan."""
    import numpy as np
    import torch

    from ctxedit import config
    from ctxedit.editing import plan
    from ctxedit.editing.parts import Parts
    from ctxedit.editing.reporter import Reporter
    from ctxedit.editing.request import Request
    from ctxedit.media.write import write_clip

    noise = np.random.default_rng(0).integers(0, 255, (frames, side, side, 3), dtype=np.uint8)
    clip = write_clip(place / "clip.mp4", noise, Fraction(8))
    flags = {
        "model": str(model), "dtype": dtype, "clip_model": "builtin", "tune": {"steps": 1},
        "clip": {"frames": frames, "stride": 1, "size": side}, "invert": {"steps": 1},
        "edit": {"steps": 1}, "fusion": {"self_replace_steps": 1.0, "cross_replace_steps": 1.0},
    }  # fmt: skip
    settings = config.load("contextdiff", flags=flags, environ={})
    request = Request(clip, settings, prompt=PROMPT, targets=(TARGET,), runs=place / "runs", offline=True)
    name = {"encode": "invert", "decode": "edit"}.get(stage, stage)
    foretold = next(s.peak_bytes for s in plan.make(request).stages if s.name.startswith(name))
    parts = Parts(request, Reporter())
    shape = (frames, 4, side // 8, side // 8)
    parts.__dict__["latents"] = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return parts, foretold


def measure(model: Path, stage: str, dtype: str, frames: int = 8, side: int | None = None) -> dict[str, Any]:
    """One step of a stage: gigabytes measured and foretold, seconds."""
    import numpy as np
    import torch

    from ctxedit.editing.stages import invert_now
    from ctxedit.stages import edit, tune

    with tempfile.TemporaryDirectory() as place:
        side = side or (1024 if model.name == "sdxl" else 512)
        parts, foretold = parts_for(model, stage, dtype, frames, Path(place), side)
        pixels = np.zeros((frames, side, side, 3), np.uint8)
        import diffusers.models.unets.unet_2d_condition  # noqa: F401 - what is imported is not counted

        before = resident()
        with Meter() as loading:
            backbone, shift = parts.backbone, parts.shift(PROMPT)
            condition = backbone.condition([PROMPT])
        with Meter() as working:
            if stage == "tune":
                tune.tune(
                    backbone, parts.latents, condition, parts.view, parts.config.tune, Path(place), 0, shift,
                    parts.temporal,
                )  # fmt: skip
            elif stage == "invert":
                backbone.encode(pixels)
                invert_now(parts, PROMPT)
            elif stage == "edit":
                trajectory = torch.stack([parts.latents] * 2)
                scene = edit.InvertedClip(backbone, PROMPT, trajectory, backbone.levels(1), parts.view)
                backbone.decode(edit.edit(scene, TARGET, parts.config, parts.shift(TARGET)))
            elif stage == "encode":
                backbone.encode(pixels)
            else:
                backbone.decode(parts.latents)
    return _row(model, stage, dtype, frames, foretold, before, loading, working)


def measure_passes(model: Path, dtype: str, frames: int = 1, passes: int = 2) -> dict[str, Any]:
    """Seconds of single passes of the denoiser at 512² (one branch, preset `contextdiff`), after a first one.

    Processor seconds count the time of this process alone, whatever else the machine does.
    """
    with tempfile.TemporaryDirectory() as place:
        parts, _ = parts_for(model, "invert", dtype, frames, Path(place), 512)
        backbone, condition = parts.backbone, parts.backbone.condition([PROMPT])
        spent, passed = [], []
        for _ in range(1 + passes):
            began, wall = time.process_time(), time.monotonic()
            backbone.predict_x0(parts.latents, 500, condition, 0.5, 0.75**0.5, parts.view)
            spent.append(round(time.process_time() - began, 1))
            passed.append(round(time.monotonic() - wall, 1))
    return {
        "model": model.name, "dtype": dtype, "frames": frames, "first": spent[0], "processor": spent[1:],
        "wall": passed[1:],
    }  # fmt: skip


def _row(
    model: Path,
    stage: str,
    dtype: str,
    frames: int,
    foretold: int,
    before: int,
    loading: Meter,
    working: Meter,
) -> dict[str, Any]:
    return {
        "model": model.name, "stage": stage, "dtype": dtype, "frames": frames,
        "foretold": round(foretold / 2**30, 2),
        "measured": round((max(loading.peak, working.peak) - before) / 2**30, 2),
        "loading": round((loading.peak - before) / 2**30, 2), "seconds": round(working.seconds, 1),
    }  # fmt: skip


#: Millions of parameters of UNet, autoencoder and text encoders; channels, depth and width of the UNet.
_SHAPES: dict[str, tuple[float, float, float, tuple[int, ...], tuple[int, ...], int]] = {
    "SD 1.x": (859.5, 83.7, 123.1, (320, 640, 1280, 1280), (1, 1, 1, 0), 768),
    "SD 2.x": (865.9, 83.7, 340.4, (320, 640, 1280, 1280), (1, 1, 1, 0), 1024),
    "SDXL": (2567.5, 83.7, 817.7, (320, 640, 1280), (0, 2, 10), 2048),
}
_MODES = {"": {}, "`--offload`": {"offload": True}, "`--low-memory`": {"low_memory": True}}


def peaks(name: str, frames: int, side: int, **flags: Any) -> tuple[float, float]:
    """GiB on a GPU in half precision that the plan states for tuning and for editing with `contextdiff`."""
    import torch

    from ctxedit import config
    from ctxedit.editing.costs import Costs
    from ctxedit.media.geometry import plan_fit
    from ctxedit.models.sizes import Sizes, Weight

    unet, vae, text, channels, depth, width = _SHAPES[name]
    weights = (Weight(round(n * 1e6), round(n * 2e6)) for n in (unet, vae, text))
    body = Sizes(*weights, channels, depth, 2, (128, 256, 512, 512), 4, width, 77, side)
    settings = config.load(
        "contextdiff", flags={"model": "sd14", "clip": {"frames": frames}, **flags}, environ={}
    )
    fit = plan_fit(side, side, side, body.multiple)
    costs = Costs(settings, True, None, body, fit, torch.bfloat16, device="cuda")
    return costs.tuning(False) / 2**30, costs.editing(False) / 2**30


def short() -> str:
    """The sentence of README.md: what is asked most."""

    def row(stage: int, **flags: Any) -> str:
        first, *others = (f"{peaks('SD 1.x', frames, 512, **flags)[stage]:.1f}" for frames in (8, 16, 24))
        return ", ".join([first, *others[:-1]]) + f" or {others[-1]} GiB"

    return (
        f"In half precision, 8, 16 or 24 frames at 512² take {row(0)} to tune a Stable Diffusion 1.x, and "
        f"{row(1)} to edit ({row(1, low_memory=True)} with `--low-memory`)"
    )


def table() -> str:
    """The table of presets/README.md."""
    heads = [f"{mode or 'as it is'}: {stage}" for mode in _MODES for stage in ("tune", "edit")]
    lines = ["| | size | frames | " + " | ".join(heads) + " |", "|---|---|---|" + "--:|" * len(heads)]
    for name in _SHAPES:
        for side in (512, 768):
            for frames in (8, 16, 24):
                found = [v for mode in _MODES.values() for v in peaks(name, frames, side, **mode)]
                cells = " | ".join(f"{v:.1f}" for v in found)
                lines.append(f"| {name} | {side}² | {frames} | {cells} |")
    return "\n".join(lines)


def cards() -> str:
    """The table of presets/README.md that says what fits on a card, with 1 GiB left for CUDA itself."""
    cases = [("SD 2.x", 512), ("SD 2.x", 768), ("SDXL", 512), ("SDXL", 768)]
    heads = [f"{name.replace(' 2.x', '')} {side}²" for name, side in cases]
    stages = [f"{stage}: {head}" for stage in ("tune and edit", "edit alone") for head in heads]
    lines = ["| card | " + " | ".join(stages) + " |", "|---|" + "---|" * len(stages)]
    for card in (8, 12, 16, 24):
        cells = [_most_frames(*case, stage, card - 1) for stage in (0, 1) for case in cases]
        lines.append(f"| {card} GB | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _most_frames(name: str, side: int, stage: int, room: float) -> str:
    """The most frames that fit into ``room`` GiB, and the option that this needs."""
    for frames in (24, 16, 8, 4):
        for said, flags in _MODES.items():
            if max(peaks(name, frames, side, **flags)[stage:]) <= room:
                return f"{frames} {said}".strip()
    return "–"


def main(arguments: list[str]) -> None:
    """The command line."""
    if arguments == ["table"]:
        print(f"{table()}\n\n{cards()}\n\n{short()}")
        return
    if arguments[0] == "make":
        {"sd14": make_sd14, "sdxl": make_sdxl, "blip2": make_blip2}[arguments[1]](Path(arguments[2]))
        return
    if arguments[0] == "passes":
        model, dtype, *frames = arguments[1:]
        print(json.dumps(measure_passes(Path(model), dtype, *map(int, frames))))
        return
    model, stage, dtype, *numbers = arguments[1:]
    if stage == "caption":
        print(json.dumps(measure_caption(Path(model), dtype)))
        return
    print(json.dumps(measure(Path(model), stage, dtype, *map(int, numbers))))


if __name__ == "__main__":
    main(sys.argv[1:])
