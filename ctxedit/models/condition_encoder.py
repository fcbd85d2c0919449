"""Condition encoders: a class label, or a layout of labelled boxes, to tokens (ContextDiff, section 4.3).

Both are one network. Labels are embedded and painted into a coarse map of the image, a class over all of it,
a box's label over its box; ResNet blocks turn the map into tokens that follow those of the text. The
denoiser's cross-attention and the context adapter attend to both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

from ctxedit.errors import WeightsError
from ctxedit.files import neighbour
from ctxedit.models.sizes import header, weight_of
from ctxedit.models.tensors import save_tensors

#: Name of the weight file in an encoder's folder; its metadata holds settings and labels.
FILE = "encoder.safetensors"
#: The adapter that was trained with it, if one was.
ADAPTER = "adapter.safetensors"
#: What was trained of the denoiser, if anything was.
DENOISER = "denoiser.safetensors"
Kind = Literal["class", "layout"]
#: u, v, width, height and the share that is covered.
_GEOMETRY = 5
_GROUPS = 8
#: A box of which less than this share is visible is dropped.
HIDDEN = 0.02


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes of a :class:`ConditionEncoder`.

    Attributes:
        kind: ``class`` or ``layout``.
        map: side of the map that labels are painted into, in cells.
        tokens: side of the grid of tokens; ``map`` is this times a power of two.
        channels: of the ResNet blocks, a multiple of 8.
        blocks: ResNet blocks at each resolution.
        boxes: the most boxes of a layout; 1 for a class.
    """

    kind: Kind = "class"
    map: int = 4
    tokens: int = 4
    channels: int = 96
    blocks: int = 2
    boxes: int = 1

    def check(self) -> None:
        """Raise ValueError, naming the setting, for sizes that cannot be built."""
        halvings = (self.map // max(1, self.tokens)).bit_length() - 1
        if not 1 <= self.tokens <= 32 or self.map != self.tokens << max(0, halvings) or self.map > 128:
            raise ValueError(f"map = {self.map}, tokens = {self.tokens}: map is tokens times a power of two")
        if not _GROUPS <= self.channels <= 4096 or self.channels % _GROUPS:
            raise ValueError(f"channels = {self.channels}: a multiple of {_GROUPS}")
        if not 1 <= self.blocks <= 64:
            raise ValueError(f"blocks = {self.blocks}: 1 to 64")
        if not 1 <= self.boxes <= 1024 or (self.kind == "class" and self.boxes != 1):
            raise ValueError(f"boxes = {self.boxes}: 1 to 1024, and 1 for a class")


class _Residual(nn.Module):
    """GroupNorm, SiLU, convolution, twice; the second convolution starts at zero."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(_GROUPS, channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1),
            nn.GroupNorm(_GROUPS, channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1),
        )  # fmt: skip
        for parameter in self.body[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class ConditionEncoder(nn.Module):
    """Labelled boxes to tokens (N, tokens², width).

    A token is what is painted at its place plus what the ResNet blocks add, which is nothing before training.
    Label embeddings and the empty place's token can thus start as tokens of the text encoder, which a frozen
    denoiser knows already (:meth:`start_from`).

    Args:
        config: sizes.
        labels: their names; a label's number is its place.
        width: channels of the denoiser's cross-attention.
    """

    def __init__(self, config: EncoderConfig, labels: Sequence[str], width: int) -> None:
        super().__init__()
        config.check()
        self.config, self.labels, self.width = config, tuple(labels), width
        channels = config.channels
        self.label = nn.Embedding(len(labels), width)
        nn.init.normal_(self.label.weight, std=0.5)
        self.empty = nn.Parameter(torch.zeros(width))
        self.place = nn.Parameter(torch.zeros(config.tokens**2, width))
        layers: list[nn.Module] = [nn.Conv2d(width + _GEOMETRY, channels, 3, padding=1)]
        side = config.map
        while True:
            layers += [_Residual(channels) for _ in range(config.blocks)]
            if side == config.tokens:
                break
            layers.append(nn.Conv2d(channels, channels, 3, stride=2, padding=1))
            side //= 2
        self.blocks = nn.Sequential(*layers)
        out = nn.Conv2d(channels, width, 1)
        nn.init.zeros_(out.weight)
        if out.bias is not None:
            nn.init.zeros_(out.bias)
        self.out = nn.Sequential(nn.GroupNorm(_GROUPS, channels), nn.SiLU(), out)

    def forward(self, labels: Tensor, boxes: Tensor) -> Tensor:
        """Tokens (N, tokens², width).

        Args:
            labels: (N, M) long, numbers of labels; −1 is no box, a row of them the unconditional one.
            boxes: (N, M, 4): left, top, right, bottom in image sides. A class has one box, the whole image.
        """
        fine = paint(labels, boxes, self.config.map)
        embedded = self.label(labels.clamp(min=0))
        seen = fine.weight.flatten(2).transpose(1, 2)  # (N, cells, M)
        painted = (seen @ embedded).transpose(1, 2).unflatten(2, fine.weight.shape[-2:])
        x = self.blocks(torch.cat([painted, fine.geometry.to(painted)], 1))
        added = self.out(x).flatten(2).transpose(1, 2)
        coarse = F.adaptive_avg_pool2d(painted, self.config.tokens).flatten(2).transpose(1, 2)
        free = 1 - F.adaptive_avg_pool2d(fine.weight.sum(1, keepdim=True), self.config.tokens)
        tokens = coarse + free.flatten(2).transpose(1, 2) * self.empty + self.place + added
        return tokens

    @torch.no_grad()
    def start_from(self, words: Tensor, empty: Tensor) -> None:
        """Start label embeddings (K, width) and the empty place's token (width,) from a text encoder's."""
        self.label.weight.copy_(words)
        self.empty.copy_(empty)

    def number(self, label: str) -> int:
        """The number of a label; raises KeyError for an unknown one."""
        found = {name.lower(): i for i, name in reversed(list(enumerate(self.labels)))}
        return found[" ".join(label.split()).lower()]

    def save(self, folder: Path, **notes: str) -> None:
        """Write ``encoder.safetensors`` in half precision, with settings and labels in its metadata."""
        about = {
            "config": json.dumps(asdict(self.config)),
            "labels": json.dumps(self.labels),
            "width": json.dumps(self.width),
            **notes,
        }
        save_tensors(folder / FILE, {k: v.half() for k, v in self.state_dict().items()}, about)

    @classmethod
    def load(cls, folder: Path, kind: Kind) -> ConditionEncoder:
        """Read what :meth:`save` wrote, in float32 on the CPU.

        Raises:
            WeightsError: there is none, it is of the other kind, or the file is broken.
        """
        file = folder / FILE
        if not file.is_file():
            guess = "" if folder.exists() else neighbour(folder)
            raise WeightsError(
                f"no {kind} encoder in {folder}", f"{guess}train one: ctxedit train {kind}-encoder --out DIR"
            )
        try:
            config, labels, width = about(file)
            encoder = cls(config, labels, width)
            if sum(v.numel() for v in encoder.state_dict().values()) != weight_of(header([file])).parameters:
                raise ValueError("its settings do not fit its weights")
            with safe_open(file, "pt") as stored:
                tensors = {k: stored.get_tensor(k).float() for k in stored.keys()}  # noqa: SIM118
            encoder.load_state_dict(tensors)
            if broken := [key for key, value in tensors.items() if not bool(value.isfinite().all())]:
                raise ValueError(f"NaN or infinity in {broken[0]}")
        except Exception as error:
            line = str(error).split("\n")[0][:160]
            raise WeightsError(f"{file} is not a condition encoder: {line}", "train it again") from error
        if config.kind != kind:
            raise WeightsError(f"{folder} holds a {config.kind} encoder, not a {kind} encoder")
        return encoder


def about(file: Path) -> tuple[EncoderConfig, list[str], int]:
    """Settings, labels and width from a file's metadata.

    Raises:
        ValueError, KeyError, TypeError, OSError, SafetensorError: it is not an encoder's.
    """
    with safe_open(file, "pt") as stored:
        metadata: Mapping[str, str] = stored.metadata() or {}
    settings: dict[str, Any] = json.loads(metadata["config"])
    config, labels, width = EncoderConfig(**settings), json.loads(metadata["labels"]), metadata["width"]
    config.check()
    if not labels or not all(isinstance(label, str) and label for label in labels):
        raise ValueError("no labels")
    if not 1 <= int(width) <= 1 << 14:
        raise ValueError(f"width = {width}")
    return config, labels, int(width)


@dataclass(frozen=True)
class Painted:
    """Boxes in a map of the image.

    Attributes:
        weight: (N, M, side, side) in [0, 1]: the share of a cell in which a box is seen.
        geometry: (N, 5, side, side): for the box seen, the cell's place in it (u, v, 0 to 1), its width and
            height, and the covered share; 0 where there is none.
    """

    weight: Tensor
    geometry: Tensor


def paint(labels: Tensor, boxes: Tensor, side: int) -> Painted:
    """Paint boxes, smaller ones over larger ones.

    Nested boxes stay visible regardless of their order in an annotation.

    Args:
        labels: (N, M), −1 for no box.
        boxes: (N, M, 4) in image sides.
        side: of the map, in cells.
    """
    boxes = boxes.float()
    x0, y0, x1, y1 = boxes.unbind(-1)
    edges = torch.arange(side + 1, device=boxes.device) / side

    def share(low: Tensor, high: Tensor) -> Tensor:
        """(N, M, side): how much of each row or column lies between two bounds."""
        inside = torch.minimum(high[..., None], edges[1:]) - torch.maximum(low[..., None], edges[:-1])
        return inside.clamp(min=0) * side

    cover = share(y0, y1)[..., :, None] * share(x0, x1)[..., None, :]
    cover = cover * (labels >= 0)[..., None, None]
    # The smallest first; what one covers is gone for those behind it.
    order = ((x1 - x0) * (y1 - y0)).argsort(dim=1, stable=True)
    index = order[..., None, None].expand_as(cover)
    near = cover.gather(1, index)
    through = (1 - near).cumprod(1)
    seen = near * torch.cat([torch.ones_like(through[:, :1]), through[:, :-1]], 1)
    weight = torch.zeros_like(seen).scatter(1, index, seen)
    middles = (edges[1:] + edges[:-1]) / 2
    width, height = (x1 - x0).clamp(min=1e-3)[..., None], (y1 - y0).clamp(min=1e-3)[..., None]
    u = ((middles - x0[..., None]) / width).clamp(0, 1)[..., None, :].expand_as(weight)
    v = ((middles - y0[..., None]) / height).clamp(0, 1)[..., :, None].expand_as(weight)
    sizes = (torch.ones_like(weight) * s[..., None] for s in (width, height))
    values = torch.stack([u, v, *sizes, torch.ones_like(weight)], 2)
    return Painted(weight, (weight[:, :, None] * values).sum(1))


def hidden(boxes: Tensor, side: int = 64) -> list[int]:
    """Indices of the boxes (M, 4) that others hide completely."""
    labels = torch.zeros(1, len(boxes), dtype=torch.long)
    seen = paint(labels, boxes[None], side).weight[0].flatten(1).sum(1) / side**2
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return [i for i in range(len(boxes)) if seen[i] < HIDDEN * area[i]]
