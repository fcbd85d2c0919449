"""The control: a ``ControlNetModel`` on Canny edges, beside the finished denoiser, which stays frozen."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import Tensor, nn
from torch.utils.data import Dataset

from ctxedit.errors import ConfigError
from ctxedit.media.edges import canny
from ctxedit.training.half import save_half
from ctxedit.training.tasks.denoiser import DenoiserTask


class ControlTask:
    """The denoiser's own loss, asked of the frozen denoiser with a ControlNet beside it.

    The ControlNet starts as a copy of the denoiser's way down behind zero convolutions (Zhang et al. 2023,
    "Adding Conditional Control to Text-to-Image Diffusion Models", section 3.2). Half of the captions are
    empty (section 3.4): the edges must then say what there is.

    Args:
        denoiser: gives encoders, noise, loss weights and the frozen network.
        embedding: channels of the edges' encoder; each after the first halves the side, so that it ends at
            the autoencoder's.
        low, high: Canny's thresholds.
    """

    def __init__(self, denoiser: DenoiserTask, embedding: list[int], low: int = 100, high: int = 200) -> None:
        self.denoiser, self.low, self.high = denoiser, low, high
        self.unet = denoiser.model.eval().requires_grad_(False)
        assert isinstance(self.unet, UNet2DConditionModel)
        self.model: nn.Module = ControlNetModel.from_unet(
            self.unet, conditioning_embedding_out_channels=tuple(embedding)
        )

    def dataset(self, seed: int) -> Dataset[Any]:
        return self.denoiser.dataset(seed)

    def loss(
        self, model: nn.Module, batch: Any, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        edges = edges_of(batch["image"], self.low, self.high)
        self.unet.to(edges.device)

        def controlled(noisy: Tensor, t: Tensor, words: Tensor) -> Any:
            draws = len(noisy) // len(edges)  # a picture may be noised several times
            condition = edges.repeat(draws, 1, 1, 1)
            down, middle = model(noisy, t, words, condition, return_dict=False)
            out = self.unet(
                noisy,
                t,
                words,
                down_block_additional_residuals=down,
                mid_block_additional_residual=middle,
            )
            return SimpleNamespace(sample=out.sample)

        return self.denoiser.loss(controlled, batch, generator)  # type: ignore[arg-type]

    def export(self, model: nn.Module, folder: Path) -> None:
        save_half(model, folder)


def edges_of(images: Tensor, low: int, high: int) -> Tensor:
    """Canny edges in {0, 1} of RGB images in [−1, 1], both (N, 3, H, W)."""
    frames = ((images.permute(0, 2, 3, 1).cpu() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    edges = torch.from_numpy(canny(frames.numpy(), low, high))
    return edges.permute(0, 3, 1, 2).to(images) / 255


def finished_denoiser(weights: Path, **settings: Any) -> DenoiserTask:
    """The denoiser's task around the trained network in ``weights/unet``, of whatever sizes that has.

    Raises:
        ConfigError: no denoiser was trained yet.
    """
    if not (weights / "unet" / "config.json").is_file():
        raise ConfigError(f"{weights} holds no denoiser to control", "train the denoiser first")
    config = json.loads((weights / "unet" / "config.json").read_text())
    channels = config["block_out_channels"]
    task = DenoiserTask(
        weights / "vae",
        weights / "text_encoder",
        weights / "tokenizer",
        channels=channels,
        layers=config["layers_per_block"],
        head=channels[0] // config["attention_head_dim"][0],
        attend=["CrossAttn" in kind for kind in config["down_block_types"]],
        **settings,
    )
    task.model = UNet2DConditionModel.from_pretrained(weights / "unet", torch_dtype=torch.float32)
    return task
