"""Intervals: the bootstrap for means, Wilson's for shares."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from ctxedit.metrics.intervals import LEVEL, wilson

__all__ = ["LEVEL", "Interval", "bootstrap", "wilson"]


@dataclass(frozen=True)
class Interval:
    """An estimate and its interval; ``low`` and ``high`` are None for one clip.

    Attributes:
        mean: of ``count`` values.
        groups: clips that the values come from.
    """

    mean: float
    low: float | None
    high: float | None
    count: int
    groups: int


def bootstrap(
    values: Sequence[float], groups: Sequence[Hashable], draws: int = 4000, seed: int = 0
) -> Interval | None:
    """Mean and percentile bootstrap interval (Efron and Tibshirani 1993, section 13.3) over whole groups.

    The edits of one clip share its tuning and are not independent: resampling them individually would give an
    interval that is too narrow. So clips are resampled, each with all its edits.

    Args:
        values: finite numbers; none gives None.
        groups: the clip of each value.
        draws: resamples.
        seed: of the resampling.
    """
    if len(values) != len(groups):
        raise ValueError(f"{len(values)} values, {len(groups)} groups")
    if not values:
        return None
    names = sorted(set(groups), key=str)
    place = {name: i for i, name in enumerate(names)}
    sums, counts = np.zeros(len(names)), np.zeros(len(names))
    for value, group in zip(values, groups, strict=True):
        sums[place[group]] += value
        counts[place[group]] += 1
    mean = float(sums.sum() / counts.sum())
    if len(names) < 2:
        return Interval(mean, None, None, len(values), len(names))
    drawn = np.random.default_rng(seed).integers(len(names), size=(draws, len(names)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(mean, float(low), float(high), len(values), len(names))
