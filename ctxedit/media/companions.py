"""Images that accompany a clip, one for each frame: masks, and control maps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctxedit.errors import InputError
from ctxedit.media.geometry import Fit, resize
from ctxedit.media.probe import probe
from ctxedit.media.read import Store, read_frames


def read_companion(
    path: str | Path,
    what: str,
    frames: int,
    start: int,
    stride: int,
    size: Fit,
    each: Callable[[NDArray[np.uint8]], NDArray[Any]] | None = None,
    store: Store = np.empty,
) -> NDArray[Any]:
    """Read a picture for each of `frames` frames of a clip that is read with the same `start` and `stride`.

    One image serves every frame. A video or folder of exactly `frames` pictures gives one to each frame; a
    longer one runs along with the source and is read at the source's indices. What is transparent is black.

    Args:
        path: image, video or folder.
        what: what it is called in errors.
        frames, start, stride: as for ``read_frames``.
        size: of the clip; the pictures must have the source's shape, at any scale.
        each: what is kept of every RGB uint8 (H, W, 3) picture as it is read; scaled to the working size
            where not given.
        store: as for ``read_frames``.

    Returns:
        RGB uint8 (F, h, w, 3) at working size, or what ``each`` made of the pictures.

    Raises:
        InputError: not readable, of another shape than the source, or too short.
    """
    info = probe(path)
    error_in_pixels = abs(info.width * size.source_height - info.height * size.source_width)
    if error_in_pixels > max(size.source_width, size.source_height, info.width, info.height):
        raise InputError(
            f"the {what} {path} is {info.width}x{info.height}, but the clip is "
            f"{size.source_width}x{size.source_height}: their aspect ratios differ",
            f"make the {what} from a frame of the clip, at its size or with the same aspect ratio",
        )
    each = each or (lambda picture: resize(picture[None], size.width, size.height)[0])
    if info.frames == 1:
        one = read_frames(path, frames=1, background=0, each=each).frames[0]
        return np.broadcast_to(one, (frames, *one.shape))
    if info.frames == frames:
        start, stride = 0, 1
    return read_frames(
        path, frames=frames, start=start, stride=stride, background=0, each=each, store=store
    ).frames
