"""A short measurement: how long a pass of the network and a tuning step take on the clip that is planned.

Made where no run told it yet, and kept where runs keep it (:mod:`ctxedit.editing.speed`). It does not change
the results: draws have generators of their own, and no weight moves.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial

import torch

from ctxedit.editing.parts import Parts
from ctxedit.editing.speed import Work, note, seconds_of
from ctxedit.models.device import name_of
from ctxedit.stages.invert import Inverter
from ctxedit.stages.tune import frames_of_step, gradient_pass

#: Seconds after which a first pass is believed; otherwise a second one is timed, since the first does much
#: that is done once.
_BELIEVED = 10.0


def work_of(kind: str, parts: Parts) -> Work:
    """What the speed of a kind of work on a session's clip depends on."""
    fit, dtype = parts.prepared.fit, str(parts.backbone.dtype).split(".")[-1]
    return Work(kind, parts.config, name_of(parts.device), dtype, (fit.padded_width, fit.padded_height))


def measure(parts: Parts, prompt: str, kinds: Iterable[str]) -> None:
    """Time one pass of each kind of work not yet measured on this machine, and store the time.

    Args:
        parts: networks and clip; loaded here where they are not yet.
        prompt: the source prompt.
        kinds: ``pass`` and ``tune``; others are left to the stages that do them.
    """
    runs: dict[str, Callable[[Parts, str], None]] = {"pass": _pass, "tune": _step}
    works = [work_of(kind, parts) for kind in dict.fromkeys(kinds) if kind in runs]
    for work in works:
        if seconds_of(work, 1) is None:
            # A pass sees one window of a long clip, and goes through all of them; a tuning step sees one.
            windows = 1 if work.kind == "tune" else len(parts.windows)
            _ = parts.latents, parts.view  # made before the clock runs
            note(work, windows * _timed(partial(runs[work.kind], parts, prompt), parts.device))


def _timed(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call."""
    seconds = 0.0
    for _ in range(2):
        began = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - began
        if seconds > _BELIEVED:
            break
    return seconds


@torch.no_grad()
def _pass(parts: Parts, prompt: str) -> None:
    """The inversion's first step."""
    backbone = parts.backbone
    with backbone.room_for([prompt]):
        condition = backbone.condition([prompt])
    levels = backbone.levels(parts.config.invert.steps)
    Inverter(backbone, condition, levels, parts.view, parts.shift(prompt)).step(parts.latents, 0)


def _step(parts: Parts, prompt: str) -> None:
    """A tuning step without the step: the loss and its gradient, of the clip's first frames."""
    with parts.backbone.room_for([prompt]):
        condition = parts.backbone.condition([prompt])
    span = slice(0, frames_of_step(parts.config))
    gradient_pass(
        parts.backbone, parts.latents[span], condition, parts.view_of(span), parts.config.tune,
        parts.request.tuning_seed, parts.shift(prompt), parts.temporal,
    )  # fmt: skip
