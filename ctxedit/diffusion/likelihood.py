"""The terms of the variational bound, in nats per dimension.

``-log p(x_0 | c) <= prior_kl + sum over levels of posterior_kl + decoder_nll``.
The shift may carry ``x_0`` all the way to the last level, so the prior term is not a constant and must be
counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ctxedit.diffusion.broadcast import Level, per_sample, positive
from ctxedit.diffusion.forward import marginal
from ctxedit.diffusion.posterior import posterior

#: Clean data, or their prediction, and a level's number (B,) to the shift at that level; zero at level 0.
Shift = Callable[[Tensor, Tensor], Tensor]
#: x_t and a level's number (B,) to the predicted x_0.
Predict = Callable[[Tensor, Tensor], Tensor]


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


def discretised_nll(x0: Tensor, mean: Tensor, scale: Level, values: int = 256) -> Tensor:
    """The last step's term for data of ``values`` steps: ``-log`` of the normal's mass in the step of ``x0``.

    The first and last step reach to infinity, so that the masses of all add up to 1 (Ho et al. 2020,
    section 3.3). The logarithm is taken of a difference of log-masses in float64: it is exact far from the
    mean as well, where masses themselves would round to zero.

    Args:
        x0: (B, ...) data ``2 k / (values - 1) - 1`` for k in 0 … values − 1.
        mean: the model's ``x_0`` predicted at level 1, as ``x0``.
        scale: standard deviation, > 0; float, 0-d or (B,).
        values: number of steps.

    Returns:
        (B,) nats per dimension, >= 0; of a probability.
    """
    spread = _spread(scale, x0, "scale").double()
    half = 1 / (values - 1)
    x, middle = x0.double(), mean.double()
    low = torch.where(x <= -1 + half, -math.inf, (x - half - middle) / spread)
    high = torch.where(x >= 1 - half, math.inf, (x + half - middle) / spread)
    # By symmetry both ends are taken on the side where the distribution function is small.
    flip = low + high > 0
    low, high = torch.where(flip, -high, low), torch.where(flip, -low, high)
    upper = torch.special.log_ndtr(high)
    ratio = torch.where(torch.isinf(low), 0.0, (torch.special.log_ndtr(low) - upper).exp())
    return -_mean_over_dims(upper + torch.log1p(-ratio))


def level_chances(steps: int) -> Tensor:
    """Chances (T - 1,) with which levels 2 … T are drawn to estimate the sum of their terms.

    Half uniform, half as 1 / t: terms near clean data are by far the largest, and uniform draws would leave
    an estimate with a heavy tail. A term divided by its chance is an unbiased estimate of the sum.
    """
    low = 1 / torch.arange(2, steps + 1, dtype=torch.float64)
    return 0.5 / (steps - 1) + 0.5 * low / low.sum()


def step_kl(
    x0: Tensor,
    eps: Tensor,
    level: Tensor,
    signal: Tensor,
    noise: Tensor,
    predict: Predict,
    shift: Shift | None,
) -> Tensor:
    """One term of the sum: the KL of the posterior to the model's step, at ``x_t`` drawn with ``eps``.

    The means of a contextualised diffusion depend on ``x_0`` beyond ``a x_0``. Both posteriors therefore
    have their shifts, the true one ``b(x_0)`` and the model's ``b`` of its own prediction, at the level and
    at the one below: the correction that DiffEnc (Nielsen et al., ICLR 2024) derives for an encoding that
    depends on ``x_0`` and ``t``. A weighted error of ``x_0`` alone leaves it out and is no bound.

    Args:
        x0: (B, ...) data.
        eps: standard normal, as ``x0``.
        level: (B,) int64, 2 … T.
        signal, noise: (T + 1,) of the schedule, ascending in noise, level 0 clean.
        predict: the network.
        shift: the adapter; None for the ordinary diffusion.

    Returns:
        (B,) nats per dimension.
    """
    a, s, a_prev, s_prev = signal[level], noise[level], signal[level - 1], noise[level - 1]
    b = None if shift is None else shift(x0, level)
    x_t = marginal(x0, eps, a, s, b)
    guess = predict(x_t, level)
    below = None if shift is None else shift(x0, level - 1)
    b_guess = None if shift is None else shift(guess, level)
    below_guess = None if shift is None else shift(guess, level - 1)
    mean, variance = posterior(x_t, x0, a, s, a_prev, s_prev, b, below)
    mean_model, _ = posterior(x_t, guess, a, s, a_prev, s_prev, b_guess, below_guess)
    return posterior_kl(mean, mean_model, variance)


def _spread(value: Level, like: Tensor, name: str) -> Tensor:
    """A positive level, or a tensor that already has ``like``'s dimensions, ready to divide ``like``."""
    value = positive(value, name)
    return value if value.ndim == like.ndim > 1 else per_sample(value, like)


def _mean_over_dims(x: Tensor) -> Tensor:
    """(B, ...) to (B,)."""
    return x.flatten(1).mean(1)
