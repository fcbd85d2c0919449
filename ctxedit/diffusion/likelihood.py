"""The terms of the variational bound, in nats per dimension.

``-log p(x_0 | c) <= prior_kl + sum over levels of step_kl + decoder_nll``; with `discretised_nll` for the
last the bound is of a probability. `step_kl` is `posterior_kl`, written in the errors of ``x_0`` and shifts.
The shift may carry ``x_0`` all the way to the last level, so the prior term is not a constant and must be
counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ctxedit.diffusion.broadcast import Level, as_level, per_sample, positive
from ctxedit.diffusion.forward import marginal

#: Clean data, or their prediction, and levels (B,), to the shift there; zero at level 0.
Shift = Callable[[Tensor, Tensor], Tensor]
#: x_t and levels (B,), to the predicted x_0.
Predict = Callable[[Tensor, Tensor], Tensor]


def prior_kl(x0: Tensor, alpha_T: Level, sigma_T: Level, shift_T: Tensor | None = None) -> Tensor:
    """KL of ``q(x_T | x_0, c) = N(a x_0 + b_T, s^2 I)`` to the prior ``N(0, I)``.

    Args:
        x0: (B, ...) clean latents.
        alpha_T, sigma_T: the noisiest level, sigma > 0; float, 0-d or (B,).
        shift_T: ``b_T``, as ``x0``; None is zero.

    Returns:
        (B,) nats per dimension, >= 0.
    """
    mean = per_sample(alpha_T, x0) * x0
    if shift_T is not None:
        mean = mean + shift_T
    variance = positive(sigma_T, "sigma_T") ** 2
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
    """The last step's term for data of equally spaced values: ``-log P`` of each value's interval.

    The intervals of ``N(mean, scale^2)`` around the values -1 .. 1; the first and the last one are open (Ho
    et al. 2020, Eq 13). It is a probability's, so never negative.

    Args:
        x0: (B, ...), of the values -1, -1 + 2 / (values - 1), .., 1.
        mean: the model's ``x_0`` predicted at level 1, as ``x0``.
        scale: standard deviation, > 0; float, 0-d or (B,).
        values: how many values there are; 256 for 8-bit images.

    Returns:
        (B,) nats per dimension, float64, >= 0.
    """
    x0, mean = x0.double(), mean.double()
    spread, half = _spread(scale, x0, "scale"), 1 / (values - 1)
    infinity = torch.full_like(x0, math.inf)
    low = torch.where(x0 < -1 + half, -infinity, (x0 - half - mean) / spread)
    high = torch.where(x0 > 1 - half, infinity, (x0 + half - mean) / spread)
    # In the lower tail log_ndtr stays exact; an interval in the upper one is mirrored into it.
    mirrored = low > 0
    low, high = torch.where(mirrored, -high, low), torch.where(mirrored, -low, high)
    upper = torch.special.log_ndtr(high)
    ratio = torch.special.log_ndtr(low) - upper
    return -_mean_over_dims(upper + torch.log(-torch.expm1(ratio)))


def snr_step(alpha_t: Level, sigma_t: Level, alpha_prev: Level, sigma_prev: Level) -> Tensor:
    """``SNR(t-1) - SNR(t)``, twice the factor between a squared error of ``x_0`` and its step's KL.

    Kingma et al. 2021 (arXiv 2107.00630), Eq 13. It equals the posterior mean's squared coefficient of
    ``x_0`` over the posterior's variance. Levels as in `posterior`, sigma_prev > 0.
    """
    before = (as_level(alpha_prev) / positive(sigma_prev, "sigma_prev")) ** 2
    return before - (as_level(alpha_t) / positive(sigma_t, "sigma_t")) ** 2


def corrected_error(
    error: Tensor,
    gap_t: Tensor | None,
    gap_prev: Tensor | None,
    alpha_t: Level,
    sigma_t: Level,
    alpha_prev: Level,
    sigma_prev: Level,
) -> Tensor:
    """What the step's KL squares in place of the error of ``x_0`` when the mean depends on ``x_0``.

    The shift is a function of ``x_0``, and the model's step shifts by its guess's. With the posterior mean
    ``A x_0 + B (x_t - b_t) + b_{t-1}`` the true and the model's mean differ by

        A (x_0 - x0_hat) - B (b_t - b_t_hat) + (b_{t-1} - b_{t-1}_hat)

    and this is that difference over ``A``. Eq 6 of the paper keeps the first part alone, so it bounds
    nothing where there is a shift. As the steps get small the correction becomes the derivative of the
    encoding by the log-SNR that DiffEnc (Nielsen et al., ICLR 2024, arXiv 2310.19789) adds to its loss.

    Args:
        error: ``x_0 - x0_hat``, (B, ...).
        gap_t, gap_prev: ``b_t(x_0) - b_t(x0_hat)`` at the two levels, as ``error``; None is zero.
        alpha_t, sigma_t, alpha_prev, sigma_prev: as in `posterior`; level t is the noisier one.

    Returns:
        As ``error``; ``error`` itself without gaps, and where the previous level is clean.
    """
    ratio = as_level(alpha_t) / positive(alpha_prev, "alpha_prev")
    variance_t, variance_prev = positive(sigma_t, "sigma_t") ** 2, as_level(sigma_prev) ** 2
    on_x0 = as_level(alpha_prev) * (variance_t - ratio**2 * variance_prev) / variance_t
    on_x_t = ratio * variance_prev / variance_t
    if gap_prev is not None:
        error = error + gap_prev / per_sample(positive(on_x0, "the step"), error)
    if gap_t is not None:
        error = error - per_sample(on_x_t / positive(on_x0, "the step"), error) * gap_t
    return error


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
    alpha: Tensor,
    sigma: Tensor,
    predict: Predict,
    shift: Shift | None,
    corrected: bool = True,
) -> Tensor:
    """One term of the sum: the KL of the posterior to the model's step, at ``x_t`` drawn with ``eps``.

    Args:
        x0: (B, ...) data.
        eps: standard normal, as ``x0``.
        level: (B,) int64, in 2..T.
        alpha, sigma: (T + 1,) of the schedule, ascending in noise, level 0 clean; float64, because a step of
            many is the difference of two nearly equal levels.
        predict: the network.
        shift: the adapter; None is the ordinary diffusion.
        corrected: count the shifts' share, see `corrected_error`. Without it the terms are the paper's Eq 6
            weighted as the bound weights it, and no bound unless the shift is zero.

    Returns:
        (B,) nats per dimension, float64, >= 0.
    """
    at, before = level.cpu(), level.cpu() - 1
    pair = (alpha.cpu()[at], sigma.cpu()[at], alpha.cpu()[before], sigma.cpu()[before])
    b = None if shift is None else shift(x0, level)
    guess = predict(marginal(x0, eps, pair[0], pair[1], b), level)
    error = x0 - guess
    if shift is not None and corrected:
        gap_t, gap_prev = (shift(x0, one) - shift(guess, one) for one in (level, level - 1))
        error = corrected_error(error, gap_t, gap_prev, *pair)
    return 0.5 * snr_step(*pair).to(error.device) * _mean_over_dims(error.double() ** 2)


def _spread(value: Level, like: Tensor, name: str) -> Tensor:
    """A positive level, or a tensor that already has ``like``'s dimensions, ready to divide ``like``."""
    value = positive(value, name)
    return value if value.ndim == like.ndim > 1 else per_sample(value, like)


def _mean_over_dims(x: Tensor) -> Tensor:
    """(B, ...) to (B,)."""
    return x.flatten(1).mean(1)
