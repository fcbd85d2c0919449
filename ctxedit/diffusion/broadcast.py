"""How a level, one number or one number a sample, meets a batch of any shape."""

from __future__ import annotations

import torch
from torch import Tensor

Level = float | Tensor
"""An alpha or sigma (or a guidance scale): a float, a 0-d tensor, or one value a sample, (B,)."""


def as_level(level: Level) -> Tensor:
    """A level as a tensor, floats in float64, so that coefficients are combined at full precision."""
    return level if isinstance(level, Tensor) else torch.tensor(level, dtype=torch.float64)


def positive(level: Level, name: str) -> Tensor:
    """``as_level`` for a level that will be divided by.

    Raises:
        ValueError: if any value is zero, negative or NaN.
    """
    level = as_level(level)
    if not bool((level > 0).all()):
        raise ValueError(f"{name} must be positive here, not {level.tolist()}")
    return level


def per_sample(level: Level, like: Tensor) -> Tensor:
    """Shape a level so that it multiplies ``like`` sample by sample, in ``like``'s dtype and on its device.

    Args:
        level: float, 0-d, (1,) or (B,).
        like: (B, ...), at least one dimension if ``level`` is (B,).

    Returns:
        0-d, or (B, 1, ..., 1) with as many dimensions as ``like``.

    Raises:
        ValueError: if ``level`` has another shape. Trailing dimensions are never matched by accident.
    """
    level = as_level(level).to(like.dtype).to(like.device)
    if level.numel() == 1 and level.ndim <= 1:
        return level.reshape(())
    if level.shape != like.shape[:1]:
        raise ValueError(f"a level of shape {tuple(level.shape)} does not fit a batch of {tuple(like.shape)}")
    return level.reshape(-1, *[1] * (like.ndim - 1))
