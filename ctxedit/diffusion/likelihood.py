"""The terms of the variational bound, in nats per dimension.

``-log p(x_0 | c) <= prior_kl + sum over levels of posterior_kl + decoder_nll``.
The shift may carry ``x_0`` all the way to the last level, so the prior term is not a constant and must be
counted.
"""

from __future__ import annotations

import math

from torch import Tensor

from ctxedit.diffusion.broadcast import Level, per_sample, positive


def prior_kl(x0: Tensor, signal_T: Level, noise_T: Level, shift_T: Tensor | None = None) -> Tensor:
    """KL of ``q(x_T | x_0, c) = N(a x_0 + b_T, s^2 I)`` to the prior ``N(0, I)``.

    Args:
        x0: (B, ...) clean latents.
        signal_T, noise_T: the noisiest level, noise > 0; float, 0-d or (B,).
        shift_T: ``b_T``, as ``x0``; None is zero.

    Returns:
        (B,) nats per dimension, >= 0.
    """
    mean = per_sample(signal_T, x0) * x0
    if shift_T is not None:
        mean = mean + shift_T
    variance = positive(noise_T, "noise_T") ** 2
    return 0.5 * _mean_over_dims(mean**2 + per_sample(variance - 1 - variance.log(), x0))


def posterior_kl(mean: Tensor, mean_model: Tensor, variance: Level) -> Tensor:
    """KL of the posterior (Eq 3) to the model's step (Eq 7), which has the same variance.

    Args:
        mean: of `posterior` with the true ``x_0`` and its shifts, (B, ...).
        mean_model: of `posterior` with the predicted ``x_0`` and *its* shifts, as ``mean``.
        variance: as `posterior` returns it, or a level; > 0, so not the last step to clean data, which is
            `decoder_nll`'s.

    Returns:
        (B,) nats per dimension, >= 0.
    """
    return 0.5 * _mean_over_dims((mean - mean_model) ** 2 / _spread(variance, mean, "variance"))


def decoder_nll(x0: Tensor, mean: Tensor, scale: Level) -> Tensor:
    """The last step's term, ``-log N(x_0; mean, scale^2 I)``: of a density, so of either sign.

    Args:
        x0: (B, ...) clean latents.
        mean: the model's ``x_0`` predicted at level 1, as ``x0``.
        scale: standard deviation, > 0; float, 0-d or (B,).

    Returns:
        (B,) nats per dimension.
    """
    spread = _spread(scale, x0, "scale")
    return _mean_over_dims(0.5 * ((x0 - mean) / spread) ** 2 + spread.log()) + 0.5 * math.log(2 * math.pi)


def _spread(value: Level, like: Tensor, name: str) -> Tensor:
    """A positive level, or a tensor that already has ``like``'s dimensions, ready to divide ``like``."""
    value = positive(value, name)
    return value if value.ndim == like.ndim > 1 else per_sample(value, like)


def _mean_over_dims(x: Tensor) -> Tensor:
    """(B, ...) to (B,)."""
    return x.flatten(1).mean(1)
