"""Contextualized DDIM inversion: a clip's latents up to noise, every level kept (Eq 9–11, upwards)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count

import torch
from torch import Tensor

from ctxedit.config import Config, Solver
from ctxedit.diffusion.ddim import ddim
from ctxedit.diffusion.forward import effective_noise
from ctxedit.diffusion.multistep import History
from ctxedit.diffusion.parameterization import Prediction, to_noise, to_x0
from ctxedit.diffusion.schedule import Levels
from ctxedit.errors import NumericsError
from ctxedit.models.attention import FrameView
from ctxedit.models.backbones import Backbone
from ctxedit.models.conditioning import Condition
from ctxedit.models.shift import ContextShift
from ctxedit.stages.kept_source import KeptSource

Progress = Callable[[int, int], None]


def no_progress(done: int, total: int) -> None:
    """Report nothing."""


def network_passes(config: Config) -> int:
    """Passes of the network over the clip that :func:`invert` makes; none where edits start from noise."""
    return (
        0
        if config.edit.start == "noise"
        else _passes(config.invert.steps, config.invert.fixed_point_iterations)
    )


def history_of(solver: Solver) -> History:
    """The history of a trajectory before its first step."""
    return History(solver != "ddim")


def maps_of_level(config: Config) -> bool:
    """Whether the inversion evaluates the network at each level with that level's own latents.

    It does with fixed-point iterations and with a second-order solver. Plain DDIM inversion uses the latents
    of the level below.
    """
    return config.invert.fixed_point_iterations > 0 or config.invert.solver != "ddim"


def _passes(steps: int, fixed_point_iterations: int) -> int:
    return steps * (1 + fixed_point_iterations)


@dataclass(frozen=True)
class Inverter:
    """One step up the levels, of an image or a video: what :func:`invert` repeats.

    Attributes:
        backbone: with clip attention installed.
        context: one row, of the prompt that is inverted with.
        levels: S used levels.
        view: one branch.
        shift: b_t of the same prompt, or None.
        fixed_point_iterations: network evaluations of each step beyond the first.
        solver: ``ddim``, or ``dpm++2m`` without fixed-point iterations.
    """

    backbone: Backbone
    context: Condition | Tensor
    levels: Levels
    view: FrameView
    shift: ContextShift | None = None
    fixed_point_iterations: int = 0
    solver: Solver = "ddim"

    @property
    def passes(self) -> int:
        """Network evaluations of a whole inversion."""
        return _passes(self.levels.steps, self.fixed_point_iterations)

    @torch.no_grad()
    def step(
        self, x: Tensor, low: int, passed: Callable[[], None] = lambda: None, history: History | None = None
    ) -> Tensor:
        """Latents (F, C, h, w) from level ``low`` to the one above.

        Args:
            x: latents at ``low``.
            low: index of the level.
            passed: called after each network evaluation.
            history: of this inversion, handed from step to step; a step of second order needs it.

        Raises:
            NumericsError: NaN or infinity appeared.
        """
        levels, backbone = self.levels, self.backbone
        if history is not None and history.second_order and low:
            up = self._second_order(x, low, history)
            passed()
            return _finite(up, levels.timestep(low))
        high = low + 1
        t = levels.timestep(high)
        up, level = x, low
        for i in range(1 + self.fixed_point_iterations):
            raw = backbone.raw(up, t, self.context, self.view)
            x0 = to_x0(raw, up, *levels.at(level), backbone.prediction)
            eps = _noise(raw, up, x0, levels, level, high, backbone.prediction)
            up = _step_up(x, x0, eps, levels, low, self.shift, passes=1 if i else 2)
            level = high
            passed()
        return _finite(up, t)

    def _second_order(self, x: Tensor, low: int, history: History) -> Tensor:
        """From level ``low``, which is not clean data, to the next, by the noise predicted at ``low``."""
        levels, shift = self.levels, self.shift
        here, above = levels.at(low), levels.at(low + 1)
        x0 = self.backbone.predict_x0(x, levels.timestep(low), self.context, *here, self.view)
        b = b_up = None
        if shift is not None:
            b, b_up = shift.at(x0, levels, low), shift.at(x0, levels, low + 1)
        y = x if b is None else x - b
        eps = history.improve(effective_noise(y, x0, *here), here, above)
        return ddim(x, to_x0(eps, y, *here, "epsilon"), *here, *above, b, b_up, eps=eps)


@torch.no_grad()
def invert(
    backbone: Backbone,
    latents: Tensor,
    context: Condition | Tensor,
    levels: Levels,
    view: FrameView,
    shift: ContextShift | None = None,
    fixed_point_iterations: int = 0,
    progress: Progress = no_progress,
    solver: Solver = "ddim",
    kept: KeptSource | None = None,
) -> Tensor:
    """Walk clean latents up the levels.

    DDIM's step from level s to u evaluates the network at u's timestep, as the step down will (Song et al.
    2021; diffusers' ``DDIMInverseScheduler``). Each fixed-point iteration evaluates it again at the latents
    just reached: its fixed point is the exact inverse of the step down. The steps carry the noise rather
    than x̂_0: near clean data x̂_0 hardly determines the noise, and the iteration would diverge. A second-order
    step (Adams-Bashforth) evaluates the network at its own level instead; the first one, from clean data, is
    DDIM's.

    Args:
        latents: (F, C, h, w), clean.
        progress: called with (done, total) network evaluations.
        backbone, context, levels, view, shift, fixed_point_iterations, solver: as in :class:`Inverter`.
        kept: receives what edits take from the source, for plain DDIM inversion.

    Returns:
        (S + 1, F, C, h, w), level 0 first, contiguous, regardless of the latents' memory format.

    Raises:
        NumericsError: NaN or infinity appeared.
    """
    inverter = Inverter(backbone, context, levels, view, shift, fixed_point_iterations, solver)
    if kept is not None:
        kept.clear()
    trajectory, history, passed = [latents], history_of(solver), counter(progress, inverter.passes)
    for low, high in levels.up():
        layers = None if kept is None else kept.at(high)
        stepping = replace(inverter, view=replace(view, keep=layers))
        trajectory.append(stepping.step(trajectory[-1], low, passed, history))
        if layers is not None:
            layers.complete = True
    # Networks round differently in each memory format, and a file holds contiguous tensors: fresh latents and
    # latents read back must give the same edit.
    found = torch.stack(trajectory).contiguous()
    if kept is not None:
        kept.bind(found)
    return found


def counter(progress: Progress, total: int) -> Callable[[], None]:
    """A function that reports one more of ``total`` each time it is called."""
    numbers = count(1)
    return lambda: progress(next(numbers), total)


def _finite(latents: Tensor, timestep: int | float) -> Tensor:
    if not bool(torch.isfinite(latents).all()):
        raise NumericsError(f"inversion: NaN or infinity at timestep {timestep}", "try --dtype float32")
    return latents


def _noise(
    raw: Tensor, x: Tensor, x0: Tensor, levels: Levels, level: int, high: int, kind: Prediction
) -> Tensor:
    """The effective noise of ``x``. Clean data contains none, so there the network's output gives it.

    A network that predicts x_0 gives it only at the upper level, whose timestep it was called with.
    """
    if level:
        return effective_noise(x, x0, *levels.at(level))
    return to_noise(raw, x, *levels.at(high if kind == "sample" else level), kind)


def _step_up(
    x: Tensor, x0: Tensor, eps: Tensor, levels: Levels, low: int, shift: ContextShift | None, passes: int
) -> Tensor:
    """From level ``low`` to the next: the step down, solved for its starting point.

    Args:
        x: latents at ``low``.
        x0: the prediction, for the shift.
        eps: the effective noise, including the *upper* level's shift, because the network was called with the
            upper level's timestep.
        passes: how often the shift is computed. The first x̂_0, read at the lower level, contains a part of
            the shift; a second pass, with the x̂_0 of the first, does not.
    """
    high = low + 1
    (a, s), (a_up, s_up) = levels.at(low), levels.at(high)
    b = b_up = None
    if shift is not None:
        for _ in range(passes):
            b, b_up = shift.at(x0, levels, low), shift.at(x0, levels, high)
            assert b_up is not None  # only level 0 has none
            plain = eps - b_up / float(s_up)
            x0 = to_x0(plain, x if b is None else x - b, a, s, "epsilon")
        eps = plain
    else:
        x0 = to_x0(eps, x, a, s, "epsilon")
    return ddim(x, x0, a, s, a_up, s_up, b, b_up, eps=eps)
