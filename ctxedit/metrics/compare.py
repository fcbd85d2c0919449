"""Any edit and its source: both read and brought to one size and number of frames, or refused."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctxedit.errors import ConfigError, InputError
from ctxedit.media.geometry import Fit, resize
from ctxedit.media.mask import read_mask
from ctxedit.media.probe import ClipInfo, probe
from ctxedit.media.read import read_frames
from ctxedit.media.scratch import scratch

#: Bytes of one clip that are held in memory; a larger one is read to the disk.
MOST_BYTES = 128 << 20
#: How far the shapes of edit and source may differ: rounding to multiples of 8 is within it, a crop is not.
_SHAPE_SLACK = 0.02


@dataclass(frozen=True, eq=False)
class Material:
    """What is scored: all frames RGB uint8 (F, H, W, 3) of one shape, the mask (F, H, W) in [0, 1]."""

    frames: NDArray[np.uint8]
    source: NDArray[np.uint8] | None = None
    mask: NDArray[np.float32] | None = None


def read_video(video: Path, frames: int | None = None, start: int = 0, stride: int = 1) -> NDArray[np.uint8]:
    """Frames of a clip to be scored; ``frames`` None is every one from ``start`` on, ``stride`` apart.

    Raises:
        InputError: an unreadable clip.
        OutputError: a clip that is read to the disk does not fit there.
        ConfigError: a count, start or stride out of range.
    """
    _check_stride(stride)
    info = probe(video)
    count = max(1, -(-(info.frames - start) // stride)) if frames is None else frames
    return read_frames(video, frames=count, start=start, stride=stride, store=_store).frames


def _store(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array for frames: in memory, or on disk where they are many."""
    if np.prod(shape) <= MOST_BYTES:
        return np.empty(shape, dtype)
    return scratch(Path(tempfile.gettempdir()), shape, dtype)


def read_pair(
    video: Path,
    source: Path,
    mask: Path | None = None,
    frames: int | None = None,
    start: int = 0,
    stride: int = 1,
    say: Callable[[str], None] = lambda text: None,
) -> Material:
    """An edit from its first frame on, and the source's frames that it was made from.

    Args:
        video: the edit.
        source: what it was made from; resized to the edit's size.
        mask: white may change; read along with the source.
        frames: how many; None is all of the edit's.
        start, stride: which frames of the *source* the edit's frames were made from.
        say: called with what was assumed.

    Raises:
        InputError: an unreadable clip; a source of another shape or with too few frames; a bad mask.
        ConfigError: as above.
    """
    _check_stride(stride)
    edit, original = probe(video), probe(source)
    _check_shapes(video, edit, source, original)
    count = edit.frames if frames is None else frames
    needed = start + (count - 1) * stride + 1
    if needed > original.frames:
        fits = max(0, -(-(original.frames - start) // stride))
        raise InputError(
            f"{video}: {_frames(count)} to score, but --start {start} --stride {stride} selects only "
            f"{fits} of the {original.frames} of {source}",
            f"--frames {fits} scores as many as there are" if fits else "use a smaller --start",
        )
    edited = read_video(video, count)
    height, width = edited.shape[1:3]
    compared = read_frames(
        source, frames=count, start=start, stride=stride, store=_store,
        each=lambda picture: resize(picture[None], width, height)[0],
    ).frames  # fmt: skip
    if needed < original.frames and stride == 1 and start == 0:
        say(
            f"{source} has {_frames(original.frames)}: the first {count} are compared; "
            "--start and --stride select the ones the edit was made from"
        )
    if (original.width, original.height) != (width, height):
        say(f"the source is resized from {original.width}×{original.height} to {width}×{height}")
    fit = Fit(original.width, original.height, width, height, width, height)
    where = None if mask is None else read_mask(mask, count, start, stride, fit, _store)
    return Material(edited, compared, where)


def _check_stride(stride: int) -> None:
    if stride < 1:
        raise ConfigError(f"--stride must be at least 1, not {stride}", "2 takes every other frame")


def _check_shapes(video: Path, edit: ClipInfo, source: Path, original: ClipInfo) -> None:
    width = original.width * edit.height / original.height
    if abs(width - edit.width) > max(1.0, _SHAPE_SLACK * edit.width):
        raise InputError(
            f"{video} is {edit.width}×{edit.height} and {source} is {original.width}×{original.height}: "
            "different aspect ratios cannot be compared pixel by pixel",
            "crop or scale the source the way the edit's method did, and give that file as --source",
        )


def _frames(count: int) -> str:
    return "1 frame" if count == 1 else f"{count} frames"
