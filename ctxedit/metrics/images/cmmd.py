"""CMMD: maximum mean discrepancy of CLIP embeddings (Jayasumana et al. 2024, "Rethinking FID", section 5)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ctxedit.metrics.intervals import GROUPS, groups_of, jackknife

#: The paper's bandwidth and factor.
SIGMA, SCALE = 10.0, 1000.0
_ROWS = 4096


def cmmd(generated: Tensor, reference: Tensor) -> tuple[float, tuple[float, float]]:
    """CMMD of unit-length embeddings (N, D), (M, D), and its interval; 0 for equal sets.

    The Gaussian kernel's mean over all pairs, each image with itself included, as in the paper. Both sets
    need at least ``GROUPS`` images.
    """
    parts = [(generated.double(), groups_of(len(generated))), (reference.double(), groups_of(len(reference)))]
    (x, gx), (y, gy) = parts
    sums = [_sums(x, x, gx, gx), _sums(y, y, gy, gy), _sums(x, y, gx, gy)]
    sizes = [np.bincount(groups, minlength=GROUPS) for groups in (gx, gy)]

    def value(keep: np.ndarray) -> float:
        n, m = (float(size[keep].sum()) for size in sizes)
        xx, yy, xy = (float(part[np.ix_(keep, keep)].sum()) for part in sums)
        return SCALE * (xx / n**2 + yy / m**2 - 2 * xy / (n * m))

    whole = value(np.arange(GROUPS))
    without = [value(np.delete(np.arange(GROUPS), group)) for group in range(GROUPS)]
    return whole, jackknife(whole, without)


def _sums(x: Tensor, y: Tensor, gx: np.ndarray, gy: np.ndarray) -> np.ndarray:
    """The kernel summed over the pairs of each two groups: (GROUPS, GROUPS)."""
    out = torch.zeros(GROUPS, GROUPS, dtype=torch.float64)
    rows, columns = torch.from_numpy(gx), torch.from_numpy(gy)
    for i in range(0, len(x), _ROWS):
        for j in range(0, len(y), _ROWS):
            a, b = x[i : i + _ROWS], y[j : j + _ROWS]
            squared = a.square().sum(1)[:, None] + b.square().sum(1)[None] - 2 * a @ b.T
            kernel = torch.exp(-squared / (2 * SIGMA**2))
            by_row = torch.zeros(GROUPS, len(b), dtype=torch.float64).index_add_(
                0, rows[i : i + _ROWS], kernel
            )
            out.index_add_(1, columns[j : j + _ROWS], by_row)
    return out.numpy()
