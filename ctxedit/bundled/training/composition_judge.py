"""The composition judge: finds every object of a drawn frame with its colour and place; for checks only.

A dense detector of the kind of CenterNet (Zhou et al. 2019, *Objects as Points*): a heat map for each class,
and at every cell the colour, the offset from the cell's middle, the side, and whether something hides the
object.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import Dataset

from ctxedit.bundled.training.composition_data import GRID, HUES, NAMES, PLACES, SIDE, Frames
from ctxedit.bundled.training.data import DataConfig
from ctxedit.errors import ConfigError, WeightsError

FILE = "judge.safetensors"
#: Sides are learned as the logarithm of their ratio to this.
_MIDDLE_SIDE = 0.4
#: Channels of the dense output, in order: heat by class, logits of the colours, x and y, side, hidden.
_PARTS = (len(NAMES), len(HUES), 2, 1, 1)
#: The heat of a cell without an object, before training: few cells hold one.
_PRIOR = -4.6
#: Of the terms of the loss: heat, colour, offset, side, hidden, background.
_WEIGHTS = (1.0, 1.0, 1.0, 2.0, 0.5, 0.2)


def _layer(a: int, b: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(a, b, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.GroupNorm(8, b), nn.SiLU())


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = _layer(width, width)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x))


class CompositionJudge(nn.Module):
    """Strided convolutions down to 4×4 and back up to 16×16, where objects are found."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        fine, middle, coarse, neck = width, 2 * width, 3 * width, 3 * width // 2
        stem = _layer(3, width // 2, 3, 2)
        self.fine = nn.Sequential(stem, _layer(width // 2, fine, 3, 2), _Residual(fine))
        self.middle = nn.Sequential(_layer(fine, middle, 3, 2), _Residual(middle), _Residual(middle))
        self.coarse = nn.Sequential(_layer(middle, coarse, 3, 2), _Residual(coarse))
        self.to_middle = nn.Conv2d(coarse, middle, 1)
        self.mix_middle = _layer(middle, middle)
        self.to_fine = nn.Conv2d(middle, neck, 1)
        self.beside = nn.Conv2d(fine, neck, 1)
        self.mix_fine = _layer(neck, neck)
        last = nn.Conv2d(middle, sum(_PARTS), 1)
        self.head = nn.Sequential(_layer(neck, middle, 1), last)
        self.background = nn.Linear(coarse * 16, len(PLACES))
        if last.bias is not None:
            nn.init.constant_(last.bias[: len(NAMES)], _PRIOR)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """RGB (B, 3, 64, 64) in [−1, 1] to the dense output (B, ΣPARTS, 16, 16) and background logits."""
        fine = self.fine(image)
        middle = self.middle(fine)
        coarse = self.coarse(middle)
        up = self.mix_middle(middle + F.interpolate(self.to_middle(coarse), scale_factor=2.0))
        up = self.mix_fine(self.beside(fine) + F.interpolate(self.to_fine(up), scale_factor=2.0))
        return self.head(up), self.background(coarse.flatten(1))


def split(dense: Tensor) -> tuple[Tensor, ...]:
    """The dense output's parts along dim 1: heat logits, colour logits, offset, log side, hidden logit."""
    return dense.split(list(_PARTS), 1)


def side_of(log: Tensor) -> Tensor:
    """The side of an object's square in frame sizes, of the network's output."""
    return _MIDDLE_SIDE * log.exp()


class CompositionJudgeTask:
    """Focal loss on the heat maps; the rest at the cells that hold an object. Only drawn scenes have answers.

    Raises:
        ConfigError: other data.
    """

    def __init__(self, width: int, data: DataConfig | None = None) -> None:
        if data is not None and (data.source != "scenes" or data.size != SIDE):
            raise ConfigError(
                "the composition judge learns from drawn scenes of 64 pixels alone: pictures have no labels",
                'leave [data] out of the recipe, or data.source = "scenes"',
            )
        self.width = width
        self.model: nn.Module = CompositionJudge(width)

    def dataset(self, seed: int) -> Dataset[Any]:
        return Frames(seed)

    def loss(
        self, model: nn.Module, batch: Any, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        dense, background = model(batch["image"])
        heat, colour, offset, side, hidden = split(dense.float())
        valid = batch["valid"].bool()
        cell = (batch["place"][..., :2] * GRID).long().clamp(0, GRID - 1)  # (B, MOST, 2): column, row
        at = (torch.arange(len(valid), device=valid.device)[:, None].expand_as(valid)[valid],
              slice(None), cell[..., 1][valid], cell[..., 0][valid])  # fmt: skip
        place, name = batch["place"][valid], batch["name"][valid]
        wanted = place[:, :2] * GRID - cell[valid] - 0.5
        terms = (
            _focal(heat, _heat_map(batch, cell)) / max(1, len(place)),
            F.cross_entropy(colour[at], batch["colour"][valid]),
            F.l1_loss(offset[at], wanted),
            F.l1_loss(side[at][:, 0], (place[:, 2] / _MIDDLE_SIDE).log()),
            F.binary_cross_entropy_with_logits(hidden[at][:, 0], batch["covered"][valid]),
            F.cross_entropy(background.float(), batch["background"]),
        )
        loss = torch.stack([w * term for w, term in zip(_WEIGHTS, terms, strict=True)]).sum()
        right = {
            "name": (heat[at].argmax(1) == name).float().mean().item(),
            "colour": (colour[at].argmax(1) == batch["colour"][valid]).float().mean().item(),
            "heat": terms[0].item(),
        }
        return loss, {"loss": loss.item(), **right}

    def export(self, model: nn.Module, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {k: v.half().contiguous() for k, v in model.state_dict().items()}
        save_file(tensors, folder / FILE, {"width": json.dumps(self.width)})


def _heat_map(batch: Any, cell: Tensor) -> Tensor:
    """(B, classes, 16, 16): 1 at an object's cell, falling off around it as its side allows."""
    line = torch.arange(GRID, device=cell.device, dtype=torch.float32)
    spread = (batch["place"][..., 2] * GRID / 8).clamp(min=0.5)[..., None]
    across = torch.exp(-((line - cell[..., :1]) ** 2) / (2 * spread**2))
    down = torch.exp(-((line - cell[..., 1:]) ** 2) / (2 * spread**2))
    bumps = (down[..., :, None] * across[..., None, :]) * batch["valid"][..., None, None]
    index = batch["name"][..., None, None].expand_as(bumps)
    empty = bumps.new_zeros(len(bumps), len(NAMES), GRID, GRID)
    return empty.scatter_reduce(1, index, bumps, "amax")


def _focal(logits: Tensor, wanted: Tensor) -> Tensor:
    """CenterNet's penalty-reduced focal loss, summed."""
    p = logits.sigmoid()
    here = wanted > 0.999
    hit = F.logsigmoid(logits) * (1 - p) ** 2
    miss = F.logsigmoid(-logits) * p**2 * (1 - wanted) ** 4
    return -torch.where(here, hit, miss).sum()


def load(folder: Path) -> CompositionJudge:
    """The trained judge, in eval mode; raises WeightsError for one that knows another world."""
    try:
        with safe_open(folder / FILE, "pt") as file:
            judge = CompositionJudge(json.loads(file.metadata()["width"]))
            judge.load_state_dict({k: file.get_tensor(k).float() for k in file.keys()})  # noqa: SIM118
    except (OSError, SafetensorError, TypeError, KeyError, RuntimeError) as error:
        raise WeightsError(
            f"{folder} holds no composition judge of this world", "train it: ctxedit train composition-judge"
        ) from error
    return judge.eval()
