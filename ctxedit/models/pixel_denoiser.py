"""A small denoiser of pixels with a class condition, plain or with the context adapter (for likelihoods).

Its folder has diffusers' ``UNet2DModel`` (``config.json`` and weights), ``adapter.safetensors`` where it was
trained with an adapter, and ``pixels.json``: schedule and class names.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ctxedit.diffusion.parameterization import to_x0
from ctxedit.diffusion.schedule import Levels, alphas_cumprod, levels
from ctxedit.errors import WeightsError
from ctxedit.models.adapter import ContextAdapter

FILE, ADAPTER = "pixels.json", "adapter.safetensors"
#: Width of a class's token, which the adapter attends to.
WIDTH = 64


@dataclass(frozen=True)
class PixelConfig:
    """What ``pixels.json`` says.

    Attributes:
        size: side in pixels.
        classes: names, in the order of the labels.
        steps: T of the cosine schedule.
    """

    size: int
    classes: tuple[str, ...]
    steps: int = 1000


class PixelDenoiser(nn.Module):
    """x̂_0 of noisy images, and the adapter's shift; both know the class.

    Args:
        unet: ``UNet2DModel`` with an embedding of every class; predicts the velocity.
        config: size, classes and schedule.
        adapter: with ``context_width`` :data:`WIDTH` and three channels, or None.
    """

    def __init__(self, unet: nn.Module, config: PixelConfig, adapter: ContextAdapter | None) -> None:
        super().__init__()
        self.unet, self.config, self.adapter = unet, config, adapter
        self.levels = pixel_levels(config.steps)

    def shift(self, x0: Tensor, level: Tensor, labels: Tensor) -> Tensor:
        """b at levels (B,) for clean images (B, 3, H, W) of classes (B,); zero at level 0."""
        if self.adapter is None:
            return torch.zeros_like(x0)
        a, s = self.at(level, x0)
        context = class_tokens(labels, len(self.config.classes)).to(x0)
        b = self.adapter.shift(self.adapter(x0, context, level - 1, 1), x0, a, s)
        return torch.where((level == 0)[:, None, None, None], torch.zeros_like(b), b)

    def predict(self, x: Tensor, level: Tensor, labels: Tensor, clip: bool = True) -> Tensor:
        """x̂_0 (B, 3, H, W), within [−1, 1] where ``clip``; levels (B,) of 1 … T."""
        network: Any = self.unet
        a, s = self.at(level, x)
        found = to_x0(network(x, level - 1, labels).sample.float(), x, a, s, "v_prediction")
        return found.clamp(-1, 1) if clip else found

    def at(self, level: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise (B,) of levels (B,), in the precision and on the device of ``like``."""
        at = level.cpu()
        return self.levels.alpha[at].to(like), self.levels.sigma[at].to(like)

    def save(self, folder: Path) -> None:
        """Write the folder, in fp16."""
        network: Any = self.unet
        half = type(network).from_config(network.config)
        half.load_state_dict(network.state_dict())
        half.half().save_pretrained(folder)
        if self.adapter is not None:
            self.adapter.save(folder / ADAPTER, trained="pixels")
        about = {"size": self.config.size, "classes": list(self.config.classes), "steps": self.config.steps}
        (folder / FILE).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def pixel_levels(steps: int) -> Levels:
    """Every level of the cosine schedule of so many steps (Nichol and Dhariwal 2021)."""
    return levels(alphas_cumprod(steps, kind="cosine"), steps, steps_offset=0)


def class_tokens(labels: Tensor, classes: int) -> Tensor:
    """A fixed token (B, 1, :data:`WIDTH`) for each class: sines of its number, one frequency a channel.

    The adapter's first layer learns what to make of them.
    """
    rates = torch.arange(1, WIDTH // 2 + 1, device=labels.device, dtype=torch.float32) * torch.pi / classes
    angles = labels.float()[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], -1)[:, None]


def load_pixels(folder: Path, device: torch.device | str = "cpu") -> PixelDenoiser:
    """Read what :meth:`PixelDenoiser.save` wrote.

    Raises:
        WeightsError: the folder is none, or damaged.
    """
    from diffusers import UNet2DModel

    file = folder / FILE
    if not file.is_file():
        raise WeightsError(f"{folder} has no {FILE}", "train one: ctxedit train cifar10-plain --data PATH")
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
        config = PixelConfig(int(about["size"]), tuple(map(str, about["classes"])), int(about["steps"]))
        unet: Any = UNet2DModel.from_pretrained(folder, torch_dtype=torch.float32, use_safetensors=True)
    except Exception as error:
        line = str(error).split("\n")[0][:160]
        raise WeightsError(f"{folder} is not a denoiser of pixels: {line}", "train it again") from error
    path = folder / ADAPTER
    adapter = ContextAdapter.load(path) if path.is_file() else None
    return PixelDenoiser(unet, config, adapter).to(device).eval().requires_grad_(False)
