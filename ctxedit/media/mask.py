"""Masks: where an edit may change the picture."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from PIL import Image

from ctxedit.errors import InputError
from ctxedit.media.companions import read_companion
from ctxedit.media.geometry import Fit
from ctxedit.media.layouts import read_layout
from ctxedit.media.read import Store

# Levels that a lossy video makes of black and of white.
_BLACK, _WHITE = 8, 247


def read_mask(
    path: str | Path, frames: int, start: int, stride: int, size: Fit, store: Store = np.empty,
    may_be_black: bool = False,
) -> np.ndarray:  # fmt: skip
    """Read a mask for `frames` frames of a clip read with the same `start` and `stride`.

    A layout (``.json``, see :mod:`ctxedit.media.layouts`) is white in its boxes, in every frame. Of pictures,
    white may change, black stays, grey is between; what is transparent counts as black. One image serves
    every frame. A video or folder of exactly `frames` pictures gives one to each frame; a longer one runs
    along with the source and is read at the source's indices. ``store`` is as for ``read_frames``.
    ``may_be_black``: take a mask that lets nothing change, which was checked at another size.

    Returns:
        (F, h, w) float32 in [0, 1], of the working size of `size`.

    Raises:
        InputError: not readable, of another shape than the source, too short, or black all over.
    """
    if Path(path).suffix.lower() == ".json":
        return _of_layout(Path(path), frames, size)
    mask = read_companion(
        path, "mask", frames, start, stride, size, lambda picture: _working(picture, size), store
    )
    if not may_be_black and not any(frame.any() for frame in mask):
        raise InputError(
            f"the mask {path} is completely black, so nothing may change", "white marks what may change"
        )
    return mask


def _of_layout(path: Path, frames: int, size: Fit) -> np.ndarray:
    """Every pixel that a box covers, in part at least; one picture for all frames."""
    layout = read_layout(path, (size.source_width, size.source_height))
    mask = np.zeros((size.height, size.width), np.float32)
    for _, (left, top, right, bottom) in layout.boxes:
        rows = slice(math.floor(top * size.height), math.ceil(bottom * size.height))
        mask[rows, math.floor(left * size.width) : math.ceil(right * size.width)] = 1
    return np.broadcast_to(mask, (frames, *mask.shape))


def _working(picture: np.ndarray, size: Fit) -> np.ndarray:
    """(H, W, 3) uint8 to (h, w) float32; the filter widens with the reduction, so edges come out soft."""
    grey = Image.fromarray(picture).convert("L").resize((size.width, size.height), Image.Resampling.BILINEAR)
    levels = (np.asarray(grey, np.float32) - _BLACK) / (_WHITE - _BLACK)
    return np.clip(levels, 0.0, 1.0)
