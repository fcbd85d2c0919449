"""A trained condition encoder in use: located, checked against its model, and applied."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from ctxedit.errors import ConfigError, InputError, WeightsError
from ctxedit.models.adapter import ContextAdapter
from ctxedit.models.backbones.base import Backbone
from ctxedit.models.condition_encoder import ADAPTER, DENOISER, FILE, ConditionEncoder, Kind, hidden
from ctxedit.models.conditioning import Condition
from ctxedit.models.shift import ContextShift
from ctxedit.models.weights import BUILTIN_FOLDER, own_folder

Box = tuple[float, float, float, float]
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class Labels:
    """Content of an image: label numbers, and boxes in shares of its sides."""

    numbers: tuple[int, ...]
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class LabelEncoder:
    """A condition encoder from a folder.

    Attributes:
        folder: its folder.
        encoder: in eval mode, on the CPU.
        adapter: the context adapter that it was trained with, or None.
    """

    folder: Path
    encoder: ConditionEncoder
    adapter: ContextAdapter | None

    def class_of(self, name: str) -> Labels:
        """A class by its label; raises InputError for an unknown one."""
        return Labels((self._number(name, "class"),), (WHOLE,))

    def layout_of(self, boxes: Sequence[tuple[str, Box]]) -> Labels:
        """Labelled boxes.

        Raises:
            InputError: an unknown label, more boxes than the encoder takes, or a box of which the others
                leave nothing to be seen.
        """
        most = self.encoder.config.boxes
        if len(boxes) > most:
            raise InputError(f"{len(boxes)} boxes, and this encoder takes {most}", "leave some out")
        numbers = tuple(self._number(label, "label") for label, _ in boxes)
        places = tuple(box for _, box in boxes)
        if gone := hidden(torch.tensor(places)):
            raise InputError(
                f"box {gone[0] + 1} ({boxes[gone[0]][0]}) is completely hidden by the others",
                "smaller boxes are in front of larger ones: move it, or leave it out",
            )
        return Labels(numbers, places)

    def _number(self, label: str, what: str) -> int:
        try:
            return self.encoder.number(label)
        except KeyError:
            known = self.encoder.labels
            near = difflib.get_close_matches(label.lower(), known, 3) or known[:12]
            more = "" if len(known) <= len(near) else f", … ({len(known)} in all)"
            raise InputError(f"unknown {what} {label!r}", f"known are {', '.join(near)}{more}") from None

    def fit(self, backbone: Backbone) -> None:
        """Load what was trained of the denoiser; raises ConfigError for a model of another width."""
        if self.encoder.width != backbone.context_width:
            raise ConfigError(
                f"{self.folder} was trained on another model than {backbone.name}: tokens of "
                f"{self.encoder.width} channels, not {backbone.context_width}",
                "name its --model",
            )
        if (file := self.folder / DENOISER).is_file():
            missing = backbone.networks[0].load_state_dict(load_file(file), strict=False).unexpected_keys
            if missing:
                raise WeightsError(f"{file} does not fit {backbone.name}: {missing[0]}", "name its --model")

    @torch.no_grad()
    def condition(self, backbone: Backbone, texts: tuple[str, str], labels: Labels) -> Condition:
        """Two rows, without and with the labels, each behind its text: (negative, positive)."""
        rows = backbone.condition(texts)
        numbers = torch.tensor([[-1] * len(labels.numbers), labels.numbers])
        boxes = torch.tensor(labels.boxes)[None].expand(2, -1, -1)
        tokens = self.encoder(numbers, boxes).to(rows.tokens)
        return Condition(torch.cat([rows.tokens, tokens], 1), rows.pooled)

    def shift(self, condition: Condition, device: torch.device) -> ContextShift | None:
        """The adapter bound to the second row of a condition, for pictures of one frame; None without one."""
        if self.adapter is None:
            return None
        return ContextShift(self.adapter.to(device), condition.tokens[1:], 1)


def find(kind: Kind, model: str, folder: Path | None = None) -> Path:
    """The folder of a model's encoder.

    Args:
        kind: ``class`` or ``layout``.
        model: the setting.
        folder: the encoder's folder, or a folder of models that holds it; None looks beside ctxedit's own
            model, then among the built-in ones.

    Raises:
        ConfigError: a model from elsewhere, without ``folder``.
        WeightsError: there is none.
    """
    name = f"{kind}-encoder"
    if folder is not None:
        return folder / name if not (folder / FILE).is_file() and (folder / name).is_dir() else folder
    own = own_folder(model)
    if own is None:
        raise ConfigError(
            f"there is no {kind} encoder for {model}", f"train one on it, and name it: --encoder DIR/{name}"
        )
    return own / name if (own / name / FILE).is_file() else BUILTIN_FOLDER / name


def open_encoder(kind: Kind, model: str, folder: Path | None = None) -> LabelEncoder:
    """Load a model's encoder and its adapter; raises as :func:`find`, and WeightsError for broken files."""
    place = find(kind, model, folder)
    encoder = ConditionEncoder.load(place, kind).eval().requires_grad_(False)
    adapter: Any = None
    if (place / ADAPTER).is_file():
        adapter = ContextAdapter.load(place / ADAPTER).eval().requires_grad_(False)
    return LabelEncoder(place, encoder, adapter)
