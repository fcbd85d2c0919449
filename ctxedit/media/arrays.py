"""Clips and masks given as arrays or PIL images: kept as lossless files, for runs refer to clips by path."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from ctxedit.errors import InputError
from ctxedit.media.probe import FOLDER_FPS
from ctxedit.media.stills import to_rgb
from ctxedit.media.write import write_clip

#: What the Python API takes for a clip.
ClipLike = str | Path | NDArray[np.uint8] | Image.Image | Sequence[Any]
_HINT = "give uint8 RGB of shape (frames, height, width, 3), a PIL image, or a list of either"


def clip_path(clip: ClipLike, place: Path, what: str = "clip") -> Path:
    """The path of a clip; frames are written below ``place``, once, under a name made of their content.

    One frame is a PNG, several are a folder of PNGs, which plays at 8 frames a second.

    Args:
        clip: a path; RGB uint8 (F, H, W, 3) or (H, W, 3); a PIL image; a sequence of either.
        place: the folder for what is written; made if needed.
        what: what errors call it.

    Raises:
        InputError: another shape or type, or no frames.
        OutputError: the place cannot be written.
    """
    if isinstance(clip, (str, Path)):
        return Path(clip)
    return _written(_frames(clip, what), place, what)


def mask_path(mask: ClipLike, place: Path) -> Path:
    """As :func:`clip_path` for a mask: bool or uint8 (F, H, W) or (H, W), where True or 255 may change."""
    if isinstance(mask, (str, Path)):
        return Path(mask)
    if not isinstance(mask, Image.Image):
        values = _stacked(mask, "mask")
        if values.dtype == bool:
            values = values.astype(np.uint8) * 255
        if values.ndim in (2, 3) and values.shape[-1] != 3:
            values = np.repeat(values[..., None], 3, -1)
        mask = values
    return _written(_frames(mask, "mask"), place, "mask")


def _frames(clip: Any, what: str) -> NDArray[np.uint8]:
    frames = _stacked(clip, what)
    if frames.ndim == 3:
        frames = frames[None]
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise InputError(f"the {what} is {frames.dtype} of shape {frames.shape}", _HINT)
    return frames


def _stacked(value: Any, what: str) -> NDArray[Any]:
    """One array of what may be a PIL image or a sequence of them."""

    def plain(one: Any) -> ArrayLike:
        return to_rgb(one) if isinstance(one, Image.Image) else one

    try:
        return np.asarray(plain(value) if not isinstance(value, (list, tuple)) else [plain(v) for v in value])
    except (ValueError, TypeError) as error:
        raise InputError(f"the {what} is not an array of frames: {error}", _HINT) from error


def _written(frames: NDArray[np.uint8], place: Path, what: str) -> Path:
    digest = hashlib.blake2b(repr(frames.shape).encode() + frames.tobytes(), digest_size=8).hexdigest()
    path = place / (f"{what}-{digest}.png" if len(frames) == 1 else f"{what}-{digest}")
    if not path.exists():
        place.mkdir(parents=True, exist_ok=True)
        if len(frames) == 1:
            from ctxedit.media.temporary import atomic

            with atomic(path, True) as temporary:
                Image.fromarray(frames[0]).save(temporary, "PNG")
        else:
            write_clip(path, frames, FOLDER_FPS)
    return path
