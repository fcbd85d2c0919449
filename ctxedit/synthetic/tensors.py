"""Frames as tensors."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def to_tensor(frame: NDArray[np.uint8]) -> Tensor:
    """RGB uint8 (H, W, 3) to float32 (3, H, W) in [−1, 1]."""
    return torch.from_numpy(frame).permute(2, 0, 1).float() / 127.5 - 1


def to_frame(image: Tensor) -> NDArray[np.uint8]:
    """The inverse of :func:`to_tensor`."""
    frame: NDArray[np.uint8] = ((image.permute(1, 2, 0) + 1) * 127.5).round().to(torch.uint8).numpy()
    return frame
