"""The composition judge: finds every object of a drawn frame with its colour and place; for checks only.

A dense detector like CenterNet (Zhou et al. 2019, *Objects as Points*): a heatmap for each class,
and at every cell the colour, the offset from the cell's middle, the side, and whether something hides the
object.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ctxedit.errors import WeightsError
from ctxedit.synthetic.vocabulary import BACKGROUNDS, BY_NAME, COLOURS

#: Side of its input frames in pixels.
SIDE = 64
#: Cells per side of the heatmaps.
GRID = 16
NAMES = tuple(BY_NAME)
#: ``none`` stands for an object without a colour, or one whose colour is not visible.
HUES = ("none", *COLOURS)
PLACES = tuple(BACKGROUNDS)
#: Name of the weight file; its metadata holds the width.
FILE = "judge.safetensors"
#: Sides are learned as the logarithm of their ratio to this.
MIDDLE_SIDE = 0.4
#: Channels of the dense output: heatmap logits by class, logits of the colours, x and y, side, hidden.
_PARTS = (len(NAMES), len(HUES), 2, 1, 1)
#: Initial heatmap logit: few cells contain an object.
_PRIOR = -4.6


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
    """A feature pyramid (Lin et al. 2017): down to 4×4 and back up to 16×16, where objects are found."""

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
        self.lateral = nn.Conv2d(fine, neck, 1)
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
        up = self.mix_fine(self.lateral(fine) + F.interpolate(self.to_fine(up), scale_factor=2.0))
        return self.head(up), self.background(coarse.flatten(1))


def split(dense: Tensor) -> tuple[Tensor, ...]:
    """The dense output's parts along dim 1: heatmap logits, colour logits, offset, log side, hidden logit."""
    return dense.split(list(_PARTS), 1)


def side_of(log: Tensor) -> Tensor:
    """The side of an object's square in frame sizes, from the network's output."""
    return MIDDLE_SIDE * log.exp()


def load(folder: Path) -> CompositionJudge:
    """The trained judge, in eval mode; raises WeightsError if it was trained on another vocabulary."""
    try:
        with safe_open(folder / FILE, "pt") as file:
            judge = CompositionJudge(json.loads(file.metadata()["width"]))
            judge.load_state_dict({k: file.get_tensor(k).float() for k in file.keys()})  # noqa: SIM118
    except (OSError, SafetensorError, TypeError, KeyError, RuntimeError) as error:
        raise WeightsError(
            f"{folder} has no composition judge for this vocabulary",
            "train one: ctxedit train composition-judge",
        ) from error
    return judge.eval()
