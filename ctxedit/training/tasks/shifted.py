"""The denoiser on shifted and noised latents, as used in training (ContextDiff, Eq. 6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ctxedit.diffusion.broadcast import per_sample
from ctxedit.diffusion.forward import marginal
from ctxedit.diffusion.parameterization import to_x0
from ctxedit.models.adapter import ContextAdapter
from ctxedit.training.noise import noise_like


@dataclass(frozen=True)
class Denoised:
    """The denoiser's prediction for a batch.

    Attributes:
        squares: (N, C, h, w), the squared errors of x̂_0.
        alpha, sigma: (N,), the levels.
        shift: ‖b_t‖ / ‖√ᾱ_t x_0‖.
    """

    squares: Tensor
    alpha: Tensor
    sigma: Tensor
    shift: float


def denoise(
    unet: Any,
    adapter: ContextAdapter | None,
    scheduler: Any,
    x0: Tensor,
    context: Tensor,
    embeddings: Tensor,
    t: Tensor,
    generator: torch.Generator,
) -> Denoised:
    """Shift, noise and denoise clean latents; each is a clip of one frame.

    Args:
        unet: the denoiser.
        adapter: sees the clean latents and ``context``, as during sampling; None shifts nothing.
        scheduler: with the noise levels and the prediction type.
        x0: (N, C, h, w).
        context, embeddings: (N, L, D), the tokens for the adapter and for the denoiser.
        t: (N,) timesteps, on the CPU.
        generator: of the noise.
    """
    alpha_bar = scheduler.alphas_cumprod[t].to(x0.device)
    a, s, t = alpha_bar.sqrt(), (1 - alpha_bar).sqrt(), t.to(x0.device)
    noise = noise_like(x0, generator)
    b = torch.zeros_like(x0)
    if adapter is not None:
        b = adapter.shift(adapter(x0, context, t, frames=1), x0, a, s)
    x = marginal(x0, noise, a, s, b)
    kind = scheduler.config.prediction_type
    predicted = to_x0(unet(x, t, embeddings).sample.float(), x, a, s, kind)
    share = float(b.detach().norm() / (per_sample(a, x0) * x0).norm())
    return Denoised((predicted - x0) ** 2, a, s, share)
