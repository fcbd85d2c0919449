"""Montages: source next to edit, and a sheet of frames with a label for each row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ctxedit.media.geometry import resize
from ctxedit.media.scratch import release

_PAPER = (255, 255, 255)
_INK = (32, 32, 32)
_GAP = 4
_FONT_SIZE = 14
#: Long side of a contact sheet's largest tiles, in pixels.
MAX_TILE = 320


class Pictures:
    """A clip (F, H, W, 3) whose frames are made on demand.

    Args:
        count: F, at least 1.
        make: the frame (H, W, 3) of an index; all have one shape.
    """

    ndim = 4

    def __init__(self, count: int, make: Callable[[int], np.ndarray]) -> None:
        self._count, self._make = count, make
        first = make(0)
        self.shape, self.dtype = (count, *first.shape), first.dtype

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[np.ndarray]:
        return map(self._make, range(self._count))


def paired(a: np.ndarray, b: np.ndarray) -> Pictures:
    """As :func:`side_by_side`, a frame at a time; of mapped clips one frame is in memory."""
    if len(a) != len(b):
        raise ValueError(f"{len(a)} frames cannot stand beside {len(b)}")

    def make(index: int) -> np.ndarray:
        picture = side_by_side(a[index : index + 1], b[index : index + 1])[0]
        release(a, b)
        return picture

    return Pictures(len(a), make)


def side_by_side(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """`a` (source) at the left and `b` (edit) at the right of a white gap; both (F, H, W, 3) uint8.

    The lower one is enlarged to the height of the other. The gap is such that an even height goes with an
    even width, which players of H.264 like.

    Raises:
        ValueError: not the same number of frames.
    """
    if len(a) != len(b):
        raise ValueError(f"{len(a)} frames cannot stand beside {len(b)}")
    height = max(a.shape[1], b.shape[1])
    left, right = (resize(one, max(1, round(one.shape[2] * height / one.shape[1])), height) for one in (a, b))
    gap = max(2, height // 32)
    gap += (left.shape[2] + gap + right.shape[2]) % 2
    space = np.full((len(a), height, gap, 3), 255, np.uint8)
    return np.concatenate([left, space, right], axis=2)


def contact_sheet(
    rows: Sequence[tuple[str, np.ndarray]], columns: int = 8, min_tile: int = 128, max_tile: int = MAX_TILE
) -> np.ndarray:
    """One picture of several clips: a label and a row of frames for each.

    Of more than `columns` frames, evenly spaced ones are shown, the first and the last among them. Every
    tile has the same size, that of the first row's frames brought between `min_tile` and `max_tile` (long
    side; small frames are enlarged by a whole factor).

    Args:
        rows: label and (F, H, W, 3) uint8 frames; the sizes may differ between rows.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: no rows, a row without frames, or `columns` below 1.
    """
    if not rows or columns < 1 or any(len(frames) == 0 for _, frames in rows):
        raise ValueError("a contact sheet needs a column, a row, and a frame in every row")
    width, height = _tile_size(rows[0][1], min_tile, max_tile)
    shown = [_spread(frames, columns) for _, frames in rows]
    sheet_width = max(len(frames) for frames in shown) * (width + _GAP) + _GAP
    font = ImageFont.load_default(_FONT_SIZE)
    labels = [_wrap(label, font, sheet_width - 2 * _GAP) for label, _ in rows]
    line = _FONT_SIZE + 4
    sheet_height = sum(len(lines) * line + height + 2 * _GAP for lines in labels) + _GAP
    sheet = Image.new("RGB", (sheet_width, sheet_height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    top = _GAP
    for lines, frames in zip(labels, shown, strict=True):
        for text in lines:
            draw.text((_GAP, top), text, fill=_INK, font=font)
            top += line
        for column, frame in enumerate(frames):
            sheet.paste(_tile(frame, width, height), (_GAP + column * (width + _GAP), top))
        top += height + 2 * _GAP
    return np.asarray(sheet).copy()


def labelled_row(clips: Sequence[tuple[str, np.ndarray]]) -> np.ndarray:
    """A clip of several clips in a grid, each under its label.

    Args:
        clips: label and (F, H, W, 3) uint8 frames, equally many.

    Returns:
        (F, H, W, 3) uint8 RGB with even sides.

    Raises:
        ValueError: no clips, or not equally many frames.
    """
    if not clips or len({len(frames) for _, frames in clips}) != 1:
        raise ValueError("a row needs clips of equally many frames")
    pictures = []
    for i in range(len(clips[0][1])):
        tiles = [contact_sheet([(label, frames[i : i + 1])]) for label, frames in clips]
        height = max(len(tile) for tile in tiles)
        # Labels may wrap: the pictures stand on one line at the bottom.
        tiles = [np.pad(t, ((height - len(t), 0), (0, 0), (0, 0)), constant_values=255) for t in tiles]
        row = np.concatenate(tiles, axis=1)
        even = [(0, row.shape[0] % 2), (0, row.shape[1] % 2), (0, 0)]
        pictures.append(np.pad(row, even, constant_values=255))
    return np.stack(pictures)


def labelled_grid(clips: Sequence[tuple[str, np.ndarray]], columns: int = 4) -> np.ndarray:
    """As :func:`labelled_row`, in rows of at most ``columns`` clips."""
    starts = range(0, len(clips), max(1, columns))
    rows = [labelled_row(clips[i : i + max(1, columns)]) for i in starts]
    width = max(row.shape[2] for row in rows)
    sides = ((0, 0), (0, 0))
    wide = [np.pad(r, (*sides, (0, width - r.shape[2]), (0, 0)), constant_values=255) for r in rows]
    return np.concatenate(wide, axis=1)


def playing_grid(clips: Sequence[tuple[str, np.ndarray]], columns: int = 4) -> Pictures:
    """As :func:`labelled_grid`, a frame at a time."""
    if not clips or len({len(frames) for _, frames in clips}) != 1:
        raise ValueError("a grid needs clips of equally many frames")

    def frame(i: int) -> np.ndarray:
        return labelled_grid([(label, frames[i : i + 1]) for label, frames in clips], columns)[0]

    return Pictures(len(clips[0][1]), frame)


def _tile_size(frames: np.ndarray, least: int, most: int) -> tuple[int, int]:
    height, width = frames.shape[1:3]
    long = max(height, width)
    if long > most:
        return max(1, round(width * most / long)), max(1, round(height * most / long))
    factor = -(-least // long)
    return width * factor, height * factor


def _spread(frames: np.ndarray, columns: int) -> np.ndarray:
    if len(frames) <= columns:
        return frames
    return frames[np.rint(np.linspace(0, len(frames) - 1, columns)).astype(int)]


def _tile(frame: np.ndarray, width: int, height: int) -> Image.Image:
    """The frame as large as it fits into a tile, in its middle."""
    scale = min(width / frame.shape[1], height / frame.shape[0])
    size = (max(1, round(frame.shape[1] * scale)), max(1, round(frame.shape[0] * scale)))
    image = Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS)
    tile = Image.new("RGB", (width, height), _PAPER)
    tile.paste(image, ((width - size[0]) // 2, (height - size[1]) // 2))
    return tile


def _wrap(label: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Break a label into lines at most `width` pixels wide; a longer word stands alone."""
    lines: list[str] = []
    for word in label.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines
