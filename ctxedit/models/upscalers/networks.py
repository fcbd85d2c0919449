"""The two kinds of upscalers: ctxedit's own in pixel space, and Stable Diffusion's x4 upscaler."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ctxedit.models.upscalers import pixels
from ctxedit.models.upscalers.base import Upscaler, UpscaleSampling


class PixelUpscaler(Upscaler):
    """The model that ``ctxedit train upscaler`` makes: denoises the folded residual over bicubic."""

    #: One step keeps most and does not flicker; see the table in ``bundled/README.md``.
    defaults: ClassVar[UpscaleSampling] = UpscaleSampling(steps=1, noise_level=0, guidance_scale=1.0)
    unit: ClassVar[float] = 1 / pixels.NOISE

    @property
    def channels(self) -> int:
        return pixels.FOLDED

    def network_input(self, noisy: Tensor, timestep: Tensor, low: Tensor) -> Tensor:
        alpha_bar = self.scheduler.alphas_cumprod[int(timestep)]
        return pixels.network_input(noisy, low, alpha_bar).to(self.dtype)

    def decode(self, clean: Tensor, low: Tensor) -> Tensor:
        return pixels.bicubic(low) + pixels.unfold(clean.float()) * (pixels.RESIDUAL * pixels.NOISE)


class LatentUpscaler(Upscaler):
    """``StableDiffusionUpscalePipeline``: denoises latents of the result, at the low resolution.

    The defaults are that pipeline's, with fewer steps.
    """

    defaults: ClassVar[UpscaleSampling] = UpscaleSampling(steps=30, noise_level=20, guidance_scale=9.0)

    def __init__(self, name: str, loaded: dict[str, Any], device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(name, loaded, device, dtype)
        self.vae = loaded["vae"]
        if dtype == torch.float16 and self.vae.config.force_upcast:
            self.vae = self.vae.float()  # it overflows in half precision

    @property
    def channels(self) -> int:
        return int(self.vae.config.latent_channels)

    def network_input(self, noisy: Tensor, timestep: Tensor, low: Tensor) -> Tensor:
        scaled = self.scheduler.scale_model_input(noisy, timestep)
        return torch.cat([scaled.to(self.dtype), low], 1)

    def decode(self, clean: Tensor, low: Tensor) -> Tensor:
        latents = (clean / self.vae.config.scaling_factor).to(self.vae.dtype)
        return torch.cat([self.vae.decode(one).sample.float() for one in latents.split(1)])
