"""The autoencoder: ``AutoencoderKL``, 64×64×3 pixels to 16×16×4 latents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.utils.data import Dataset

from ctxedit.bundled.training.data import Data, DataConfig, Scenes
from ctxedit.bundled.training.noise import noise_like


class AutoencoderTask:
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

    def dataset(self, seed: int) -> Dataset[Any]:
        return self.data.dataset(seed)

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
        edges = F.mse_loss(out.diff(dim=2), image.diff(dim=2)) + F.mse_loss(
            out.diff(dim=3), image.diff(dim=3)
        )
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
        loss = pixels + self.edges * edges + self.kl * kl
        return loss, {"loss": loss.item(), "psnr": 10 * torch.log10(4 / pixels).item(), "kl": kl.item()}

    @torch.no_grad()
    def export(self, model: nn.Module, folder: Path) -> None:
        """Save in fp16 with the scaling factor that gives the latents unit variance."""
        seen = self.dataset(1)
        images = torch.stack([seen[i]["image"] for i in range(128)])
        latents = torch.cat([model.encode(part).latent_dist.mean for part in images.split(32)])
        half = AutoencoderKL.from_config({**model.config, "scaling_factor": 1 / float(latents.std())})
        half.load_state_dict(model.state_dict())
        half.half().save_pretrained(folder)
