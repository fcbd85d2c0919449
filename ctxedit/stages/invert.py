"""Contextualized DDIM inversion: a clip's latents up to noise, every level kept (Eq 9–11, upwards)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ctxedit.diffusion.ddim import ddim
from ctxedit.diffusion.parameterization import to_x0
from ctxedit.diffusion.schedule import Levels
from ctxedit.errors import NumericsError
from ctxedit.models.attention import FrameView
from ctxedit.models.backbone import Backbone
from ctxedit.models.shift import ContextShift

Progress = Callable[[int, int], None]


def no_progress(done: int, total: int) -> None:
    """The progress of whoever does not ask for it."""


@torch.no_grad()
def invert(
    backbone: Backbone,
    latents: Tensor,
    context: Tensor,
    levels: Levels,
    view: FrameView,
    shift: ContextShift | None = None,
    refinements: int = 0,
    progress: Progress = no_progress,
) -> Tensor:
    """Walk clean latents up the levels.

    The step from level s to u asks the network at u's timestep, as the way down will (Song et al. 2021;
    diffusers' ``DDIMInverseScheduler``). Each refinement asks again at the latent just reached: the fixed
    point of it is the exact inverse of the step down.

    Args:
        backbone: with clip attention installed.
        latents: (F, C, h, w), clean.
        context: (1, L, D) embedding of the prompt that is inverted with.
        levels: S used levels.
        view: one lane.
        shift: b_t of the same prompt, or None.
        refinements: network evaluations for each step beyond the first.
        progress: told (done, total) network evaluations.

    Returns:
        (S + 1, F, C, h, w), level 0 first.

    Raises:
        NumericsError: NaN or infinity appeared.
    """
    trajectory = [latents]
    total = levels.steps * (1 + refinements)
    for low, high in levels.up():
        x, t = trajectory[-1], levels.timestep(high)
        a, s = levels.at(low)
        a_up, s_up = levels.at(high)
        raw = backbone.raw(x, t, context, view)
        x0 = to_x0(raw, x, a, s, backbone.prediction)
        if low == 0:
            # Clean data holds no noise to read: the head's own is taken (velocity is noise at a = 1).
            up = ddim(x, x0, a, s, a_up, s_up, None, _at(shift, x0, levels, high), eps=raw)
        else:
            up = ddim(x, x0, a, s, a_up, s_up, _at(shift, x0, levels, low), _at(shift, x0, levels, high))
        progress(1 + (1 + refinements) * low, total)
        for i in range(refinements if low else 0):
            x0 = backbone.predict_x0(up, t, context, a_up, s_up, view)
            up = ddim(x, x0, a, s, a_up, s_up, _at(shift, x0, levels, low), _at(shift, x0, levels, high))
            progress(2 + i + (1 + refinements) * low, total)
        if not bool(torch.isfinite(up).all()):
            raise NumericsError(f"inversion: NaN or infinity at timestep {t}", "try --dtype float32")
        trajectory.append(up)
    return torch.stack(trajectory)


def _at(shift: ContextShift | None, x0: Tensor, levels: Levels, level: int) -> Tensor | None:
    return None if shift is None else shift.at(x0, levels, level)
