"""Contextualized DDIM: one function, down for sampling and up for inversion."""

from __future__ import annotations

import torch
from torch import Tensor

from ctxedit.diffusion.broadcast import Level, as_level, per_sample, positive
from ctxedit.diffusion.forward import effective_noise


def ddim(
    x: Tensor,
    x0: Tensor,
    signal_from: Level,
    noise_from: Level,
    signal_to: Level,
    noise_to: Level,
    shift_from: Tensor | None = None,
    shift_to: Tensor | None = None,
    sigma: Level = 0.0,
    z: Tensor | None = None,
    eps: Tensor | None = None,
) -> Tensor:
    """Move ``x`` from one level to another, less noisy or noisier (Eq 9-11, rearranged).

        x_to = a_to x_0 + b_to + sqrt(s_to^2 - sigma^2) eps + sigma z
        eps = (x - a_from x_0 - b_from) / s_from

    For a flow model, ``a = 1 - tau`` and ``s = tau``, this is the Euler step. Without shifts it is plain
    DDIM; the network's ``x_0`` must be made with the effective noise, so that ``b_from`` is subtracted here
    and only here.

    Args:
        x: (B, ...) latents at the level left.
        x0: the predicted clean latents, as ``x``.
        signal_from, noise_from: the level left; float, 0-d or (B,).
        signal_to, noise_to: the level reached.
        shift_from, shift_to: ``b = k r(x0, c, .)`` of the two levels, as ``x``; None is zero.
        sigma: standard deviation of fresh noise, in [0, noise_to]; 0 is deterministic. See `eta_sigma`.
        z: standard normal, as ``x``; needed if ``sigma`` is not 0.
        eps: the noise to use in place of the one computed from ``x``, the shift's share not included. Needed
            to leave clean data (``noise_from`` 0), which holds no noise to read: the first step of an
            inversion.

    Returns:
        Latents at the level reached, as ``x``.

    Raises:
        ValueError: at zero ``noise_from`` without ``eps``; for ``sigma`` beyond ``noise_to`` or without
            ``z``.
    """
    sigma, noise_to = as_level(sigma), as_level(noise_to)
    if bool((sigma > noise_to * (1 + 1e-6)).any()) or bool((sigma < 0).any()):
        raise ValueError(
            f"sigma {sigma.tolist()} is not in [0, {noise_to.tolist()}], the noise of the level reached"
        )
    if z is None and bool((sigma > 0).any()):
        raise ValueError("a positive sigma needs noise z")
    if eps is None:
        eps = effective_noise(x if shift_from is None else x - shift_from, x0, signal_from, noise_from)
    kept = (noise_to**2 - sigma**2).clamp(min=0).sqrt()
    out = per_sample(signal_to, x) * x0 + per_sample(kept, x) * eps
    if shift_to is not None:
        out = out + shift_to
    return out if z is None else out + per_sample(sigma, x) * z


def eta_sigma(eta: float, signal_from: Level, noise_from: Level, signal_to: Level, noise_to: Level) -> Tensor:
    """DDIM's sigma for a downward step: ``eta`` times the posterior's deviation (Song et al., Eq 16).

    Args:
        eta: in [0, 1]; 0 is deterministic, 1 is ancestral sampling.
        signal_from, noise_from: the level left, noise > 0; float, 0-d or (B,).
        signal_to, noise_to: the less noisy level reached, signal > 0.

    Returns:
        sigma >= 0, the level's shape; 0 where the level reached is clean data.

    Raises:
        ValueError: for an upward step, which has no posterior.
    """
    noise_from, noise_to = positive(noise_from, "noise_from"), as_level(noise_to)
    if bool((noise_to > noise_from).any()):
        raise ValueError("eta is for downward steps: the level reached is noisier than the level left")
    ratio = as_level(signal_from) / positive(signal_to, "signal_to")
    beta = (noise_from**2 - ratio**2 * noise_to**2).clamp(min=0)
    return eta * noise_to / noise_from * torch.sqrt(beta)
