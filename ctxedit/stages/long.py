"""Inverting and editing a clip in windows: every step goes through all windows before the next begins.

Latents are on disk and one window of them is in memory. Frames that windows share are averaged after every
step (MultiDiffusion, Bar-Tal et al. 2023), with weights that rise evenly from one window to the next. Each
window attends to the anchors of :mod:`ctxedit.models.anchors`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ctxedit.config import Config, Solver
from ctxedit.diffusion.forward import marginal
from ctxedit.diffusion.schedule import Levels
from ctxedit.media.scratch import release
from ctxedit.models.anchors import Anchors
from ctxedit.models.attention import FrameView
from ctxedit.models.backbones import Backbone
from ctxedit.models.conditioning import Condition
from ctxedit.models.shift import ContextShift
from ctxedit.stages.edit import InvertedClip, edit_conditions
from ctxedit.stages.invert import Inverter, Progress, counter, history_of, no_progress
from ctxedit.stages.passes import first_level
from ctxedit.stages.sample import Sampling, descend
from ctxedit.windows import Window

#: (F, C, h, w) float32 on disk.
Stored = NDArray[np.float32]


@dataclass(frozen=True)
class Strip:
    """A clip's windows, and what the network gets in each.

    Attributes:
        windows: in order.
        view: of one window, one branch.
        device: of the network.
        store: makes an array on disk, of a shape.
    """

    windows: tuple[Window, ...]
    view: Callable[[Window], FrameView]
    device: torch.device
    store: Callable[[tuple[int, ...]], Stored]

    def walk(self, source: Stored, result: Stored, step: Callable[[int, FrameView, Tensor], Tensor]) -> None:
        """Take all windows of ``source`` through one step, and lay the results together in ``result``.

        ``step`` gets a window's number, its view and its latents (F, C, h, w).
        """
        anchors = Anchors()
        for number, window in enumerate(self.windows):
            anchors.enter()
            part = torch.from_numpy(np.array(source[window.span])).to(self.device)
            out = step(number, replace(self.view(window), anchors=anchors), part)
            write_window(result, window, out.float().cpu())
            release(source, result)


def write_window(result: Stored, window: Window, part: Tensor) -> None:
    """Put a window's latents into the clip's: the shared frames averaged with those of the window before."""
    values = part.numpy()
    for i, weight in enumerate(window.weights):
        before = result[window.start + i]
        result[window.start + i] = before + np.float32(weight) * (values[i] - before)
    result[window.fresh] = values[window.shared :]


class Noise:
    """Fresh noise of one step for window after window; frames that two share have the same in both."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator
        self._last: Tensor | None = None

    def of(self, window: Window, like: Tensor) -> Tensor:
        """Standard normal noise of the shape of ``like`` (F, C, h, w), for the next window."""
        fresh = torch.randn((len(like) - window.shared, *like.shape[1:]), generator=self._generator)
        if window.shared:
            assert self._last is not None
            fresh = torch.cat([self._last[-window.shared :], fresh])
        self._last = fresh
        return fresh.to(like)


@torch.no_grad()
def invert_long(
    backbone: Backbone,
    latents: Stored,
    context: Condition | Tensor,
    levels: Levels,
    strip: Strip,
    trajectory: Stored,
    shift: ContextShift | None = None,
    fixed_point_iterations: int = 0,
    progress: Progress = no_progress,
    solver: Solver = "ddim",
) -> None:
    """As :func:`ctxedit.stages.invert.invert`, into ``trajectory`` (S + 1, F, C, h, w) on disk.

    ``progress`` counts network evaluations of one window each.
    """
    for window in strip.windows:
        trajectory[0, window.fresh] = latents[window.fresh]
        release(trajectory, latents)
    histories = [history_of(solver) for _ in strip.windows]
    inverter = Inverter(
        backbone, context, levels, strip.view(strip.windows[0]), shift, fixed_point_iterations, solver
    )
    passed = counter(progress, inverter.passes * len(strip.windows))
    for low, high in levels.up():

        def up(number: int, view: FrameView, x: Tensor, low: int = low) -> Tensor:
            return replace(inverter, view=view).step(x, low, passed, histories[number])

        strip.walk(trajectory[low], trajectory[high], up)


@torch.no_grad()
def edit_long(
    inverted: InvertedClip,
    trajectory: Stored,
    strip: Strip,
    target: str,
    config: Config,
    shift: ContextShift | None = None,
    mask: Callable[[Window], Tensor | None] = lambda window: None,
    progress: Progress = no_progress,
) -> Stored:
    """As :func:`ctxedit.stages.edit.edit`, on disk.

    Args:
        inverted: what edits share; its trajectory is a view of ``trajectory``.
        trajectory: (S + 1, F, C, h, w) on disk; level 0 alone where nothing was inverted.
        strip: the windows.
        target, config, shift: as there, the shift of one window's length.
        mask: of one window.
        progress: counts steps of one window each.

    Returns:
        Latents (F, C, h, w) on disk.
    """
    with edit_conditions(inverted, target, config) as (condition, source):
        how = Sampling.of(config, torch.Generator().manual_seed(config.seed))
        if source is not None:
            how = replace(how, fusion=config.fusion, source=source)
        return _sampled(inverted, trajectory, strip, condition, config, how, shift, mask, progress)


def _sampled(
    inverted: InvertedClip,
    trajectory: Stored,
    strip: Strip,
    condition: Condition,
    config: Config,
    how: Sampling,
    shift: ContextShift | None,
    mask: Callable[[Window], Tensor | None],
    progress: Progress,
) -> Stored:
    levels, generator, count = inverted.levels, how.generator, len(strip.windows)
    assert generator is not None
    spare = [strip.store(trajectory.shape[1:]) for _ in range(2)]
    top, x = levels.steps, trajectory[-1]
    if how.source is None:
        top, x = first_level(config), spare[1]
        _noised(trajectory[0], x, strip, levels, top, shift, Noise(generator))
    states = [how.initial_state() for _ in strip.windows]
    for step, high in enumerate(range(top, 0, -1)):
        noise, result = Noise(generator), spare[step % 2]

        def down(
            number: int, view: FrameView, part: Tensor, high: int = high, noise: Noise = noise
        ) -> Tensor:
            window, here = strip.windows[number], how
            if how.source is not None:
                near = replace(how.source, trajectory=how.source.trajectory[:, window.span])
                here = replace(how, source=near, mask=mask(window))
            z = noise.of(window, part) if how.eta > 0 else None
            return descend(
                inverted.backbone, part, condition, levels, high, view, here, shift, states[number], z
            )

        strip.walk(x, result, _counted(down, progress, step * count, top * count))
        release(trajectory)
        x = result
    return x


def _noised(
    clean: Stored, result: Stored, strip: Strip, levels: Levels, level: int, shift: ContextShift | None,
    noise: Noise,
) -> None:  # fmt: skip
    """The clip at a level, noised rather than inverted."""

    def add(number: int, view: FrameView, part: Tensor) -> Tensor:
        b = None if shift is None else shift.at(part, levels, level)
        return marginal(part, noise.of(strip.windows[number], part), *levels.at(level), b)

    strip.walk(clean, result, add)


def _counted(
    step: Callable[[int, FrameView, Tensor], Tensor], progress: Progress, before: int, total: int
) -> Callable[[int, FrameView, Tensor], Tensor]:
    def counted(number: int, view: FrameView, part: Tensor) -> Tensor:
        out = step(number, view, part)
        progress(before + number + 1, total)
        return out

    return counted
