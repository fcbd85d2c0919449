"""The ControlNet: ``ControlNetModel`` on Canny edges, for the trained denoiser, which is frozen."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor

from ctxedit.config import Range
from ctxedit.errors import ConfigError
from ctxedit.media.edges import canny
from ctxedit.training.components import Components, load_network
from ctxedit.training.data import Data, DataConfig, Scenes
from ctxedit.training.fp16 import save_fp16
from ctxedit.training.settings import Count, Levels, LossWeight, Share, require
from ctxedit.training.tasks.base import Task, register
from ctxedit.training.tasks.denoiser import VelocityLoss

if TYPE_CHECKING:
    from ctxedit.training.checks.base import Check


@register("control")
class ControlTask(Task):
    """The denoiser's loss, through the frozen denoiser with a ControlNet.

    The ControlNet is a copy of the denoiser's down blocks, behind zero convolutions (Zhang et al. 2023,
    "Adding Conditional Control to Text-to-Image Diffusion Models", section 3.2). Half of the captions are
    empty (section 3.4), so that it learns to read the edges without them.

    Args:
        components: with a trained denoiser; the pipeline is installed next to the weights.
        data: images and captions.
        embedding: channels of the edge encoder; each after the first halves the resolution, and the last must
            arrive at the latents'.
        low, high: thresholds of the Canny detector, on OpenCV's scale.
        empty, focus, draws: see :class:`~ctxedit.training.tasks.denoiser.VelocityLoss`.

    Raises:
        ConfigError: there is no trained denoiser.
    """

    folder = "controlnet"
    requires = ("vae", "text_encoder", "unet")

    def __init__(
        self,
        components: Components,
        data: DataConfig,
        *,
        embedding: Annotated[list[Annotated[int, Range(1, 1024)]], Levels],
        low: Annotated[int, Range(0, 10_000)] = 100,
        high: Annotated[int, Range(0, 10_000)] = 200,
        empty: Share = 0.1,
        focus: LossWeight = 1.0,
        draws: Count = 1,
    ) -> None:
        from diffusers import ControlNetModel, UNet2DConditionModel

        unet = components.find("unet")
        if not (unet / "config.json").is_file():
            raise ConfigError(f"{unet} has no denoiser to control", "train the denoiser first")
        require(low <= high, "low", low, f"at most task.high, {high}")
        self.velocity = VelocityLoss(components, empty, focus, draws)
        factor = self.velocity.encoders.downsampling
        count = factor.bit_length()  # one more than its halvings
        expected = f"a list of {count}: the autoencoder downsamples by {factor}"
        require(len(embedding) == count, "embedding", embedding, expected)
        components.install("vae", "text_encoder", "tokenizer", "unet")
        self.data = Data(data, Scenes)
        self.low, self.high = low, high
        self.unet: Any = load_network(UNet2DConditionModel, unet, torch_dtype=torch.float32)
        self.unet.eval().requires_grad_(False)
        self.model: Any = ControlNetModel.from_unet(
            self.unet, conditioning_embedding_out_channels=tuple(embedding)
        )

    def loss(self, model: Any, batch: Any, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        edges = edge_map(batch["image"], self.low, self.high)
        self.unet.to(edges.device)

        def controlled(noisy: Tensor, t: Tensor, embeddings: Tensor) -> Any:
            condition = edges.repeat(len(noisy) // len(edges), 1, 1, 1)  # several noise draws per image
            down, middle = model(noisy, t, embeddings, condition, return_dict=False)
            out = self.unet(
                noisy,
                t,
                embeddings,
                down_block_additional_residuals=down,
                mid_block_additional_residual=middle,
            )
            return SimpleNamespace(sample=out.sample)

        return self.velocity(controlled, batch, generator)

    def export(self, model: Any, folder: Path) -> None:
        save_fp16(model, folder)

    @classmethod
    def checks(cls) -> tuple[Check, ...]:
        from ctxedit.training.checks.control import CHECK

        return (CHECK,)


def edge_map(images: Tensor, low: int, high: int) -> Tensor:
    """Canny edges in {0, 1} of RGB images in [−1, 1], both (N, 3, H, W)."""
    frames = ((images.permute(0, 2, 3, 1).cpu() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    edges = torch.from_numpy(canny(frames.numpy(), low, high))
    return edges.permute(0, 3, 1, 2).to(images) / 255
