"""Contextualized DDIM inversion: a clip's latents up to noise, every level kept (Eq 9–11, upwards)."""

from __future__ import annotations

from collections.abc import Callable

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

Progress = Callable[[int, int], None]


def no_progress(done: int, total: int) -> None:
    """The progress of whoever does not ask for it."""


def network_passes(config: Config) -> int:
    """Passes of the network over the clip that :func:`invert` makes; none where edits start from noise."""
    return (
        0
        if config.edit.start == "noise"
        else _passes(config.invert.steps, config.invert.fixed_point_iterations)
    )


def history_of(solver: Solver) -> History:
    """Of a walk that has not begun."""
    return History(solver != "ddim")


def maps_of_level(config: Config) -> bool:
    """Whether the inversion asked the network at each level with the latent of that level.

    Refined and second-order inversions did; DDIM's asked with the latent of the level below.
    """
    return config.invert.fixed_point_iterations > 0 or config.invert.solver != "ddim"


def _passes(steps: int, fixed_point_iterations: int) -> int:
    return steps * (1 + fixed_point_iterations)


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
) -> Tensor:
    """Walk clean latents up the levels.

    DDIM's step from level s to u asks the network at u's timestep, as the way down will (Song et al. 2021;
    diffusers' ``DDIMInverseScheduler``). Each refinement asks again at the latent just reached: the fixed
    point of it is the exact inverse of the step down. What is handed on is the noise, not x̂_0: near clean
    data x̂_0 hardly says which noise there was, and the iteration would run away. A step of second order asks
    at its own level instead, as Adams and Bashforth do; the first one, from clean data, is DDIM's.

    Args:
        backbone: with clip attention installed.
        latents: (F, C, h, w), clean.
        context: one row, of the prompt that is inverted with.
        levels: S used levels.
        view: one branch.
        shift: b_t of the same prompt, or None.
        fixed_point_iterations: network evaluations of each step beyond the first.
        progress: told (done, total) network evaluations.
        solver: ``ddim``, or ``dpm++2m`` without fixed-point iterations.

    Returns:
        (S + 1, F, C, h, w), level 0 first, contiguous whatever the memory format of the latents.

    Raises:
        NumericsError: NaN or infinity appeared.
    """
    trajectory, history = [latents], history_of(solver)
    total = _passes(levels.steps, fixed_point_iterations)
    for low, _ in levels.up():

        def passed(i: int, low: int = low) -> None:
            progress(1 + i + (1 + fixed_point_iterations) * low, total)

        up = ascend(
            backbone, trajectory[-1], context, levels, low, view, shift, fixed_point_iterations, passed,
            history,
        )  # fmt: skip
        trajectory.append(up)
    # Networks round differently in each memory format, and a file holds contiguous tensors: what is fresh
    # and what is read back must give the same edit.
    return torch.stack(trajectory).contiguous()


@torch.no_grad()
def ascend(
    backbone: Backbone,
    x: Tensor,
    context: Condition | Tensor,
    levels: Levels,
    low: int,
    view: FrameView,
    shift: ContextShift | None,
    fixed_point_iterations: int,
    passed: Callable[[int], None],
    history: History | None = None,
) -> Tensor:
    """One step of :func:`invert`: latents (F, C, h, w) from level ``low`` to the one above.

    ``passed`` is told of each network evaluation, counted from 0; ``history`` is handed from step to step.
    """
    if history is not None and history.second_order and low:
        up = _second_order(backbone, x, context, levels, low, view, shift, history)
        passed(0)
        return _finite(up, levels.timestep(low))
    high = low + 1
    t = levels.timestep(high)
    up, level = x, low
    for i in range(1 + fixed_point_iterations):
        raw = backbone.raw(up, t, context, view)
        x0 = to_x0(raw, up, *levels.at(level), backbone.prediction)
        eps = _noise(raw, up, x0, levels, level, high, backbone.prediction)
        up = _step_up(x, x0, eps, levels, low, shift, passes=1 if i else 2)
        level = high
        passed(i)
    return _finite(up, t)


def _finite(latents: Tensor, timestep: int | float) -> Tensor:
    if not bool(torch.isfinite(latents).all()):
        raise NumericsError(f"inversion: NaN or infinity at timestep {timestep}", "try --dtype float32")
    return latents


def _second_order(
    backbone: Backbone,
    x: Tensor,
    context: Condition | Tensor,
    levels: Levels,
    low: int,
    view: FrameView,
    shift: ContextShift | None,
    history: History,
) -> Tensor:
    """From level ``low``, which is not clean data, to the next, by the noise predicted at ``low``."""
    here, above = levels.at(low), levels.at(low + 1)
    x0 = backbone.predict_x0(x, levels.timestep(low), context, *here, view)
    b = b_up = None
    if shift is not None:
        b, b_up = shift.at(x0, levels, low), shift.at(x0, levels, low + 1)
    y = x if b is None else x - b
    eps = history.improve(effective_noise(y, x0, *here), here, above)
    return ddim(x, to_x0(eps, y, *here, "epsilon"), *here, *above, b, b_up, eps=eps)


def _noise(
    raw: Tensor, x: Tensor, x0: Tensor, levels: Levels, level: int, high: int, kind: Prediction
) -> Tensor:
    """The effective noise of ``x``. Clean data holds none to read: there the head says it.

    A head for x_0 says it only as what is left at the upper level, whose timestep the network was told.
    """
    if level:
        return effective_noise(x, x0, *levels.at(level))
    return to_noise(raw, x, *levels.at(high if kind == "sample" else level), kind)


def _step_up(
    x: Tensor, x0: Tensor, eps: Tensor, levels: Levels, low: int, shift: ContextShift | None, passes: int
) -> Tensor:
    """From level ``low`` to the next: the step down, solved for where it starts.

    Args:
        x: latents at ``low``.
        x0: the prediction, for the shift.
        eps: the effective noise, the *upper* level's share of the shift included: that is whose timestep the
            network was told.
        passes: how often the shift is made. A first x̂_0, told of the lower level, takes a part of the shift
            for signal: a second pass, with the x̂_0 of the first, does not.
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
