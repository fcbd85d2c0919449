"""Drawn scenes with the label and the exact box of every object."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from ctxedit.synthetic import compositions, scenes
from ctxedit.synthetic.tensors import to_tensor
from ctxedit.synthetic.vocabulary import BACKGROUNDS, STYLES, THINGS
from ctxedit.training import composition_samples

_NUMBERS = {thing.name: number for number, thing in enumerate(THINGS)}
#: Share of easy scenes with two objects, for layouts.
_PAIRS = 0.4
#: Minimum side, in frame sizes, of the visible part of an object at the frame's edge.
_LEAST = 0.08

Box = tuple[float, float, float, float]


class LabelledScenes(Dataset[dict[str, Any]]):
    """Frames of drawn scenes: ``image``, ``mask``, ``caption``, ``labels`` (M,), ``boxes`` (M, 4).

    The caption names only background and style; the objects are given by the labels.

    Args:
        seed: of the data set.
        size: side in pixels.
        boxes: M, of layouts; 0 for classes: scenes of one object, its label for the whole image.
        compositions: share of compositions; layouts only.
        test: draw held-out combinations.
    """

    def __init__(
        self, seed: int, size: int = 64, boxes: int = 0, compositions: float = 0.0, *, test: bool = False
    ) -> None:
        self.seed, self.size, self.boxes, self.test = seed, size, boxes, test
        self.compositions = compositions if boxes else 0.0

    def __len__(self) -> int:
        return 1 << 40

    def __getitem__(self, index: int) -> dict[str, Any]:
        composed = composition_samples.draw(self.seed, index, self.compositions, self.test)
        if composed is not None:
            scene, rng = composed[0].scene, composed[1]
        else:
            rng = np.random.default_rng((self.seed, index, int(self.test), 17))
            scene = scenes.draw_scene(rng, test=self.test, pairs=_PAIRS if self.boxes else 0.0)
        frame, visible = compositions.render_objects(scene, float(rng.random()), self.size)
        mask = np.max([one.mask for one in visible], axis=0)
        labels: list[tuple[int, Box]] = [(_NUMBERS[scene.actors[0].name], (0.0, 0.0, 1.0, 1.0))]
        if self.boxes:
            labels = _boxes(visible, self.size)[: self.boxes]
        return {
            "image": to_tensor(frame),
            "mask": torch.from_numpy(mask),
            "caption": _where(scene, rng),
            **padded(labels, max(1, self.boxes)),
        }


def _boxes(visible: Sequence[compositions.VisibleObject], size: int) -> list[tuple[int, Box]]:
    found = []
    for one in visible:
        x0, y0, x1, y1 = (side / size for side in one.box)
        if min(x1 - x0, y1 - y0) >= _LEAST:
            found.append((_NUMBERS[one.actor.name], (x0, y0, x1, y1)))
    return found


def _where(scene: scenes.Scene, rng: np.random.Generator) -> str:
    """Background and style in words."""
    phrases, suffixes = BACKGROUNDS[scene.background], STYLES[scene.style][0]
    return phrases[rng.integers(len(phrases))] + suffixes[rng.integers(len(suffixes))]


def padded(found: Sequence[tuple[int, Sequence[float]]], most: int) -> dict[str, Any]:
    """``labels`` (most,) and ``boxes`` (most, 4) padded with −1 after the labelled boxes."""
    labels, boxes = torch.full((most,), -1, dtype=torch.long), torch.zeros(most, 4)
    for at, (label, box) in enumerate(found[:most]):
        labels[at] = label
        boxes[at] = torch.tensor(box)
    return {"labels": labels, "boxes": boxes}
