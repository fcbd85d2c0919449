"""Intervals at 95 % for figures of image sets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

#: Of every interval here.
LEVEL = 0.95
#: The normal quantile of it.
NORMAL = NormalDist().inv_cdf((1 + LEVEL) / 2)
#: Groups of the jackknife, and Student's quantile for one fewer degrees of freedom.
GROUPS = 10
STUDENT = 2.262157

Bounds = tuple[float, float] | None


def wilson(wins: float, count: int) -> tuple[float, float]:
    """Interval of a share ``wins / count`` (Wilson 1927, score interval), in [0, 1]; (0, 1) for no trials."""
    if count == 0:
        return 0.0, 1.0
    if not 0 <= wins <= count:
        raise ValueError(f"{wins} of {count}")
    z = NORMAL
    share = wins / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    # Rounding may put an end of 0 or 1 on the wrong side of the share.
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))


def groups_of(count: int, seed: int = 0) -> np.ndarray:
    """A group 0 … GROUPS − 1 for each of ``count`` images, at random, of nearly equal size: (count,)."""
    return np.random.default_rng(seed).permutation(np.arange(count) % GROUPS)


def jackknife(value: float, without: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Delete-a-group jackknife (Efron and Tibshirani 1993, section 11.7) around ``value``.

    It suits figures that depend on the number of images, such as FID: a bootstrap sample repeats images,
    which raises FID, while one tenth fewer images hardly change it.

    Args:
        value: the figure of all images.
        without: the figure without the images of each group, (GROUPS,).
    """
    left = np.asarray(without, np.float64)
    if left.shape != (GROUPS,):
        raise ValueError(f"{left.shape} is not ({GROUPS},)")
    error = math.sqrt((GROUPS - 1) / GROUPS * float(((left - left.mean()) ** 2).sum()))
    return value - STUDENT * error, value + STUDENT * error


def of_mean(values: Sequence[float] | np.ndarray) -> Bounds:
    """Normal interval of the mean of independent values; None for fewer than two."""
    array = np.asarray(values, np.float64)
    if len(array) < 2:
        return None
    half = NORMAL * float(array.std(ddof=1)) / math.sqrt(len(array))
    return float(array.mean()) - half, float(array.mean()) + half
