"""The denoiser: ``UNet2DConditionModel`` on the autoencoder's latents and CLIP's words, velocity head."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import Dataset
from transformers import CLIPTextModel, CLIPTokenizer

from ctxedit.bundled.training.data import Data, DataConfig, Scenes
from ctxedit.bundled.training.half import save_half
from ctxedit.bundled.training.noise import noise_like
from ctxedit.bundled.training.tokenizer import extend, lengthen
from ctxedit.bundled.world import composition_captions, scenes
from ctxedit.naming import VOCABULARY


class DenoiserTask:
    """Velocity prediction; a tenth of the captions empty, for guidance.

    Where a scene's mask is known, the loss inside it counts ``focus`` times: an object is a quarter of the
    picture and by far the hardest quarter. Half of the times are drawn uniformly and half around the middle
    of the chain, where the words decide what there is (logit-normal, Esser et al. 2024). Each picture is
    noised ``draws`` times a step, since drawing and encoding it costs as much as a fifth of a pass. min-SNR
    weights were left out: they all but ignore the noisy levels.

    With ``words`` the text encoder is trained along, and its tokenizer learns the words of compositions where
    the data has some; both are saved beside the denoiser. New tokens come after the old ones and begin as the
    mean of those that they replace, so captions without them are embedded as before.
    """

    def __init__(
        self,
        autoencoder: Path,
        text_encoder: Path,
        tokenizer: Path,
        channels: list[int],
        layers: int,
        head: int,
        attend: list[bool],
        empty: float = 0.1,
        focus: float = 1.0,
        draws: int = 1,
        words: bool = False,
        data: DataConfig | None = None,
    ) -> None:
        self.data = Data(data or DataConfig(), Scenes)
        self.empty, self.focus, self.draws, self.words = empty, focus, draws, words
        self.vae = (
            AutoencoderKL.from_pretrained(autoencoder, torch_dtype=torch.float32).eval().requires_grad_(False)
        )
        self.text = (
            CLIPTextModel.from_pretrained(text_encoder, dtype=torch.float32).eval().requires_grad_(False)
        )
        self.tokenizer = CLIPTokenizer.from_pretrained(tokenizer)
        if words and self.data.config.compositions:
            self.tokenizer, new = extend(self.tokenizer, composition_captions.words())
            grow(self.text, new)
        self.scheduler = scheduler()
        down = ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attend]
        up = ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attend)]
        unet: nn.Module = UNet2DConditionModel(
            sample_size=self.data.config.size // 2 ** (len(self.vae.config.block_out_channels) - 1),
            in_channels=4,
            out_channels=4,
            down_block_types=down,
            up_block_types=up,
            block_out_channels=channels,
            layers_per_block=layers,
            norm_num_groups=16,
            cross_attention_dim=self.text.config.hidden_size,
            # In Stable Diffusion 1's configuration this key holds the number of heads.
            attention_head_dim=[c // head for c in channels],
        )
        self.model: Any = unet
        if words:
            self.model = nn.ModuleDict({"unet": unet, "text": self.text.requires_grad_(True)})

    def dataset(self, seed: int) -> Dataset[Any]:
        return self.data.dataset(seed)

    def loss(self, model: Any, batch: Any, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        n, device = len(batch["caption"]), batch["image"].device
        drop = torch.rand(n, generator=generator) < self.empty
        texts = ["" if d else c for d, c in zip(drop.tolist(), batch["caption"], strict=True)]
        self.vae.to(device), self.text.to(device)
        with torch.no_grad():
            latents = self.vae.encode(batch["image"]).latent_dist.mean * self.vae.config.scaling_factor
            tokens = self.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").to(
                device
            )
        unet, text = (model["unet"], model["text"]) if self.words else (model, self.text)
        with torch.set_grad_enabled(self.words):
            words = text(tokens.input_ids).last_hidden_state
        latents, words = latents.repeat(self.draws, 1, 1, 1), words.repeat(self.draws, 1, 1)
        t = times(len(latents), generator).to(device)
        noise = noise_like(latents, generator)
        noisy = self.scheduler.add_noise(latents, noise, t)
        with _attention(device):
            guess = unet(noisy, t, words).sample
        error = (guess - self.scheduler.get_velocity(latents, noise, t)) ** 2
        weight = self._weight(batch.get("mask"), latents)
        loss = (weight * error).mean()
        return loss, {"loss": loss.item(), "plain": error.mean().item()}

    def _weight(self, mask: Tensor | None, latents: Tensor) -> Tensor:
        """Loss weights with mean 1, (N, 1, h, w): ``focus`` inside the mask (N, H, W) to 1 outside."""
        if mask is None:
            return torch.ones_like(latents[:, :1])
        inside = F.adaptive_avg_pool2d(mask[:, None], latents.shape[-2:]).repeat(self.draws, 1, 1, 1)
        weight = 1 + (self.focus - 1) * inside
        return weight / weight.mean()

    def export(self, model: Any, folder: Path) -> None:
        save_half(model["unet"] if self.words else model, folder)
        if self.words:
            half = CLIPTextModel(model["text"].config)
            half.load_state_dict(model["text"].state_dict())
            half.half().save_pretrained(folder.parent / "text_encoder")
            self.tokenizer.save_pretrained(folder.parent / "tokenizer")
        write_layout(folder.parent, self.data.captions, bool(self.data.config.compositions))


@torch.no_grad()
def grow(text: Any, new: Mapping[int, list[int]]) -> None:
    """Give a text encoder tokens: each begins as the mean of those it stands for (:func:`extend`)."""
    if not new:
        return
    table = lengthen(text.get_input_embeddings().weight, new)
    text.resize_token_embeddings(len(table), mean_resizing=False)
    text.get_input_embeddings().weight.copy_(table)


def _attention(device: torch.device) -> AbstractContextManager[None]:
    """On a CPU plain products: with so few positions the flash kernel is slower, in bf16 by a fifth."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


def times(n: int, generator: torch.Generator) -> Tensor:
    """Times in [0, 1000): uniform for the first half, logit-normal for the rest."""
    middle = torch.sigmoid(torch.randn(n, generator=generator)) * 1000
    even = torch.rand(n, generator=generator) * 1000
    return torch.where(torch.arange(n) < n // 2, even, middle).long().clamp(0, 999)


def write_layout(folder: Path, captions: list[str] | None = None, compositions: bool = False) -> None:
    """The rest of a diffusers Stable Diffusion folder: scheduler, index; and the words that were taught.

    Those of ``captions``, or of the drawn world, with ``compositions`` those of its harder split too.
    """
    scheduler().save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.35.0",
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    words = world_words() if captions is None else _words(captions)
    if compositions:
        words = words | set(composition_captions.words())
    (folder / VOCABULARY).write_text(json.dumps(sorted(words)) + "\n")


@lru_cache(maxsize=1)
def world_words() -> set[str]:
    """Every word that a caption of the world can hold."""
    rng = np.random.default_rng(0)
    return _words(scenes.caption(scenes.draw_scene(rng), rng) for _ in range(20_000))


def _words(texts: Iterable[str]) -> set[str]:
    return {word for text in texts for word in re.findall(r"\w+", text.lower())}


def scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise levels, with the velocity head's prediction type."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
    )
