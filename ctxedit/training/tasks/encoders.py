"""The encoders of a latent diffusion model, and the rest of its pipeline folder."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ctxedit.model_names import VOCABULARY
from ctxedit.synthetic import composition_captions, scenes
from ctxedit.training.components import Components, load_network, load_tokenizer
from ctxedit.training.tokenizer import extend, extend_embeddings


class Encoders:
    """Autoencoder, tokenizer and text encoder of a pipeline, in float32 and frozen.

    A task may set its text encoder's parameters to require a gradient.
    """

    def __init__(self, components: Components) -> None:
        from diffusers import AutoencoderKL
        from transformers import CLIPTextModel

        vae, text = components.find("vae"), components.find("text_encoder")
        self.vae: Any = load_network(AutoencoderKL, vae, torch_dtype=torch.float32)
        self.text: Any = load_network(CLIPTextModel, text, dtype=torch.float32)
        self.tokenizer = load_tokenizer(components.find("tokenizer"))
        for network in (self.vae, self.text):
            network.eval().requires_grad_(False)

    def to(self, device: torch.device) -> None:
        """Move both networks."""
        self.vae.to(device)
        self.text.to(device)

    @property
    def downsampling(self) -> int:
        """Pixels per latent position and side."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def width(self) -> int:
        """Channels of the text embeddings."""
        return int(self.text.config.hidden_size)

    @torch.no_grad()
    def latents(self, images: Tensor) -> Tensor:
        """Scaled latent means (N, 4, h, w) of RGB images (N, 3, H, W) in [−1, 1]."""
        latents: Tensor = self.vae.encode(images).latent_dist.mean * self.vae.config.scaling_factor
        return latents

    def embed(self, texts: list[str], device: torch.device) -> Tensor:
        """Text embeddings (N, L, C)."""
        tokens = self.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
        embeddings: Tensor = self.text(tokens.input_ids.to(device)).last_hidden_state
        return embeddings

    @torch.no_grad()
    def add_words(self, texts: Iterable[str]) -> None:
        """Give each word of ``texts`` a token, initialised with the mean of the tokens it was split into."""
        self.tokenizer, added = extend(self.tokenizer, texts)
        if added:
            table = extend_embeddings(self.text.get_input_embeddings().weight, added)
            self.text.resize_token_embeddings(len(table), mean_resizing=False)
            self.text.get_input_embeddings().weight.copy_(table)


def save_text_encoder(text: Any, tokenizer: Any, folder: Path) -> None:
    """Save ``text_encoder``, in fp16, and ``tokenizer`` into a pipeline's folder."""
    half = type(text)(text.config)
    half.load_state_dict(text.state_dict())
    half.half().save_pretrained(folder / "text_encoder")
    tokenizer.save_pretrained(folder / "tokenizer")


def write_layout(folder: Path, captions: list[str] | None = None, compositions: bool = False) -> None:
    """Write scheduler, ``model_index.json`` and vocabulary of a Stable Diffusion folder.

    Args:
        folder: of the pipeline.
        captions: what the denoiser was trained on; None for drawn scenes.
        compositions: whether compositions were among them.
    """
    noise_scheduler().save_pretrained(folder / "scheduler")
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
    """Every word that occurs in captions of drawn scenes."""
    rng = np.random.default_rng(0)
    return _words(scenes.caption(scenes.draw_scene(rng), rng) for _ in range(20_000))


def _words(texts: Iterable[str]) -> set[str]:
    return {word for text in texts for word in re.findall(r"\w+", text.lower())}


def noise_scheduler() -> Any:
    """Stable Diffusion's noise schedule as a ``DDIMScheduler``, with velocity prediction."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
    )
