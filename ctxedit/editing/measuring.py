"""A short measurement: how long a pass of the network and a tuning step take on the clip that is planned.

Made if no run has measured it yet, and kept where runs keep it (:mod:`ctxedit.editing.speed`). It does not
change the results: draws have generators of their own, and no weight moves.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

import torch

from ctxedit.editing.parts import Parts
from ctxedit.editing.speed import Work, note, seconds_of
from ctxedit.models.device import name_of
from ctxedit.stages.invert import Inverter
from ctxedit.stages.tune import frames_of_step, gradient_pass

#: Seconds after which a first call is believed; otherwise a second one is timed, since the first does much
#: that is done once. The first call sees only this share of the frames.
_BELIEVED, _FIRST = 10.0, 0.25


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
    runs: dict[str, Callable[[Parts, str, int], None]] = {"pass": _pass, "tune": _step}
    works = [work_of(kind, parts) for kind in dict.fromkeys(kinds) if kind in runs]
    for work in works:
        if seconds_of(work, 1) is None:
            # A pass sees one window of a long clip, and goes through all of them; a tuning step sees one.
            windows, frames = len(parts.windows), parts.windows[0].stop
            if work.kind == "tune":
                windows, frames = 1, frames_of_step(parts.config)
            _ = parts.latents, parts.view  # made before the clock runs
            note(work, windows * _timed(partial(runs[work.kind], parts, prompt), frames, parts.device))


def _timed(run: Callable[[int], object], frames: int, device: torch.device) -> float:
    """Seconds of one call with so many frames."""
    seconds = 0.0
    for some in (max(1, int(_FIRST * frames)), frames):
        began = time.perf_counter()
        run(some)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = (time.perf_counter() - began) * frames / some
        if seconds > _BELIEVED:
            break
    return seconds


@torch.no_grad()
def _pass(parts: Parts, prompt: str, frames: int) -> None:
    """The inversion's first step, of the clip's first frames."""
    backbone = parts.backbone
    with backbone.room_for([prompt]):
        condition = backbone.condition([prompt])
    levels = backbone.levels(parts.config.invert.steps)
    span, shift = slice(0, frames), parts.shift(prompt)
    shift = shift and replace(shift, frames=frames)
    Inverter(backbone, condition, levels, parts.view_of(span), shift).step(parts.latents[span], 0)


def _step(parts: Parts, prompt: str, frames: int) -> None:
    """A tuning step without the step: the loss and its gradient, of the clip's first frames."""
    with parts.backbone.room_for([prompt]):
        condition = parts.backbone.condition([prompt])
    span, shift = slice(0, frames), parts.shift(prompt)
    shift = shift and replace(shift, frames=frames)
    gradient_pass(
        parts.backbone, parts.latents[span], condition, parts.view_of(span), parts.config.tune,
        parts.request.tuning_seed, shift, parts.temporal,
    )  # fmt: skip
