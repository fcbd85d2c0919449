"""The geometry and noise schedules of the pixel-space super-resolution model, shared by training and use.

The network is a stock ``UNet2DConditionModel`` at the *low* resolution: each 4×4 block of high-resolution
pixels is folded into 48 channels, so that the convolutions run at 64×64 for a 256×256 picture (the efficient
U-Net of Saharia et al. 2022, with the first two downsamplings replaced by the fold). It sees the noisy
residual and the low-resolution picture, and predicts the clean residual over bicubic interpolation.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

#: Side of the high resolution over that of the low one.
SCALE = 4
#: Channels of the folded residual, and of :func:`network_input`.
FOLDED = 3 * SCALE**2
IN_CHANNELS = 2 * FOLDED + 3
#: RMS of the residual in drawn scenes, for pixels in [−1, 1]; the network predicts multiples of it.
RESIDUAL = 0.08
#: Standard deviation of the diffusion's noise, in the same unit. The low resolution all but determines the
#: result: as in ResShift (Yue et al. 2023), less noise than signal lets few steps do.
NOISE = 0.25


def fold(picture: Tensor) -> Tensor:
    """High-resolution (N, 3, 4h, 4w) to (N, 48, h, w)."""
    return F.pixel_unshuffle(picture, SCALE)


def unfold(folded: Tensor) -> Tensor:
    """The inverse of :func:`fold`."""
    return F.pixel_shuffle(folded, SCALE)


def bicubic(low: Tensor) -> Tensor:
    """Bicubic interpolation of (N, 3, h, w) to (N, 3, 4h, 4w), in float32; it may overshoot [−1, 1]."""
    return F.interpolate(low.float(), scale_factor=SCALE, mode="bicubic", align_corners=False)


def network_input(noisy: Tensor, low: Tensor, alpha_bar: Tensor) -> Tensor:
    """What the network is shown: (N, 99, h, w).

    The noisy residual is weighted by its share of signal: pure noise says nothing, and unweighted it drowns
    the low resolution, which is all that the first step has to go by (trained so, 4600 pictures taught a
    network nothing). The low resolution comes as RGB and as
    the folded difference of its bicubic interpolation from it, which is of the residual's magnitude.

    Args:
        noisy: (N, 48, h, w), the diffused tensor: the folded residual over ``RESIDUAL · NOISE``, noised.
        low: (N, 3, h, w) in [−1, 1].
        alpha_bar: the level's ᾱ, (N,) or a scalar.
    """
    detail = fold(bicubic(low) - F.interpolate(low.float(), scale_factor=SCALE)) / RESIDUAL
    signal = alpha_bar.to(noisy).sqrt().reshape(-1, 1, 1, 1) * NOISE
    return torch.cat([noisy * signal, low.to(noisy), detail.to(noisy)], 1)


def residual_scheduler() -> Any:
    """A ``DDIMScheduler`` that predicts the clean residual.

    The cosine schedule starts from pure noise, and trailing steps include its last timestep (Lin et al.
    2024): with four steps both matter.
    """
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
        prediction_type="sample",
    )


def augmentation_scheduler() -> Any:
    """The ``DDPMScheduler`` of the noise augmentation, as in Stable Diffusion's upscaler."""
    from diffusers import DDPMScheduler

    return DDPMScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="scaled_linear")
