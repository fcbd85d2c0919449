"""Sizes: from the source's to the model's and back, keeping the shape of the picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from ctxedit.errors import ConfigError


@dataclass(frozen=True)
class Fit:
    """How a source fits a model: scaled to the working size, then padded to what the model takes.

    Attributes:
        source_width, source_height: the source, upright, in square pixels.
        width, height: the working size; an edit has it.
        padded_width, padded_height: the working size rounded up to the model's multiple.
    """

    source_width: int
    source_height: int
    width: int
    height: int
    padded_width: int
    padded_height: int

    @property
    def scale(self) -> float:
        """Working size over source size, of the long side; above 1 the clip is enlarged."""
        return max(self.width, self.height) / max(self.source_width, self.source_height)

    @property
    def pad_left(self) -> int:
        """Columns added at the left; the rest of the padding is at the right."""
        return (self.padded_width - self.width) // 2

    @property
    def pad_top(self) -> int:
        """Rows added at the top; the rest of the padding is at the bottom."""
        return (self.padded_height - self.height) // 2


def plan_fit(width: int, height: int, target: int, multiple: int) -> Fit:
    """Fit a ``width`` x ``height`` source to a model of resolution `target`.

    The long side becomes `target`, the short side what keeps the aspect ratio, rounded to the nearest
    pixel: it is off by half a pixel at most, and the picture is never cropped or stretched to a fixed shape.
    Both sides are then padded up to `multiple`.

    Raises:
        ConfigError: a number below 1.
    """
    for name, number in (("width", width), ("height", height), ("--size", target), ("multiple", multiple)):
        if number < 1:
            raise ConfigError(f"{name} must be at least 1, not {number}")
    long = max(width, height)
    work_width = max(1, _divide(width * target, long))
    work_height = max(1, _divide(height * target, long))
    return Fit(
        width,
        height,
        work_width,
        work_height,
        -(-work_width // multiple) * multiple,
        -(-work_height // multiple) * multiple,
    )


def to_working(frames: np.ndarray, fit: Fit) -> np.ndarray:
    """Scale (F, H, W, 3) uint8 frames to the working size (Lanczos with antialiasing)."""
    return resize(frames, fit.width, fit.height)


def pad(frames: np.ndarray, fit: Fit) -> np.ndarray:
    """Pad (F, h, w, ...) of the working size to the padded size by repeating the edge; of any dtype."""
    _expect(frames, fit.width, fit.height)
    bottom = fit.padded_height - fit.height - fit.pad_top
    right = fit.padded_width - fit.width - fit.pad_left
    widths = [(0, 0), (fit.pad_top, bottom), (fit.pad_left, right)] + [(0, 0)] * (frames.ndim - 3)
    return np.pad(frames, widths, mode="edge")


def crop(frames: np.ndarray, fit: Fit) -> np.ndarray:
    """Cut (F, H, W, ...) of the padded size back to the working size; the inverse of ``pad``."""
    _expect(frames, fit.padded_width, fit.padded_height)
    top, left = fit.pad_top, fit.pad_left
    return frames[:, top : top + fit.height, left : left + fit.width]


def resize(frames: np.ndarray, width: int, height: int) -> np.ndarray:
    """Scale (F, H, W, 3) uint8 frames to ``width`` x ``height`` (Lanczos); as they are where they fit."""
    if frames.shape[1:3] == (height, width):
        return frames
    lanczos = Image.Resampling.LANCZOS
    return np.stack([np.asarray(Image.fromarray(frame).resize((width, height), lanczos)) for frame in frames])


def _divide(numerator: int, denominator: int) -> int:
    """The nearest integer, halves up, without floating point."""
    return (2 * numerator + denominator) // (2 * denominator)


def _expect(frames: np.ndarray, width: int, height: int) -> None:
    if frames.shape[1:3] != (height, width):
        raise ValueError(f"expected frames of {width}x{height}, got {frames.shape[2]}x{frames.shape[1]}")
