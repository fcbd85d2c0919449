"""What a network's output means, converted to ``x_0``, which the rest of this package uses.

Noise and velocity are the *effective* ones: ``x_t = a x_0 + s eps`` defines ``eps``, the shift's share
included. So no conversion needs ``b_t``, and nothing is circular. Without a shift they are the ordinary
heads.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ctxedit.diffusion.broadcast import Level, as_level, per_sample, positive
from ctxedit.diffusion.forward import effective_noise

Prediction = Literal["epsilon", "v_prediction", "sample", "flow"]
Weighting = Literal["snr", "one", "min_snr"]


def to_x0(output: Tensor, x_t: Tensor, alpha: Level, sigma: Level, kind: Prediction) -> Tensor:
    """The ``x_0`` that a network's output implies (Eq 6's f_theta).

    Args:
        output: the network's output, (B, ...).
        x_t: the latents it saw, as ``output``.
        alpha, sigma: their level; float, 0-d or (B,).
        kind: "epsilon": ``(x_t - s out) / a``; "v_prediction": ``(a x_t - s out) / (a^2 + s^2)``, where the
            denominator is 1 for a variance-preserving schedule; "sample": ``out``; "flow", a flow
            model's velocity ``eps - x_0``: ``(x_t - s out) / (a + s)``, whose denominator is 1 for a = 1 - s.

    Returns:
        x_0, as ``output``.

    Raises:
        ValueError: for "epsilon" at zero alpha, where noise says nothing of ``x_0``.
    """
    if kind == "sample":
        return output
    if kind == "epsilon":
        return (x_t - per_sample(sigma, x_t) * output) / per_sample(positive(alpha, "alpha"), x_t)
    if kind == "v_prediction":
        a, s = as_level(alpha), as_level(sigma)
        power = a**2 + s**2
        return per_sample(a / power, x_t) * x_t - per_sample(s / power, x_t) * output
    if kind == "flow":
        total = as_level(alpha) + as_level(sigma)
        return per_sample(1 / total, x_t) * x_t - per_sample(as_level(sigma) / total, x_t) * output
    raise ValueError(f"no prediction named {kind!r}")


def to_noise(output: Tensor, x_t: Tensor, alpha: Level, sigma: Level, kind: Prediction) -> Tensor:
    """The effective noise that a network's output implies; at zero noise too where the head determines it.

    Args:
        output, x_t, alpha, sigma, kind: as in `to_x0`.

    Returns:
        eps, as ``output``: "epsilon": ``out``; "v_prediction": ``(s x_t + a out) / (a^2 + s^2)``; "flow":
        ``(x_t + a out) / (a + s)``; "sample": ``(x_t - a out) / s``.

    Raises:
        ValueError: for "sample" at zero noise.
    """
    if kind == "epsilon":
        return output
    if kind == "sample":
        return effective_noise(x_t, output, alpha, sigma)
    a, s = as_level(alpha), as_level(sigma)
    if kind == "v_prediction":
        power = a**2 + s**2
        return per_sample(s / power, x_t) * x_t + per_sample(a / power, x_t) * output
    if kind == "flow":
        return per_sample(1 / (a + s), x_t) * x_t + per_sample(a / (a + s), x_t) * output
    raise ValueError(f"no prediction named {kind!r}")


def from_x0(x0: Tensor, x_t: Tensor, alpha: Level, sigma: Level, kind: Prediction) -> Tensor:
    """The output that implies ``x_0``: the inverse of `to_x0`, and a head's training target.

    Args:
        x0, x_t: (B, ...).
        alpha, sigma: the level of ``x_t``, sigma > 0 unless ``kind`` is "sample"; float, 0-d or (B,).
        kind: as in `to_x0`. "v_prediction" is ``a eps - s x_0``, "flow" is ``eps - x_0``.

    Returns:
        The output, as ``x0``.

    Raises:
        ValueError: at zero noise, unless ``kind`` is "sample".
    """
    if kind == "sample":
        return x0
    eps = effective_noise(x_t, x0, alpha, sigma)
    if kind == "epsilon":
        return eps
    if kind == "v_prediction":
        return per_sample(alpha, x_t) * eps - per_sample(sigma, x_t) * x0
    if kind == "flow":
        return eps - x0
    raise ValueError(f"no prediction named {kind!r}")


def loss_weight(alpha: Level, sigma: Level, kind: Weighting = "snr", gamma: float = 5.0) -> Tensor:
    """lambda_t of the loss ``lambda_t |x0_hat - x_0|^2`` (Eq 6).

    Args:
        alpha, sigma: the level, sigma > 0; float, 0-d or (B,).
        kind: "snr": ``(a / s)^2``, which makes the loss the plain noise-prediction loss and is the default
            for a noise backbone; "one": 1, the plain x_0 loss; "min_snr": ``min((a / s)^2, gamma)`` (Hang et
            al., arXiv 2303.09556).
        gamma: the bound of "min_snr", > 0.

    Returns:
        lambda_t >= 0, the level's shape; (B,) weights are for per-sample losses of shape (B,).

    Raises:
        ValueError: at zero noise, unless ``kind`` is "one".
    """
    if kind == "one":
        return torch.ones_like(as_level(alpha))
    if kind not in ("snr", "min_snr"):
        raise ValueError(f"no weighting named {kind!r}")
    snr = (as_level(alpha) / positive(sigma, "sigma")) ** 2
    return snr if kind == "snr" else snr.clamp(max=gamma)
