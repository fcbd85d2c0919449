"""The autoencoder's decoder, trained further while the latents stay the same."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ctxedit.metrics.formulas import ssim_map
from ctxedit.training.components import Components, load_network
from ctxedit.training.data import Data, DataConfig, Scenes
from ctxedit.training.fp16 import save_fp16
from ctxedit.training.noise import noise_like
from ctxedit.training.settings import LossWeight
from ctxedit.training.tasks.autoencoder import AutoencoderTask, decibels, edge_error
from ctxedit.training.tasks.base import Task, register

if TYPE_CHECKING:
    from ctxedit.training.checks.base import Check


@register("decoder")
class DecoderTask(Task):
    """Squared error of pixels and edges, and 1 − SSIM, over the decoder of a trained autoencoder.

    The encoder is frozen. A denoiser that was trained on its latents therefore stays valid.

    Args:
        components: with the autoencoder as ``vae``.
        data: images; captions are not needed.
        edges: weight of the squared error of the pixel differences.
        ssim: weight of 1 − SSIM (Wang et al. 2004), for pixels in [0, 1].
    """

    folder = "vae"
    continues = "autoencoder"

    def __init__(
        self, components: Components, data: DataConfig, *, edges: LossWeight, ssim: LossWeight
    ) -> None:
        from diffusers import AutoencoderKL

        self.data = Data(data, Scenes, captions=False)
        self.edges, self.ssim = edges, ssim
        vae = components.find("vae")
        self.model: Any = load_network(AutoencoderKL, vae, torch_dtype=torch.float32)
        self.model.encoder.requires_grad_(False)
        self.model.quant_conv.requires_grad_(False)

    def loss(self, model: Any, batch: Any, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        image = batch["image"]
        with torch.no_grad():
            latent = model.encode(image).latent_dist
            latent = latent.mean + latent.std * noise_like(latent.mean, generator)
        out = model.decoder(model.post_quant_conv(latent)).float()
        pixels = F.mse_loss(out, image)
        # SSIM's variances are differences of nearly equal sums: bf16 or TF32 would lose most of their digits.
        with torch.autocast(image.device.type, enabled=False):
            similarity = ssim_map(out.double() / 2 + 0.5, image.double() / 2 + 0.5).mean().float()
        loss = pixels + self.edges * edge_error(out, image) + self.ssim * (1 - similarity)
        return loss, {"loss": loss.item(), "psnr": decibels(pixels), "ssim": similarity.item()}

    def export(self, model: Any, folder: Path) -> None:
        save_fp16(model, folder)

    @classmethod
    def checks(cls) -> tuple[Check, ...]:
        return AutoencoderTask.checks()
