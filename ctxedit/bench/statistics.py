"""Intervals: the bootstrap for means, Wilson's for shares."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

#: Of every interval here.
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate and its interval; ``low`` and ``high`` are None for one clip, which says nothing of it.

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

    The edits of one clip share its tuning and are not independent: drawn one by one they would feign an
    interval that is too narrow. So clips are drawn, each with all of its edits.

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


def wilson(wins: float, count: int) -> tuple[float, float]:
    """Interval of a share ``wins / count`` (Wilson 1927, score interval), in [0, 1]; (0, 1) of nothing."""
    if count == 0:
        return 0.0, 1.0
    if not 0 <= wins <= count:
        raise ValueError(f"{wins} of {count}")
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    share = wins / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)
