"""Masks: where an edit may change the picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from ctxedit.errors import InputError
from ctxedit.media.geometry import Fit
from ctxedit.media.probe import probe
from ctxedit.media.read import read_frames

# Levels that a lossy video makes of black and of white.
_BLACK, _WHITE = 8, 247


def read_mask(path: str | Path, frames: int, start: int, stride: int, size: Fit) -> np.ndarray:
    """Read a mask for `frames` frames of a clip read with the same `start` and `stride`.

    White may change, black stays, grey is between; what is transparent counts as black. One image serves
    every frame. A video or folder of exactly `frames` pictures gives one to each frame; a longer one runs
    beside the source and is read at the source's indices.

    Returns:
        (F, h, w) float32 in [0, 1], of the working size of `size`.

    Raises:
        InputError: not readable, of another shape than the source, too short, or black all over.
    """
    info = probe(path)
    error_in_pixels = abs(info.width * size.source_height - info.height * size.source_width)
    if error_in_pixels > max(size.source_width, size.source_height, info.width, info.height):
        raise InputError(
            f"the mask {path} is {info.width}x{info.height}, of another shape than the clip's "
            f"{size.source_width}x{size.source_height}",
            "draw the mask on a frame of the clip, at its size or scaled with its aspect ratio",
        )
    if info.frames == 1:
        pictures = np.repeat(read_frames(path, frames=1, background=0).frames, frames, axis=0)
    elif info.frames == frames:
        pictures = read_frames(path, frames=frames, background=0).frames
    else:
        pictures = read_frames(path, frames=frames, start=start, stride=stride, background=0).frames
    mask = np.stack([_working(picture, size) for picture in pictures])
    if not mask.any():
        raise InputError(
            f"the mask {path} is black all over: nothing may change", "white marks what may change"
        )
    return mask


def _working(picture: np.ndarray, size: Fit) -> np.ndarray:
    """(H, W, 3) uint8 to (h, w) float32; the filter widens with the reduction, so edges come out soft."""
    grey = Image.fromarray(picture).convert("L").resize((size.width, size.height), Image.Resampling.BILINEAR)
    levels = (np.asarray(grey, np.float32) - _BLACK) / (_WHITE - _BLACK)
    return np.clip(levels, 0.0, 1.0)
