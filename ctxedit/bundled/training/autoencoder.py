"""The autoencoder: ``AutoencoderKL``, 64×64×3 pixels to 16×16×4 latents; and its decoder alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.utils.data import Dataset

from ctxedit.bundled.training.data import Data, DataConfig, Scenes
from ctxedit.bundled.training.half import save_half
from ctxedit.bundled.training.noise import noise_like
from ctxedit.metrics.formulas import ssim_map


class _OfPictures:
    """What both learn from: pictures alone."""

    data: Data

    def dataset(self, seed: int) -> Dataset[Any]:
        return self.data.dataset(seed)


class AutoencoderTask(_OfPictures):
    """Squared error on pixels and on their differences, and a small KL.

    The differences count because edges are few pixels but most of what the eye sees of a sprite.
    """

    def __init__(
        self, channels: list[int], layers: int, kl: float, edges: float, data: DataConfig | None = None
    ) -> None:
        self.data = Data(data or DataConfig(), Scenes, captions=False)
        self.kl, self.edges, self.size = kl, edges, self.data.config.size
        self.model: nn.Module = AutoencoderKL(
            in_channels=3,
            out_channels=3,
            latent_channels=4,
            down_block_types=["DownEncoderBlock2D"] * len(channels),
            up_block_types=["UpDecoderBlock2D"] * len(channels),
            block_out_channels=channels,
            layers_per_block=layers,
            norm_num_groups=8,
            sample_size=self.size,
            mid_block_add_attention=False,
            scaling_factor=1.0,
        )

    def loss(
        self, model: nn.Module, batch: Any, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        image = batch["image"]
        moments = model.quant_conv(model.encoder(image))
        mean, logvar = moments.chunk(2, dim=1)
        logvar = logvar.clamp(-20, 10)
        latent = mean + torch.exp(0.5 * logvar) * noise_like(mean, generator)
        out = model.decoder(model.post_quant_conv(latent))
        pixels = F.mse_loss(out, image)
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
        loss = pixels + self.edges * _edges(out, image) + self.kl * kl
        return loss, {"loss": loss.item(), "psnr": _decibels(pixels), "kl": kl.item()}

    @torch.no_grad()
    def export(self, model: nn.Module, folder: Path) -> None:
        """Save in fp16 with the scaling factor that gives the latents unit variance."""
        seen = self.dataset(1)
        images = torch.stack([seen[i]["image"] for i in range(128)])
        latents = torch.cat([model.encode(part).latent_dist.mean for part in images.split(32)])
        save_half(model, folder, scaling_factor=1 / float(latents.std()))


class DecoderTask(_OfPictures):
    """The decoder of a finished autoencoder, further: squared error on pixels and edges, and 1 − SSIM.

    The encoder stays as it is, bit for bit, and with it the latents: a denoiser that was trained on them
    stays good.

    Args:
        autoencoder: folder of the autoencoder.
        edges: weight of the squared error on the pixels' differences.
        ssim: weight of 1 − SSIM (Wang et al. 2004), with pixels in [0, 1].
        data: pictures; captions are not needed.
    """

    def __init__(self, autoencoder: Path, edges: float, ssim: float, data: DataConfig | None = None) -> None:
        self.data = Data(data or DataConfig(), Scenes, captions=False)
        self.edges, self.ssim = edges, ssim
        self.model: nn.Module = AutoencoderKL.from_pretrained(autoencoder, torch_dtype=torch.float32)
        self.model.encoder.requires_grad_(False)
        self.model.quant_conv.requires_grad_(False)

    def loss(
        self, model: nn.Module, batch: Any, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        image = batch["image"]
        with torch.no_grad():
            latent = model.encode(image).latent_dist
            latent = latent.mean + latent.std * noise_like(latent.mean, generator)
        out = model.decoder(model.post_quant_conv(latent)).float()
        pixels = F.mse_loss(out, image)
        # Variances are differences of nearly equal sums: in bf16, or TF32, little would be left of them.
        with torch.autocast(image.device.type, enabled=False):
            similar = ssim_map(out.double() / 2 + 0.5, image.double() / 2 + 0.5).mean().float()
        loss = pixels + self.edges * _edges(out, image) + self.ssim * (1 - similar)
        return loss, {"loss": loss.item(), "psnr": _decibels(pixels), "ssim": similar.item()}

    def export(self, model: nn.Module, folder: Path) -> None:
        save_half(model, folder)


def _edges(out: Tensor, image: Tensor) -> Tensor:
    """Squared error on the differences of neighbours, down and across."""
    return F.mse_loss(out.diff(dim=2), image.diff(dim=2)) + F.mse_loss(out.diff(dim=3), image.diff(dim=3))


def _decibels(error: Tensor) -> float:
    """PSNR of a mean squared error of pixels in [−1, 1]."""
    return 10 * torch.log10(4 / error).item()
