"""The autoencoder: ``AutoencoderKL``, 64×64×3 pixels to 16×16×4 latents."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ctxedit.training.components import Components
from ctxedit.training.data import Data, DataConfig, Scenes
from ctxedit.training.fp16 import save_fp16
from ctxedit.training.memory import build_network
from ctxedit.training.noise import noise_like
from ctxedit.training.settings import Channels8, Count, Levels, LossWeight, require
from ctxedit.training.tasks.base import Task, register

if TYPE_CHECKING:
    from ctxedit.training.checks.base import Check


@register("autoencoder")
class AutoencoderTask(Task):
    """Squared error of pixels and of pixel differences, and a small KL term.

    The differences have their own weight: edges are few pixels, but dominate how a sprite looks.

    Args:
        components: none are needed.
        data: images; captions are not needed.
        channels: of each resolution; multiples of 8, for the group norms.
        layers: residual blocks per resolution.
        kl: weight of the KL divergence.
        edges: weight of the squared error of the differences.
    """

    folder = "vae"

    def __init__(
        self,
        components: Components,
        data: DataConfig,
        *,
        channels: Annotated[list[Channels8], Levels],
        layers: Count,
        kl: LossWeight,
        edges: LossWeight,
    ) -> None:
        from diffusers import AutoencoderKL

        halvings = len(channels) - 1
        require(data.size % 2**halvings == 0, "channels", channels, f"fewer: data.size = {data.size}")
        self.data = Data(data, Scenes, captions=False)
        self.kl, self.edges = kl, edges
        self.model: Any = build_network(
            lambda: AutoencoderKL(
                in_channels=3,
                out_channels=3,
                latent_channels=4,
                down_block_types=["DownEncoderBlock2D"] * len(channels),
                up_block_types=["UpDecoderBlock2D"] * len(channels),
                block_out_channels=channels,
                layers_per_block=layers,
                norm_num_groups=8,
                sample_size=data.size,
                mid_block_add_attention=False,
                scaling_factor=1.0,
            )
        )

    def loss(self, model: Any, batch: Any, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        image = batch["image"]
        moments = model.quant_conv(model.encoder(image))
        mean, logvar = moments.chunk(2, dim=1)
        logvar = logvar.clamp(-20, 10)
        latent = mean + torch.exp(0.5 * logvar) * noise_like(mean, generator)
        out = model.decoder(model.post_quant_conv(latent))
        pixels = F.mse_loss(out, image)
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
        loss = pixels + self.edges * edge_error(out, image) + self.kl * kl
        return loss, {"loss": loss.item(), "psnr": decibels(pixels), "kl": kl.item()}

    @torch.no_grad()
    def export(self, model: Any, folder: Path) -> None:
        """Save in fp16, with the scaling factor that gives the latents unit variance."""
        samples = self.dataset(1)
        images = torch.stack([samples[i]["image"] for i in range(128)])
        latents = torch.cat([model.encode(part).latent_dist.mean for part in torch.split(images, 32)])
        save_fp16(model, folder, scaling_factor=1 / float(latents.std()))

    @classmethod
    def checks(cls) -> tuple[Check, ...]:
        from ctxedit.training.checks.autoencoder import CHECK

        return (CHECK,)


def edge_error(out: Tensor, image: Tensor) -> Tensor:
    """Squared error of the differences between vertical and horizontal neighbours."""
    return F.mse_loss(out.diff(dim=2), image.diff(dim=2)) + F.mse_loss(out.diff(dim=3), image.diff(dim=3))


def decibels(error: Tensor) -> float:
    """PSNR for a mean squared error of pixels in [−1, 1]."""
    return 10 * torch.log10(4 / error).item()
