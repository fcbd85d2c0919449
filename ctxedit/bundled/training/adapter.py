"""The text-to-image context adapter: ``ContextAdapter`` on the denoiser, trained on a data set (Eq 6)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import CLIPTextModel, CLIPTokenizer

from ctxedit.bundled.training.data import Data, DataConfig, Scenes
from ctxedit.bundled.training.denoiser import scheduler, write_layout
from ctxedit.bundled.training.half import save_half
from ctxedit.bundled.training.noise import noise_like
from ctxedit.config import AdapterConfig, merge
from ctxedit.diffusion.broadcast import per_sample
from ctxedit.diffusion.forward import marginal
from ctxedit.diffusion.parameterization import Weighting, loss_weight, to_x0
from ctxedit.errors import ConfigError
from ctxedit.models.adapter import ContextAdapter


class AdapterTask:
    """λ_t ‖x̂_0 − x_0‖² over adapter and, where ``train`` names some, parameters of the denoiser.

    With ``adapter.enabled = false`` the adapter stays as it begins, changing nothing, and the denoiser is
    trained alone: the ordinary diffusion on the same pictures, times and noise.

    The adapter sees the clean latent and the caption, the denoiser the shifted and noised latent, as in
    sampling; the gradient reaches the adapter through x_t. Every picture is a clip of one frame. ``shift`` of
    the metrics is ‖b_t‖ / ‖√ᾱ_t x_0‖, the trap of the method measured.

    Args:
        unet, autoencoder, text_encoder, tokenizer: folders of the denoiser's pipeline.
        adapter: settings, as a preset's ``[adapter]`` table.
        train: names in the UNet that are trained too, e.g. ``attn2``; none leaves it frozen.
        loss_weight: λ_t: ``snr``, ``one`` or ``min_snr``.
        empty: share of captions that the denoiser does not get, for guidance.
        data: pictures and captions.

    Raises:
        ConfigError: settings of the adapter that are unknown, or a name that matches nothing.
    """

    def __init__(
        self,
        unet: Path,
        autoencoder: Path,
        text_encoder: Path,
        tokenizer: Path,
        adapter: Mapping[str, Any],
        train: list[str],
        loss_weight: Weighting = "snr",
        empty: float = 0.1,
        data: DataConfig | None = None,
    ) -> None:
        self.data = Data(data or DataConfig(), Scenes)
        self.weighting, self.empty = loss_weight, empty
        self.vae = AutoencoderKL.from_pretrained(autoencoder, torch_dtype=torch.float32)
        self.vae.eval().requires_grad_(False)
        self.text = CLIPTextModel.from_pretrained(text_encoder, dtype=torch.float32)
        self.text.eval().requires_grad_(False)
        self.tokenizer = CLIPTokenizer.from_pretrained(tokenizer)
        self.unet = UNet2DConditionModel.from_pretrained(unet, torch_dtype=torch.float32)
        self.unet.requires_grad_(False)
        self.noise = scheduler()
        config = merge(AdapterConfig(), adapter, "task.adapter.")
        if config.image != "latent":
            raise ConfigError('task.adapter.image: only "latent" is trained on pictures')
        if not config.enabled and not train:
            raise ConfigError("task.adapter.enabled = false and task.train = []", "then nothing is trained")
        self.adapter = ContextAdapter(
            config, int(self.unet.config.in_channels), int(self.text.config.hidden_size)
        ).requires_grad_(config.enabled)
        moving = {"adapter": self.adapter}
        if train:
            _thaw(self.unet, train)
            moving["unet"] = self.unet
        self.model: Any = nn.ModuleDict(moving)

    def dataset(self, seed: int) -> Dataset[Any]:
        return self.data.dataset(seed)

    def loss(self, model: Any, batch: Any, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        device, n = batch["image"].device, len(batch["caption"])
        for network in (self.vae, self.text, self.unet):
            network.to(device)
        with torch.no_grad():
            x0 = self.vae.encode(batch["image"]).latent_dist.mean * self.vae.config.scaling_factor
            context, nothing = self._embed(batch["caption"], device), self._embed([""], device)
        drop = (torch.rand(n, generator=generator) < self.empty).to(device)
        words = torch.where(drop[:, None, None], nothing, context)
        t = torch.randint(0, len(self.noise.alphas_cumprod), (n,), generator=generator)
        bar = self.noise.alphas_cumprod[t].to(device)
        a, s, t = bar.sqrt(), (1 - bar).sqrt(), t.to(device)
        noise = noise_like(x0, generator)
        adapter = model["adapter"]
        b = torch.zeros_like(x0)
        if adapter.config.enabled:
            b = adapter.shift(adapter(x0, context, t, frames=1), x0, a, s)
        x = marginal(x0, noise, a, s, b)
        kind = self.noise.config.prediction_type
        guess = to_x0(self.unet(x, t, words).sample.float(), x, a, s, kind)
        errors = ((guess - x0) ** 2).flatten(1).mean(1)
        loss = (loss_weight(a, s, self.weighting).to(errors) * errors).mean()
        share = float(b.detach().norm() / (per_sample(a, x0) * x0).norm())
        return loss, {"loss": loss.item(), "x0_error": errors.mean().item(), "shift": share}

    def _embed(self, texts: list[str], device: torch.device) -> Tensor:
        tokens = self.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
        return self.text(tokens.input_ids.to(device)).last_hidden_state

    def export(self, model: Any, folder: Path) -> None:
        """``adapter.safetensors``, as a run's; a denoiser that moved too lies beside it, in ``unet/``."""
        folder.mkdir(parents=True, exist_ok=True)
        model["adapter"].save(folder / "adapter.safetensors", trained="text to image")
        if "unet" in model:
            save_half(model["unet"], folder.parent / "unet")
            write_layout(folder.parent, self.data.captions, bool(self.data.config.compositions))


def _thaw(unet: nn.Module, names: list[str]) -> None:
    for name in names:
        found = [p for key, p in unet.named_parameters() if f".{name}." in f".{key}."]
        if not found:
            raise ConfigError(f"task.train: {name!r} matches nothing in the UNet", "e.g. attn1, attn2, to_q")
        for parameter in found:
            parameter.requires_grad_(True)
