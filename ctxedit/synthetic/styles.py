"""Styles as deterministic image filters on single frames, RGB (H, W, 3) in [0, 1] to the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

#: Colours; float32, or float64 where numpy promotes.
Array = NDArray[np.floating[Any]]
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def _blur(image: Array, radius: float) -> Array:
    picture = Image.fromarray((np.clip(image, 0, 1) * 255).astype(np.uint8))
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(radius)), np.float32) / 255


def _black_and_white(image: Array) -> Array:
    return np.repeat((image @ _LUMA)[..., None], 3, axis=2)


def _pencil_sketch(image: Array) -> Array:
    """Colour dodge of the grey image with its blurred negative, which leaves lines on paper."""
    grey = image @ _LUMA
    soft = _blur(grey, 2.0 * image.shape[0] / 64)
    lines = np.clip(grey / np.maximum(soft, 0.05), 0, 1) ** 2
    tone = np.clip(0.80 + 0.22 * grey, 0, 1)
    paper = np.array([0.98, 0.97, 0.93], np.float32)
    return (lines * tone)[..., None] * paper


def _pixel_art(image: Array) -> Array:
    """Blocks of two pixels (at a side of 64) with five levels per channel."""
    block = max(2, image.shape[0] // 32)
    h, w = image.shape[0] // block, image.shape[1] // block
    small = image[: h * block, : w * block].reshape(h, block, w, block, 3).mean((1, 3))
    # More contrast first, for the palette of an old console.
    small = np.round(np.clip((small - 0.5) * 1.35 + 0.5, 0, 1) * 4) / 4
    blocks: Array = np.kron(small, np.ones((block, block, 1), np.float32)).astype(np.float32)
    return blocks


def _watercolor(image: Array) -> Array:
    """Pigment that runs (blur), pools at edges (dark rims) and is translucent (lighter)."""
    wet = _blur(image, 0.9 * image.shape[0] / 64)
    rim = np.abs(wet - _blur(image, 2.0 * image.shape[0] / 64)).mean(2, keepdims=True)
    grey = (wet @ _LUMA)[..., None]
    pale = 0.36 + 0.64 * (grey + 1.1 * (wet - grey))
    paper = np.array([1.0, 0.985, 0.95], np.float32)
    painting: Array = np.clip(pale * paper - 0.8 * rim, 0, 1).astype(np.float32)
    return painting


def _neon(image: Array) -> Array:
    """Edges glowing in the image's hues on a darkened image."""
    soft = _blur(image, 0.6 * image.shape[0] / 64)
    down, right = np.gradient(soft, axis=(0, 1))
    edge = np.clip(np.hypot(down, right).max(2, keepdims=True) * 4.5 * image.shape[0] / 64, 0, 1)
    # Hues are saturated; greys glow pale cyan.
    high, low = image.max(2, keepdims=True), image.min(2, keepdims=True)
    hue = (image - low) / np.maximum(high - low, 1e-3)
    grey = np.clip(1 - 5 * (high - low), 0, 1)
    glow = hue * (1 - grey) + np.array([0.55, 0.95, 1.0], np.float32) * grey
    neon: Array = np.clip(0.22 * image**1.5 + edge * glow, 0, 1).astype(np.float32)
    return neon


def _sepia(image: Array) -> Array:
    """Brown tones of low contrast with a vignette, like an old print."""
    grey = 0.15 + 0.75 * (image @ _LUMA)
    line = np.linspace(-1, 1, image.shape[0], dtype=np.float32)
    corner = 1 - 0.28 * np.clip(line[None] ** 2 + line[:, None] ** 2 - 0.6, 0, 1)
    tone = np.array([1.0, 0.80, 0.55], np.float32)
    toned = (grey * corner)[..., None] * tone + np.array([0.06, 0.03, 0.0], np.float32)
    sepia: Array = toned.astype(np.float32)
    return sepia


FILTERS: dict[str, Callable[[Array], Array]] = {
    "plain": lambda image: image,
    "black and white": _black_and_white,
    "pencil sketch": _pencil_sketch,
    "pixel art": _pixel_art,
    "watercolor": _watercolor,
    "neon": _neon,
    "sepia": _sepia,
}
