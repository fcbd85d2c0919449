"""Checkpoints with random weights and the sizes of real ones, only for measuring speed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

#: Widths of UNet, autoencoder and text encoder. ``sd14`` is Stable Diffusion 1.4's own configuration.
SIZES: Mapping[str, Mapping[str, Any]] = {
    "sd14": {
        "unet": {"block_out_channels": (320, 640, 1280, 1280), "attention_head_dim": 8},
        "vae": {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2},
        "text": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
                 "num_attention_heads": 12},
    },
    "tiny": {
        "unet": {"block_out_channels": (16, 32, 32, 32), "attention_head_dim": 2, "layers_per_block": 1,
                 "norm_num_groups": 8},
        "vae": {"block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4},
        "text": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
                 "num_attention_heads": 2},
    },
}  # fmt: skip
#: Prompts up to this length fit.
_TOKENS = 77


def make(kind: str, folder: Path, dtype: torch.dtype, seed: int = 0) -> Path:
    """Write a Stable Diffusion 1.x folder of random weights.

    Args:
        kind: one of :data:`SIZES`.
        folder: receives the folder ``kind`` in diffusers' format and the tokenizer.
        dtype: of the stored weights.
        seed: of the weights.
    """
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from ctxedit.training.tokenizer import build

    sizes = SIZES[kind]
    tokenizer = build(folder / "words", captions=2000)
    tokenizer.model_max_length = _TOKENS
    ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    depth = len(sizes["vae"]["block_out_channels"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text = CLIPTextModel(CLIPTextConfig(**sizes["text"], **ends))
        unet = UNet2DConditionModel(
            sample_size=64, cross_attention_dim=sizes["text"]["hidden_size"], **sizes["unet"]
        )
        vae = AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * depth, up_block_types=["UpDecoderBlock2D"] * depth,
            latent_channels=4, sample_size=512, **sizes["vae"],
        )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip
    pipeline = StableDiffusionPipeline(
        vae, text, tokenizer, unet, scheduler, None, None, requires_safety_checker=False
    )
    pipeline.to(dtype).save_pretrained(folder / kind)
    return folder / kind
