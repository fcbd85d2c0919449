"""The figures of one edit in a comparison: every usual metric that applies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ctxedit.bench.listing import Clip, Target
from ctxedit.metrics import Edit, Metric, Networks
from ctxedit.metrics.evaluate import prepare, scores
from ctxedit.metrics.formulas import PSNR_MOST
from ctxedit.metrics.registry import metrics, named, usual
from ctxedit.metrics.scores.judged import answers
from ctxedit.models.clip import ClipScorer

#: Part of the key of a finished edit: figures of another version are measured again.
VERSION = 2
#: Kinds in which the rest lies outside the mask; for a new background, it lies inside.
_OUTSIDE = ("object", "colour", "count", "size", "relation", "other")

Values = Mapping[str, float | None]


@dataclass(frozen=True)
class Truth:
    """What an edit is compared with, at working size; masks as for the edit, not yet by kind.

    Attributes:
        source: RGB uint8 (F, h, w, 3).
        mask: (F, h, w) in [0, 1], the object; or None.
        ideal: RGB uint8 (F, h, w, 3); or None.
    """

    source: NDArray[np.uint8]
    mask: NDArray[np.float32] | None = None
    ideal: NDArray[np.uint8] | None = None


class Measure:
    """Measures edits; networks other than CLIP are loaded when they are first needed.

    Args:
        scorer: the CLIP model.
        chosen: keys of metrics to measure besides the usual ones.
        networks: those of further metrics, kept from one measurement to the next.
    """

    def __init__(
        self, scorer: ClipScorer, chosen: Sequence[str] = (), networks: Networks | None = None
    ) -> None:
        self.scorer = scorer
        self.networks = Networks(scorer) if networks is None else networks.with_clip(scorer)
        self.metrics = columns(chosen)

    def __call__(self, frames: NDArray[np.uint8], clip: Clip, target: Target, truth: Truth) -> Values:
        """Every metric for RGB uint8 frames (F, h, w, 3), and the judge's answers; None if it does not
        apply."""
        mask = _may_change(target.kind, truth.mask)
        edit = Edit(
            frames, self.networks, target.prompt, truth.source, clip.prompt, mask, truth.ideal,
            target.expect, target.kind, target.composition, target.changed,
        )  # fmt: skip
        found: dict[str, float | None] = scores(edit, self.metrics)
        found |= {f"judge_{question}": share for question, share in answers(edit).items()}
        return {key: _bounded(value) for key, value in found.items()}


def columns(chosen: Sequence[str] = ()) -> tuple[Metric, ...]:
    """The metrics of a comparison in order: the usual ones, and those of these keys.

    Raises:
        ConfigError: no metric of that key.
    """
    more = {one.key for one in named(chosen)} if chosen else set()
    return tuple(one for one in metrics() if "bench" in one.where or one.key in more)


def prepared(chosen: Sequence[str], device: torch.device, offline: bool) -> Networks:
    """Load the networks of all columns except CLIP's, so that missing ones are reported before the first
    edit.

    Raises:
        WeightsError, ConfigError: a network or a package that is not there.
    """
    networks = Networks(None, device, offline)
    prepare(columns(chosen), networks)
    return networks


def identity(chosen: Sequence[str] = ()) -> list[tuple[str, str, int]]:
    """What distinguishes measurements besides ``VERSION``: metrics other than the built-in usual ones."""
    usual_keys = {one.key for one in usual("bench") if one.builtin}
    return [(m.key, m.source, m.version) for m in columns(chosen) if m.key not in usual_keys or m.version > 1]


def mean_of(rows: Sequence[Values], key: str) -> float | None:
    """Mean of a figure over rows that have it."""
    values = [v for row in rows if (v := row.get(key)) is not None]
    return float(np.mean(values)) if values else None


def _may_change(kind: str, mask: NDArray[np.float32] | None) -> NDArray[np.float32] | None:
    """Where an edit of this kind may change the picture; None for everywhere or unknown."""
    if mask is None or kind == "style":
        return None
    return mask if kind in _OUTSIDE else 1 - mask


def _bounded(value: float | None) -> float | None:
    return None if value is None else min(float(value), PSNR_MOST)
