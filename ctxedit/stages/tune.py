"""One-shot tuning: adapter and chosen parts of the denoiser on one clip and its prompt (Eq 6), resumable."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ctxedit.config import Config, TuneConfig
from ctxedit.diffusion.forward import marginal
from ctxedit.diffusion.parameterization import loss_weight
from ctxedit.errors import ConfigError, NumericsError
from ctxedit.media.temporary import atomic
from ctxedit.models.attention import FrameView
from ctxedit.models.backbones import Backbone
from ctxedit.models.conditioning import Condition
from ctxedit.models.shift import ContextShift
from ctxedit.models.state import BrokenState, load_state, save_state
from ctxedit.models.temporal import TemporalLayers
from ctxedit.windows import plan_windows

#: Names in ``tune.trainable_modules`` that are not paths in the UNet.
ADAPTER, TEMPORAL, TEMPORAL_CONV, CONTROL = "adapter", "temporal", "temporal_conv", "controlnet."


@dataclass(frozen=True)
class TuneStep:
    """What one step reports. ``shift`` is ‖b_t‖ / ‖√ᾱ_t x_0‖, the relative size of the shift.

    ``clip_text`` is CLIP-text of an edit sampled after this step; None where none was.
    """

    step: int
    steps: int
    loss: float
    shift: float
    seconds_left: float
    clip_text: float | None = None


def network_passes(config: TuneConfig) -> int:
    """Passes of the network over the clip that :func:`tune` makes, each with its gradient."""
    return config.steps


def frames_of_step(config: Config) -> int:
    """How many frames one step sees."""
    window = plan_windows(config.clip.frames, config.window.size, config.window.overlap)[0]
    return min(window.stop, config.tune.frames or window.stop)


def trainable(
    backbone: Backbone, config: TuneConfig, shift: ContextShift | None, temporal: TemporalLayers | None
) -> dict[str, nn.Parameter]:
    """The parameters that tuning moves, by name: ``unet.…``, ``adapter.…``, ``temporal.…``, ``controlnet.…``.

    Raises:
        ConfigError: a name in ``tune.trainable_modules`` matches nothing, or nothing is named.
    """
    found: dict[str, nn.Parameter] = {}
    for name in config.trainable_modules:
        if name == ADAPTER:
            here = {} if shift is None else {f"adapter.{k}": v for k, v in shift.adapter.named_parameters()}
            if shift is None:
                continue  # a preset may list it and a flag switch the adapter off
        elif name in (TEMPORAL, TEMPORAL_CONV):
            layers = {} if temporal is None else temporal.tuned_parameters(name == TEMPORAL_CONV)
            here = {f"temporal.{k}": v for k, v in layers.items()}
        elif name.startswith(CONTROL):
            if backbone.control is None:
                continue  # as above
            found_there = backbone.select_control([name.removeprefix(CONTROL)])
            here = {f"{CONTROL}{k}": v for k, v in found_there.items()}
        else:
            here = {f"unet.{k}": v for k, v in backbone.select([name]).items()}
        if not here:
            raise ConfigError(
                f"tune.trainable_modules: {name!r} matches nothing",
                "e.g. attn1.to_q, attn1, temporal, adapter",
            )
        found |= here
    if not found:
        raise ConfigError(
            "tune.trainable_modules names nothing that this model has",
            "name modules that it has, or set tune.steps = 0",
        )
    return found


def tune(
    backbone: Backbone,
    latents: Tensor | None,
    context: Condition | Tensor,
    view: FrameView,
    config: TuneConfig,
    folder: Path,
    seed: int,
    shift: ContextShift | None = None,
    temporal: TemporalLayers | None = None,
    report: Callable[[TuneStep], None] = lambda row: None,
    probe: Callable[[int], float | None] = lambda step: None,
    warn: Callable[[str], None] = lambda text: None,
    draw: Callable[[int], tuple[Tensor, FrameView]] | None = None,
) -> dict[str, Tensor]:
    """Minimise λ_t ‖x̂_0 − x_0‖² over noise levels; the gradient reaches the adapter through x_t.

    Each step's draws come from the seed and the step's number alone, so a tuning that was killed and resumed
    from ``folder`` ends in the same weights, bit for bit on CPU.

    Args:
        backbone: with clip attention installed.
        latents: (F, C, h, w), clean; None where ``draw`` gives them.
        context: one row, of the source prompt.
        view: one branch.
        config: lengths, rates, what is trained.
        folder: receives ``state.pt`` every ``save_every`` steps and ``log.jsonl``.
        seed: of noise and levels.
        shift, temporal: the adapter bound to the source prompt, temporal layers; None without.
        report: called every step.
        probe: called with the number of steps done, after each; may sample with the weights as they are, and
            returns CLIP-text or None. It must not draw from the global random state.
        warn: called when the saved state is damaged; the tuning then starts over.
        draw: latents and view of a step, for a clip of which each step sees a part; None is all of it.

    Returns:
        The tuned tensors by name, on the CPU.

    Raises:
        NumericsError: the loss or a weight is not finite; what was saved before stays.
    """
    with _training(backbone, trainable(backbone, config, shift, temporal), config) as masters:
        optimizer = _optimizer(masters.values, config)
        # bfloat16 and float32 need no loss scaling
        scaler = torch.amp.GradScaler(backbone.device.type, enabled=backbone.dtype == torch.float16)
        done = _resume(folder, masters, optimizer, scaler, warn)
        began = time.monotonic()
        for step in range(done, config.steps):
            batch, here = (latents, view) if draw is None else draw(step)
            assert batch is not None
            loss, share = _loss(backbone, batch, context, here, config, shift, seed, step)
            _descend(loss, step, masters, optimizer, scaler, config.max_grad_norm)
            left = (time.monotonic() - began) / (step + 1 - done) * (config.steps - step - 1)
            row = TuneStep(step + 1, config.steps, float(loss.detach()), share, left, probe(step + 1))
            _log(folder, row)
            report(row)
            if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
                _save(folder, step + 1, masters.values, optimizer, scaler)
        return {k: v.detach().cpu().clone() for k, v in masters.values.items()}


def gradient_pass(
    backbone: Backbone,
    latents: Tensor,
    context: Condition | Tensor,
    view: FrameView,
    config: TuneConfig,
    seed: int,
    shift: ContextShift | None = None,
    temporal: TemporalLayers | None = None,
) -> None:
    """The loss of a tuning's first step and its gradient, which is dropped; for measurements.

    Arguments are those of :func:`tune`.
    """
    parameters = trainable(backbone, config, shift, temporal)
    with _training(backbone, parameters, config):
        _loss(backbone, latents, context, view, config, shift, seed, 0)[0].backward()
        for parameter in parameters.values():
            parameter.grad = None


class Masters:
    """Float32 masters of the trained parameters, which the networks hold in their own dtype.

    What is trained takes steps that a half-precision weight would round away. Only these parameters have a
    float32 copy; the networks keep their precision.

    Args:
        parameters: of the networks, by name.

    Attributes:
        values: what the optimizer moves, by name; where a parameter is in float32, or above, it is its own.
    """

    def __init__(self, parameters: dict[str, nn.Parameter]) -> None:
        self._networks = {k: p for k, p in parameters.items() if p.dtype.itemsize < 4}
        self.values = {
            k: nn.Parameter(p.detach().float()) if k in self._networks else p for k, p in parameters.items()
        }

    def take_gradients(self) -> None:
        """Move the gradients of the networks' parameters to their masters."""
        for name, parameter in self._networks.items():
            grad = parameter.grad
            self.values[name].grad = None if grad is None else grad.float()
            parameter.grad = None

    @torch.no_grad()
    def copy_back(self) -> None:
        """Give the networks what the masters are now, rounded."""
        for name, parameter in self._networks.items():
            parameter.copy_(self.values[name])


def _descend(loss: Tensor, step: int, masters: Masters, optimizer: Any, scaler: Any, max_norm: float) -> None:
    if not bool(torch.isfinite(loss)):
        raise _broken(f"the loss is {loss.item()} at step {step}")
    scaler.scale(loss).backward()
    masters.take_gradients()
    scaler.unscale_(optimizer)
    if max_norm:
        torch.nn.utils.clip_grad_norm_(list(masters.values.values()), max_norm)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    masters.copy_back()


def _optimizer(parameters: dict[str, nn.Parameter], config: TuneConfig) -> torch.optim.Optimizer:
    """AdamW; the adapter, which is trained from scratch, may have a learning rate of its own."""
    adapter = [p for k, p in parameters.items() if k.startswith("adapter.")]
    rest = [p for k, p in parameters.items() if not k.startswith("adapter.")]
    groups = [
        {"params": rest, "lr": config.lr},
        {"params": adapter, "lr": config.adapter_lr or config.lr},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], weight_decay=config.weight_decay)


def _loss(
    backbone: Backbone,
    latents: Tensor,
    context: Condition | Tensor,
    view: FrameView,
    config: TuneConfig,
    shift: ContextShift | None,
    seed: int,
    step: int,
) -> tuple[Tensor, float]:
    """One draw of level and noise: the loss and the shift's share of the signal."""
    generator = torch.Generator().manual_seed(step_seed(seed, step))
    t, a, s = backbone.training_level(generator)
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    half = backbone.dtype.itemsize < 4
    with torch.autocast(latents.device.type, backbone.dtype if half else None, enabled=half):
        # The adapter, which is in float32; the networks have their precision.
        b = None if shift is None else shift(latents, t, a, s)
    x = marginal(latents, noise, a, s, b)
    x0 = backbone.predict_x0(x, t, context, a, s, view)
    weight = loss_weight(a, s, config.loss_weight).to(latents)
    loss = weight * ((x0.float() - latents.float()) ** 2).mean()
    share = 0.0 if b is None else float(b.detach().norm() / (a * latents).norm())
    return loss, share


@contextmanager
def _training(
    backbone: Backbone, parameters: dict[str, nn.Parameter], config: TuneConfig
) -> Iterator[Masters]:
    """Gradients on for what moves, float32 masters of it, checkpointing; all put back afterwards."""
    for p in parameters.values():
        p.requires_grad_(True)
    try:
        with backbone.checkpointing() if config.gradient_checkpointing else nullcontext():
            yield Masters(parameters)
    finally:
        for p in parameters.values():
            p.requires_grad_(False)


def _resume(
    folder: Path,
    masters: Masters,
    optimizer: Any,
    scaler: Any,
    warn: Callable[[str], None],
) -> int:
    """Restore the saved state; returns the steps done, 0 without a state or if it is damaged."""
    file, log = folder / "state.pt", folder / "log.jsonl"
    try:
        state = load_state(file)
    except BrokenState as error:
        warn(f"the state of the tuning, {file}, {error}: the tuning starts over")
        state = None
    if state is None:
        file.unlink(missing_ok=True)
        log.unlink(missing_ok=True)
        return 0
    load_tensors(masters.values, state["parameters"])
    masters.copy_back()
    optimizer.load_state_dict(state["optimizer"])
    scaler.load_state_dict(state["scaler"])
    done = int(state["step"])
    if log.exists():  # rows of steps after the last save are of a lost future
        rows = log.read_text(encoding="utf-8", errors="replace").splitlines()[:done]
        with atomic(log, True, durable=False) as temporary:
            temporary.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    return done


def _check_finite(parameters: dict[str, nn.Parameter], step: int) -> None:
    """A gradient can be infinite where its loss is not; such parameters are not saved."""
    for name, value in parameters.items():
        if not bool(value.isfinite().all()):
            raise _broken(f"NaN or infinity in {name} after step {step}")


def _broken(what: str) -> NumericsError:
    return NumericsError(f"tuning: {what}", "try a lower tune.lr, or --dtype float32")


def _save(folder: Path, step: int, parameters: dict[str, nn.Parameter], optimizer: Any, scaler: Any) -> None:
    _check_finite(parameters, step - 1)
    blob = {
        "step": step,
        "parameters": {k: v.detach().cpu() for k, v in parameters.items()},
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict(),
    }
    save_state(folder / "state.pt", blob)


def _log(folder: Path, row: TuneStep) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.jsonl").open("a") as log:
        line = {"step": row.step, "loss": row.loss, "shift": row.shift, "clip_text": row.clip_text}
        log.write(json.dumps(line) + "\n")


@torch.no_grad()
def load_tensors(parameters: dict[str, nn.Parameter], tensors: dict[str, Tensor]) -> None:
    """Copy tuned tensors into place; raises ConfigError when names or shapes do not agree."""
    here, there = ({(k, tuple(v.shape)) for k, v in x.items()} for x in (parameters, tensors))
    if here != there:
        odd = sorted({k for k, _ in here ^ there})[:3]
        raise ConfigError(f"the tuned weights do not fit this model: {', '.join(odd)}", "tune again")
    for name, value in tensors.items():
        parameters[name].copy_(value)


def step_seed(seed: int, step: int) -> int:
    """The seed of a step's draws, as a signed 64-bit number, as torch takes."""
    number = seed * 1_000_003 + step
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)
