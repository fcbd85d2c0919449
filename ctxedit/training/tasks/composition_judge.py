"""The composition judge: a detector of every object of a drawn frame, used to check other models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ctxedit.models.tensors import save_tensors
from ctxedit.synthetic.composition_judge import FILE, GRID, MIDDLE_SIDE, NAMES, SIDE, CompositionJudge, split
from ctxedit.training.components import Components
from ctxedit.training.composition_data import Frames
from ctxedit.training.data import Data, DataConfig
from ctxedit.training.memory import build_network
from ctxedit.training.settings import Channels16
from ctxedit.training.tasks.base import Task, register, require_drawn

if TYPE_CHECKING:
    from ctxedit.training.checks.base import Check

#: Of the terms of the loss: heatmaps, colour, offset, side, occlusion, background.
_WEIGHTS = (1.0, 1.0, 1.0, 2.0, 0.5, 0.2)


@register("composition-judge")
class CompositionJudgeTask(Task):
    """Focal loss on the heatmaps; the other terms at the cells that hold an object.

    Raises:
        ConfigError: data other than drawn scenes of 64 pixels: only those have labels.
    """

    folder = "composition-judge"
    drawn_only = True

    def __init__(self, components: Components, data: DataConfig, *, width: Channels16) -> None:
        require_drawn(data, "composition judge", SIDE)
        self.data = Data(data, lambda seed, size: Frames(seed))
        self.width = width
        self.model: Any = build_network(lambda: CompositionJudge(width))

    def loss(self, model: Any, batch: Any, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        dense, background = model(batch["image"])
        heatmaps, colour, offset, side, hidden = split(dense.float())
        valid = batch["valid"].bool()
        cell = (batch["place"][..., :2] * GRID).long().clamp(0, GRID - 1)  # (B, MOST, 2): column, row
        at = (torch.arange(len(valid), device=valid.device)[:, None].expand_as(valid)[valid],
              slice(None), cell[..., 1][valid], cell[..., 0][valid])  # fmt: skip
        place, name = batch["place"][valid], batch["name"][valid]
        wanted = place[:, :2] * GRID - cell[valid] - 0.5
        terms = (
            _focal(heatmaps, _target_heatmaps(batch, cell)) / max(1, len(place)),
            F.cross_entropy(colour[at], batch["colour"][valid]),
            F.l1_loss(offset[at], wanted),
            F.l1_loss(side[at][:, 0], (place[:, 2] / MIDDLE_SIDE).log()),
            F.binary_cross_entropy_with_logits(hidden[at][:, 0], batch["covered"][valid]),
            F.cross_entropy(background.float(), batch["background"]),
        )
        loss = torch.stack([w * term for w, term in zip(_WEIGHTS, terms, strict=True)]).sum()
        right = {
            "name": (heatmaps[at].argmax(1) == name).float().mean().item(),
            "colour": (colour[at].argmax(1) == batch["colour"][valid]).float().mean().item(),
            "focal": terms[0].item(),
        }
        return loss, {"loss": loss.item(), **right}

    def export(self, model: Any, folder: Path) -> None:
        tensors = {k: v.half() for k, v in model.state_dict().items()}
        save_tensors(folder / FILE, tensors, {"width": json.dumps(self.width)})

    @classmethod
    def checks(cls) -> tuple[Check, ...]:
        from ctxedit.training.checks import compositions

        return (compositions.JUDGE,)


def _target_heatmaps(batch: Any, cell: Tensor) -> Tensor:
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
    at_centre = wanted > 0.999
    hit = F.logsigmoid(logits) * (1 - p) ** 2
    miss = F.logsigmoid(-logits) * p**2 * (1 - wanted) ** 4
    return -torch.where(at_centre, hit, miss).sum()
