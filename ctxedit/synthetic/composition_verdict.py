"""Reading the composition judge: the objects of a frame, and whether they match a caption."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from ctxedit.synthetic.composition_judge import (
    GRID,
    HUES,
    NAMES,
    PLACES,
    CompositionJudge,
    side_of,
    split,
)
from ctxedit.synthetic.compositions import COVERED, HUGE, TINY, Composition, Group, VisibleObject
from ctxedit.synthetic.tensors import to_tensor
from ctxedit.synthetic.vocabulary import BY_NAME

#: A peak of at least this confidence counts as an object.
_MIN_CONFIDENCE = 0.35
#: Detections whose centres are closer than this, in frame sizes, or than this share of the more confident
#: one's side, are duplicates.
_SAME, _SAME_SHARE = 1.6 / GRID, 0.36
#: Minimum distance, in frame sizes, of centres (left, right) or feet (behind) for a relation to hold.
_APART, _DEEPER = 0.12, 0.04


@dataclass(frozen=True)
class DetectedObject:
    """One object detected by the judge.

    Attributes:
        name: a key of ``BY_NAME``.
        colour: a key of ``COLOURS``; None if the object has no colour or it cannot be seen.
        x, y, side: middle and side of its square, in frame sizes.
        hidden: whether another object covers a part of it.
        confidence: the judge's confidence, in (0, 1).
    """

    name: str
    colour: str | None
    x: float
    y: float
    side: float
    hidden: bool
    confidence: float

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom of its square, in frame sizes."""
        half = self.side / 2
        return self.x - half, self.y - half, self.x + half, self.y + half


@dataclass(frozen=True)
class Detections:
    """The judge's output for a frame: objects, in order of confidence, and the background."""

    objects: tuple[DetectedObject, ...]
    background: str


def detected(drawn: VisibleObject) -> DetectedObject:
    """A drawn object as a perfect judge would detect it."""
    actor, covered = drawn.actor, drawn.covered > COVERED
    return DetectedObject(actor.name, actor.colour, drawn.x, drawn.y, drawn.scale, covered, 1.0)


@torch.no_grad()
def detect(judge: CompositionJudge, frames: NDArray[np.uint8]) -> list[Detections]:
    """The judge's output for RGB uint8 frames (F, 64, 64, 3)."""
    dense, background = judge(torch.stack([to_tensor(frame) for frame in frames]))
    confidence, colour, offset, side, hidden = split(dense)
    confidence = confidence.sigmoid()
    peaks = (confidence == F.max_pool2d(confidence, 3, 1, 1)) & (confidence >= _MIN_CONFIDENCE)
    detections = []
    for i in range(len(frames)):
        found = []
        for name, row, column in peaks[i].nonzero().tolist():
            at = (i, slice(None), row, column)
            middle = (torch.tensor([column, row]) + 0.5 + offset[at]) / GRID
            hue = HUES[int(colour[at].argmax())]
            shown = hue if hue != "none" and BY_NAME[NAMES[name]].colourable else None
            found.append(
                DetectedObject(
                    NAMES[name],
                    shown,
                    float(middle[0]),
                    float(middle[1]),
                    float(side_of(side[at])),
                    bool(hidden[at] > 0),
                    float(confidence[i, name, row, column]),
                )
            )
        detections.append(Detections(_distinct(found), PLACES[int(background[i].argmax())]))
    return detections


def _distinct(found: list[DetectedObject]) -> tuple[DetectedObject, ...]:
    """Non-maximum suppression: in order of confidence, without duplicates of more confident detections."""
    kept: list[DetectedObject] = []
    for one in sorted(found, key=lambda f: -f.confidence):
        if all(math.hypot(one.x - k.x, one.y - k.y) >= max(_SAME, _SAME_SHARE * k.side) for k in kept):
            kept.append(one)
    return tuple(kept)


@dataclass(frozen=True)
class Verdict:
    """Which parts of a composition are right in a frame.

    Attributes:
        groups: for each group, whether it is present with the right number, colour and size.
        extra: whether there are objects that the composition does not contain.
        relation: whether it holds; True if the composition has none.
    """

    groups: tuple[bool, ...]
    extra: bool
    relation: bool

    @property
    def objects(self) -> bool:
        """Whether every object has its colour, number and size, and there are no others."""
        return all(self.groups) and not self.extra

    @property
    def all_right(self) -> bool:
        return self.objects and self.relation


def judge(composition: Composition, objects: Sequence[DetectedObject]) -> Verdict:
    """Compare the detected objects with the composition."""
    counted = Counter((f.name, f.colour) for f in objects)
    wanted = Counter((g.name, g.colour) for g in composition.members)
    groups = tuple(
        counted[g.name, g.colour] == wanted[g.name, g.colour] and _sized(g, _of(g, objects))
        for g in composition.groups
    )
    return Verdict(groups, bool(counted.keys() - wanted.keys()), _related(composition, objects))


def _of(group: Group, objects: Sequence[DetectedObject]) -> list[DetectedObject]:
    return [f for f in objects if (f.name, f.colour) == (group.name, group.colour)]


def _sized(group: Group, found: Sequence[DetectedObject]) -> bool:
    if group.size == "tiny":
        return all(f.side < TINY for f in found)
    return group.size != "huge" or all(f.side > HUGE for f in found)


def _related(composition: Composition, objects: Sequence[DetectedObject]) -> bool:
    if composition.relation is None:
        return True
    first, second = (_of(g, objects) for g in composition.groups)
    if not first or not second:
        return False
    return all(holds(composition.relation, a, b) for a in first for b in second)


def holds(relation: str, a: DetectedObject, b: DetectedObject) -> bool:
    """Whether ``a`` stands in a relation of ``RELATIONS`` to ``b``.

    Left and right: the horizontal distance exceeds the vertical one. Above and below: the reverse, with an
    overlap of at most a quarter. Behind: their squares overlap, its feet are higher, and it does not hide a
    part of the other; outlines need not touch where squares do.
    """
    if relation in ("right of", "below", "in front of"):
        return holds({"right of": "left of", "below": "above", "in front of": "behind"}[relation], b, a)
    across, down = b.x - a.x, b.y - a.y
    if relation == "left of":
        return across >= _APART and across > abs(down)
    if relation == "above":
        return down >= _APART and down > abs(across) and a.box[3] - b.box[1] <= 0.25 * min(a.side, b.side)
    deeper = b.box[3] - a.box[3] >= _DEEPER
    overlap = min(a.box[2], b.box[2]) > max(a.box[0], b.box[0]) and a.box[3] > b.box[1]
    return deeper and overlap and (a.hidden or not b.hidden)
