"""From data to noise: the contextualized forward process."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ctxedit.diffusion.broadcast import Level, as_level, per_sample, positive

ShiftKind = Literal["paper", "noise"]


def shift_scale(alpha: Level, sigma: Level, kind: ShiftKind = "paper") -> Tensor:
    """k_t, the factor between the adapter's output and the shift: ``b_t = k_t r(x_0, c, t)``.

    Args:
        alpha, sigma: the level, in [0, 1]; float, 0-d or (B,).
        kind: "paper" is ``a (1 - a)``, in [0, 1/4], zero for clean data; at the noisy end it is zero only
            where the signal is (about 0.064 with Stable Diffusion's schedule). "noise" is ``0.018125 s``, the
            variant of the authors' published code: a part of the noise, for which Eq 11's correction vanishes
            if ``r`` does not depend on ``t``.

    Returns:
        k_t, the level's shape.
    """
    if kind == "paper":
        alpha = as_level(alpha)
        return alpha * (1 - alpha)
    if kind == "noise":
        return 0.018125 * as_level(sigma)
    raise ValueError(f"no shift named {kind!r}")


def contextual_shift(r: Tensor, alpha: Level, sigma: Level, kind: ShiftKind = "paper") -> Tensor:
    """The shift ``b_t = k_t r`` at a level, for the adapter's output ``r``, (B, ...). See `shift_scale`."""
    return per_sample(shift_scale(alpha, sigma, kind), r) * r


def keep_norm(shift: Tensor, x0: Tensor, alpha: Level) -> Tensor:
    """The shift with which ``a x_0 + b`` has the norm of ``a x_0``, in the direction that it had.

    A free shift lowers the loss by adding more of ``x_0`` to ``x_t``. This one cannot: it moves signal from
    one place to another. It is a function of ``(x_0, c, t)`` like any other: every kernel stays as it is.

    Args:
        shift: ``b_t``, (B, ...).
        x0: clean latents, as ``shift``.
        alpha: a; float, 0-d or (B,).

    Returns:
        ``(a x_0 + b) |a x_0| / |a x_0 + b| - a x_0``, as ``shift``; norms over all but the first dimension.
        Where ``a x_0 + b`` is zero it has no direction: the result is ``-a x_0``.
    """
    x0 = x0.to(shift.dtype)
    clean = per_sample(alpha, x0) * x0
    moved = clean + shift
    dims = tuple(range(1, x0.ndim))
    before = torch.linalg.vector_norm(clean, dim=dims, keepdim=True)
    after = torch.linalg.vector_norm(moved, dim=dims, keepdim=True)
    # Without a direction any finite factor gives zero; a quotient by almost nothing would be infinite.
    return moved * (before / torch.where(after > 0, after, 1)) - clean


def marginal(x0: Tensor, eps: Tensor, alpha: Level, sigma: Level, shift: Tensor | None = None) -> Tensor:
    """Draw ``x_t`` given ``x_0``: ``a x_0 + b_t + s eps`` (Eq 1, 8).

    Args:
        x0: (B, ...) clean latents.
        eps: standard normal, as ``x0``.
        alpha, sigma: the level t; float, 0-d or (B,).
        shift: ``b_t``, as ``x0``; None is zero, the ordinary diffusion.

    Returns:
        x_t, as ``x0``.
    """
    y = per_sample(alpha, x0) * x0 + per_sample(sigma, x0) * eps
    return y if shift is None else y + shift


def step_forward(
    x_prev: Tensor, alpha_step: Level, shift: Tensor | None, shift_prev: Tensor | None, eps: Tensor
) -> Tensor:
    """Draw ``x_t`` given ``x_{t-1}`` (Eq 2): ``sqrt(alpha) (x_{t-1} - b_{t-1}) + b_t + sqrt(1 - alpha) eps``.

    Args:
        x_prev: (B, ...) latents one used level less noisy.
        alpha_step: ``alpha_bar_t / alpha_bar_{t-1}`` of the two used levels, in [0, 1]; float, 0-d or (B,).
        shift, shift_prev: ``b_t`` and ``b_{t-1}``, as ``x_prev``; None is zero.
        eps: standard normal, as ``x_prev``.

    Returns:
        x_t, as ``x_prev``.
    """
    alpha_s = as_level(alpha_step)
    y_prev = x_prev if shift_prev is None else x_prev - shift_prev
    y = per_sample(alpha_s.sqrt(), x_prev) * y_prev + per_sample((1 - alpha_s).sqrt(), x_prev) * eps
    return y if shift is None else y + shift


def effective_noise(x_t: Tensor, x0: Tensor, alpha: Level, sigma: Level) -> Tensor:
    """All that is not signal, in units of the noise: ``(x_t - a x_0) / s``; the shift's share is included.

    Args:
        x_t, x0: (B, ...).
        alpha, sigma: the level t, sigma > 0; float, 0-d or (B,).

    Returns:
        ``eps + b_t / s``, as ``x_t``; ``eps`` itself where there is no shift.

    Raises:
        ValueError: at zero noise.
    """
    return (x_t - per_sample(alpha, x_t) * x0) / per_sample(positive(sigma, "sigma"), x_t)
