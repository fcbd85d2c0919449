"""The geometry and noise schedules of the pixel-space super-resolution model, shared by training and use.

The network is a stock ``UNet2DConditionModel`` at the *low* resolution: each 4×4 block of high-resolution
pixels is folded into 48 channels, so that the convolutions run at 64×64 for a 256×256 picture (the efficient
U-Net of Saharia et al. 2022, with the first two downsamplings replaced by the fold). It sees the noisy
residual and the low-resolution picture, and predicts the clean residual over bicubic interpolation.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

#: Side of the high resolution over that of the low one.
SCALE = 4
#: Channels of the folded residual, and of the network's input: the residual and the low-resolution RGB.
FOLDED = 3 * SCALE**2
IN_CHANNELS = FOLDED + 3
#: RMS of the residual in drawn scenes, for pixels in [−1, 1]; the residual is divided by it.
RESIDUAL = 0.08


def fold(picture: Tensor) -> Tensor:
    """High-resolution (N, 3, 4h, 4w) to (N, 48, h, w)."""
    return F.pixel_unshuffle(picture, SCALE)


def unfold(folded: Tensor) -> Tensor:
    """The inverse of :func:`fold`."""
    return F.pixel_shuffle(folded, SCALE)


def bicubic(low: Tensor) -> Tensor:
    """Bicubic interpolation of (N, 3, h, w) to (N, 3, 4h, 4w), in float32; it may overshoot [−1, 1]."""
    return F.interpolate(low.float(), scale_factor=SCALE, mode="bicubic", align_corners=False)


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
