"""Contextualized DDIM: one function, down for sampling and up for inversion."""

from __future__ import annotations

import torch
from torch import Tensor

from ctxedit.diffusion.broadcast import Level, as_level, per_sample, positive
from ctxedit.diffusion.forward import effective_noise


def ddim(
    x: Tensor,
    x0: Tensor,
    alpha_from: Level,
    sigma_from: Level,
    alpha_to: Level,
    sigma_to: Level,
    shift_from: Tensor | None = None,
    shift_to: Tensor | None = None,
    std: Level = 0.0,
    z: Tensor | None = None,
    eps: Tensor | None = None,
) -> Tensor:
    """Move ``x`` from one level to another, less noisy or noisier (Eq 9-11, rearranged).

        x_to = a_to x_0 + b_to + sqrt(s_to^2 - std^2) eps + std z
        eps = (x - a_from x_0 - b_from) / s_from

    For a flow model, ``a = 1 - tau`` and ``s = tau``, this is the Euler step. Without shifts it is plain
    DDIM; the network's ``x_0`` must be made with the effective noise, so that ``b_from`` is subtracted here
    and only here.

    Args:
        x: (B, ...) latents at the level left.
        x0: the predicted clean latents, as ``x``.
        alpha_from, sigma_from: the level left; float, 0-d or (B,).
        alpha_to, sigma_to: the level reached.
        shift_from, shift_to: ``b = k r(x0, c, .)`` of the two levels, as ``x``; None is zero.
        std: standard deviation of fresh noise, in [0, sigma_to]; 0 is deterministic. See `eta_std`.
        z: standard normal, as ``x``; needed if ``std`` is not 0.
        eps: the noise to use in place of the one computed from ``x``, the shift's share not included. Needed
            to leave clean data (``sigma_from`` 0), which holds no noise to read: the first step of an
            inversion.

    Returns:
        Latents at the level reached, as ``x``.

    Raises:
        ValueError: at zero ``sigma_from`` without ``eps``; for ``std`` beyond ``sigma_to`` or without
            ``z``.
    """
    std, sigma_to = as_level(std), as_level(sigma_to)
    if bool((std > sigma_to * (1 + 1e-6)).any()) or bool((std < 0).any()):
        raise ValueError(
            f"std {std.tolist()} is not in [0, {sigma_to.tolist()}], the noise of the level reached"
        )
    if z is None and bool((std > 0).any()):
        raise ValueError("a positive std needs noise z")
    if eps is None:
        eps = effective_noise(x if shift_from is None else x - shift_from, x0, alpha_from, sigma_from)
    direction = (sigma_to**2 - std**2).clamp(min=0).sqrt()
    out = per_sample(alpha_to, x) * x0 + per_sample(direction, x) * eps
    if shift_to is not None:
        out = out + shift_to
    return out if z is None else out + per_sample(std, x) * z


def eta_std(eta: float, alpha_from: Level, sigma_from: Level, alpha_to: Level, sigma_to: Level) -> Tensor:
    """Standard deviation of DDIM's fresh noise in a downward step (Song et al., Eq 16, there called sigma).

    Args:
        eta: in [0, 1]; 0 is deterministic, 1 is ancestral sampling.
        alpha_from, sigma_from: the level left, sigma > 0; float, 0-d or (B,).
        alpha_to, sigma_to: the less noisy level reached, alpha > 0.

    Returns:
        std >= 0, the level's shape; 0 where the level reached is clean data.

    Raises:
        ValueError: for an upward step, which has no posterior.
    """
    sigma_from, sigma_to = positive(sigma_from, "sigma_from"), as_level(sigma_to)
    if bool((sigma_to > sigma_from).any()):
        raise ValueError("eta is for downward steps: the level reached is noisier than the level left")
    ratio = as_level(alpha_from) / positive(alpha_to, "alpha_to")
    beta = (sigma_from**2 - ratio**2 * sigma_to**2).clamp(min=0)
    return eta * sigma_to / sigma_from * torch.sqrt(beta)
