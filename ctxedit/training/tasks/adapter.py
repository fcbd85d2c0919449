"""The text-to-image context adapter: ``ContextAdapter`` for the trained denoiser (ContextDiff, Eq. 6)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ctxedit.config import AdapterConfig, Config, merge, validated
from ctxedit.diffusion.parameterization import Weighting, loss_weight
from ctxedit.errors import ConfigError
from ctxedit.models.adapter import ContextAdapter
from ctxedit.training.components import Components, load_network
from ctxedit.training.data import Data, DataConfig, Scenes
from ctxedit.training.fp16 import save_fp16
from ctxedit.training.memory import build_network
from ctxedit.training.settings import Share
from ctxedit.training.tasks.base import Task, load_weights, register
from ctxedit.training.tasks.encoders import Encoders, noise_scheduler, write_layout
from ctxedit.training.tasks.shifted import denoise


@register("adapter")
class AdapterTask(Task):
    """λ_t ‖x̂_0 − x_0‖², minimised over the adapter and optionally parts of the denoiser.

    The adapter sees the clean latents and the caption, the denoiser the shifted and noised latents, as during
    sampling; the adapter's gradient flows through x_t. Every image is treated as a clip of one frame. The
    figure ``shift`` is ‖b_t‖ / ‖√ᾱ_t x_0‖: when it grows, the adapter writes x_0 into x_t instead of learning
    the context. With ``adapter.enabled = false`` there is no shift, and the denoiser is trained alone on the
    same images, timesteps and noise.

    Args:
        components: with the denoiser's pipeline.
        data: images and captions.
        adapter: settings, as in a preset's ``[adapter]`` table.
        train: names of modules of the denoiser that are trained too, e.g. ``attn2``; empty to freeze it.
        loss_weight: λ_t: ``snr``, ``one`` or ``min_snr``.
        empty: share of captions replaced by the empty one for the denoiser, for classifier-free guidance.

    Raises:
        ConfigError: unknown adapter settings, a name in ``train`` that matches nothing, or nothing to train.
    """

    folder = "adapter"
    requires = ("vae", "text_encoder", "unet")

    def __init__(
        self,
        components: Components,
        data: DataConfig,
        *,
        adapter: Mapping[str, Any],
        train: list[str],
        loss_weight: Weighting = "snr",
        empty: Share = 0.1,
    ) -> None:
        from diffusers import UNet2DConditionModel

        config = adapter_config(adapter)
        if train:  # the export then includes a denoiser, and with these the whole pipeline
            components.install("vae", "text_encoder", "tokenizer")
        self.data = Data(data, Scenes)
        self.weighting, self.empty = loss_weight, empty
        self.encoders = Encoders(components)
        unet = components.find("unet")
        self.unet: Any = load_network(UNet2DConditionModel, unet, torch_dtype=torch.float32)
        self.unet.requires_grad_(False)
        self.scheduler = noise_scheduler()
        if not config.enabled and not train:
            raise ConfigError(
                "task.adapter.enabled = false and task.train = []: there is nothing to train",
                "enable the adapter, or name modules of the denoiser in task.train",
            )
        channels = int(self.unet.config.in_channels)
        self.adapter = build_network(lambda: ContextAdapter(config, channels, self.encoders.width))
        self.adapter.requires_grad_(config.enabled)
        trained: dict[str, nn.Module] = {"adapter": self.adapter}
        if train:
            unfreeze(self.unet, train)
            trained["unet"] = self.unet
        self.model: Any = nn.ModuleDict(trained)

    def loss(self, model: Any, batch: Any, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        device, n = batch["image"].device, len(batch["caption"])
        self.encoders.to(device)
        self.unet.to(device)
        x0 = self.encoders.latents(batch["image"])
        context, empty = self.encoders.embed(batch["caption"], device), self.encoders.embed([""], device)
        drop = (torch.rand(n, generator=generator) < self.empty).to(device)
        embeddings = torch.where(drop[:, None, None], empty, context)
        t = torch.randint(0, len(self.scheduler.alphas_cumprod), (n,), generator=generator)
        adapter = model["adapter"]
        shifting = adapter if adapter.config.enabled else None
        out = denoise(self.unet, shifting, self.scheduler, x0, context, embeddings, t, generator)
        errors = out.squares.flatten(1).mean(1)
        loss = (loss_weight(out.alpha, out.sigma, self.weighting).to(errors) * errors).mean()
        return loss, {"loss": loss.item(), "x0_error": errors.mean().item(), "shift": out.shift}

    def export(self, model: Any, folder: Path) -> None:
        """Write ``adapter.safetensors``, as in a run folder; a trained denoiser as ``unet/`` next to it."""
        folder.mkdir(parents=True, exist_ok=True)
        model["adapter"].save(folder / "adapter.safetensors", trained="text to image")
        if "unet" in model:
            save_fp16(model["unet"], folder.parent / "unet")
            write_layout(folder.parent, self.data.captions, bool(self.data.config.compositions))

    def load_weights(self, folder: Path) -> None:
        load_weights(self.model["adapter"], folder)


def unfreeze(unet: nn.Module, names: list[str]) -> None:
    """Let the denoiser's modules of these names be trained; raises ConfigError for one that it lacks."""
    for name in names:
        found = [p for key, p in unet.named_parameters() if f".{name}." in f".{key}."]
        if not found:
            raise ConfigError(
                f"task.train: {name!r} matches nothing in the UNet", "use e.g. attn1, attn2 or to_q"
            )
        for parameter in found:
            parameter.requires_grad_(True)


def adapter_config(table: Mapping[str, Any]) -> AdapterConfig:
    """A recipe's ``[task.adapter]``; raises ConfigError for settings that cannot be trained on images."""
    config = merge(AdapterConfig(), table, "task.adapter.")
    if config.image != "latent":
        raise ConfigError('task.adapter.image: only "latent" can be trained on images')
    try:
        validated(replace(Config(), adapter=config))
    except ConfigError as error:
        raise ConfigError(f"task.{error.message}", error.hint) from error
    return config
