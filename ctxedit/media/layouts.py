"""A layout in a JSON file: labelled boxes in a picture, and boxes drawn over one.

::

    {"size": [64, 64], "text": "on the beach",
     "boxes": [{"label": "tiger", "box": [4, 20, 34, 56]}, {"label": "car", "box": [38, 30, 62, 58]}]}

``size`` is width and height of the picture that the boxes are measured in, ``box`` left, top, right, bottom.
``text`` says what else the picture shows, and may be left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ctxedit.errors import InputError
from ctxedit.files import read_json

Box = tuple[float, float, float, float]
_HINT = 'it holds {"size": [W, H], "boxes": [{"label": "cat", "box": [x0, y0, x1, y1]}], "text": "…"}'
_HUES = ((230, 60, 50), (60, 120, 230), (40, 170, 80), (240, 180, 30), (160, 80, 200), (30, 180, 190))


@dataclass(frozen=True)
class Layout:
    """Labelled boxes.

    Attributes:
        boxes: label, and left, top, right, bottom as shares of the picture's sides.
        text: what else the picture shows; may be empty.
    """

    boxes: tuple[tuple[str, Box], ...]
    text: str = ""


def read_layout(file: Path, clip: tuple[int, int] | None = None) -> Layout:
    """Read a layout.

    Args:
        file: the JSON file.
        clip: width and height of the clip that the boxes are of; None for a picture, which is square.

    Raises:
        InputError: a broken file, boxes that are empty or outside, or a layout of another shape.
    """
    table = read_json(file, "layout")
    if not isinstance(table, dict) or not isinstance(table.get("boxes"), list):
        raise InputError(f"{file} is not a layout: it has no list of boxes", _HINT)
    if unknown := sorted(set(table) - {"size", "boxes", "text"}):
        raise InputError(f"{file}: unknown key {unknown[0]!r}", _HINT)
    size, text = table.get("size"), table.get("text", "")
    if not isinstance(size, list) or not _numbers(size, 2) or min(size) <= 0:
        raise InputError(f"{file}: size = {size!r} is not a width and a height", _HINT)
    if clip is not None and abs(size[0] * clip[1] - size[1] * clip[0]) > max(*size, *clip):
        raise InputError(
            f"{file}: size is {size[0]:g}×{size[1]:g}, but the clip is "
            f"{clip[0]}×{clip[1]}: their aspect ratios differ",
            "give the boxes in pixels of a frame of the clip",
        )
    if clip is None and size[0] != size[1]:
        raise InputError(
            f"{file}: size is {size[0]:g}×{size[1]:g}, but generated images are square",
            "give the boxes in a square image",
        )
    if not isinstance(text, str):
        raise InputError(f"{file}: text is not a string", _HINT)
    if not table["boxes"]:
        raise InputError(f"{file} has no boxes", "an image of text alone needs no --layout")
    return Layout(tuple(_box(file, i, one, size) for i, one in enumerate(table["boxes"], 1)), text)


def _box(file: Path, number: int, one: Any, size: list[float]) -> tuple[str, Box]:
    where = f"{file}: box {number}"
    if not isinstance(one, dict) or set(one) != {"label", "box"} or not isinstance(one["label"], str):
        raise InputError(f"{where} is not a label and a box", _HINT)
    if not _numbers(one["box"], 4):
        raise InputError(f"{where} ({one['label']}) is not four numbers: {one['box']!r}", _HINT)
    x0, y0, x1, y1 = one["box"]
    if x1 <= x0 or y1 <= y0:
        raise InputError(
            f"{where} ({one['label']}) is empty: {one['box']}", "a box is left, top, right, bottom"
        )
    if x0 < 0 or y0 < 0 or x1 > size[0] or y1 > size[1]:
        raise InputError(
            f"{where} ({one['label']}) is outside the image of {size[0]:g}×{size[1]:g}: {one['box']}",
            "move it inside, or correct size",
        )
    return one["label"], (x0 / size[0], y0 / size[1], x1 / size[0], y1 / size[1])


def _numbers(value: Any, count: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) == count
        and all(type(v) in (int, float) and math.isfinite(v) for v in value)
    )


def draw_boxes(picture: NDArray[np.uint8], layout: Layout, side: int = 192) -> NDArray[np.uint8]:
    """A picture (H, W, 3), enlarged to at least ``side``, with the layout's boxes and labels over it."""
    factor = max(1, -(-side // min(picture.shape[:2])))
    image = Image.fromarray(picture).resize(
        (picture.shape[1] * factor, picture.shape[0] * factor), Image.Resampling.LANCZOS
    )
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(max(10, image.height // 16))
    for i, (label, (x0, y0, x1, y1)) in enumerate(layout.boxes):
        hue = _HUES[i % len(_HUES)]
        corners = (x0 * image.width, y0 * image.height, x1 * image.width - 1, y1 * image.height - 1)
        draw.rectangle(corners, outline=hue, width=max(1, image.height // 96))
        place = (corners[0] + 3, corners[1] + 2)
        draw.rectangle(draw.textbbox(place, label, font=font), fill=hue)
        draw.text(place, label, fill="white", font=font)
    return np.asarray(image).copy()
