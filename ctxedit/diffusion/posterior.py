"""One step back: the posterior of the contextualized forward process, and ancestral sampling with it."""

from __future__ import annotations

from torch import Tensor

from ctxedit.diffusion.broadcast import Level, as_level, per_sample, positive


def posterior(
    x_t: Tensor,
    x0: Tensor,
    alpha_t: Level,
    sigma_t: Level,
    alpha_prev: Level,
    sigma_prev: Level,
    shift_t: Tensor | None = None,
    shift_prev: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``q(x_{t-1} | x_t, x_0, c)`` by Bayes' rule (Eq 3, and Eq 7 with the prediction for ``x_0``).

    With ``alpha = alpha_bar_t / alpha_bar_{t-1}`` and ``beta = 1 - alpha`` the mean is

        sqrt(alpha_bar_{t-1}) beta / (1 - alpha_bar_t) x_0
        + sqrt(alpha) (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t) (x_t - b_t) + b_{t-1}

    The second coefficient has the root of the *step's* alpha; the paper prints the cumulative one, which
    Bayes' rule does not give. Written in alpha and sigma, ``beta`` is ``s_t^2 - (a_t / a_{t-1})^2
    s_{t-1}^2``, which holds for a flow model too.

    Args:
        x_t: (B, ...) latents at level t.
        x0: (B, ...) clean latents, or their prediction.
        alpha_t, sigma_t: level t, sigma > 0; float, 0-d or (B,).
        alpha_prev, sigma_prev: a less noisy level, alpha > 0; clean data (1, 0) is allowed.
        shift_t, shift_prev: ``b_t`` and ``b_{t-1}``, as ``x_t``; None is zero.

    Returns:
        mean, as ``x_t``; variance, 0-d or (B, 1, ..., 1), in [0, 1], zero where the previous level is clean.

    Raises:
        ValueError: at zero sigma or zero previous alpha, or if the previous level is the noisier one.
    """
    ratio = as_level(alpha_t) / positive(alpha_prev, "alpha_prev")
    variance_t, variance_prev = positive(sigma_t, "sigma_t") ** 2, as_level(sigma_prev) ** 2
    if bool((variance_prev > variance_t).any()):
        raise ValueError("the previous level is noisier than level t")
    beta = (variance_t - ratio**2 * variance_prev).clamp(min=0)
    on_x0 = as_level(alpha_prev) * beta / variance_t
    on_x_t = ratio * variance_prev / variance_t
    y_t = x_t if shift_t is None else x_t - shift_t
    mean = per_sample(on_x0, x_t) * x0 + per_sample(on_x_t, x_t) * y_t
    variance = per_sample(beta * variance_prev / variance_t, x_t)
    return mean if shift_prev is None else mean + shift_prev, variance


def ancestral(
    x_t: Tensor,
    x0: Tensor,
    alpha_t: Level,
    sigma_t: Level,
    alpha_prev: Level,
    sigma_prev: Level,
    shift_t: Tensor | None = None,
    shift_prev: Tensor | None = None,
    *,
    z: Tensor,
) -> Tensor:
    """Draw ``x_{t-1}`` from `posterior` (Eq 7): ``mean + sqrt(variance) z`` with ``z`` standard normal."""
    mean, variance = posterior(
        x_t, x0, alpha_t, sigma_t, alpha_prev, sigma_prev, shift_t=shift_t, shift_prev=shift_prev
    )
    return mean + variance.sqrt() * z
