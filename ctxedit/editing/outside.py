"""Outside a person's mask an edit is the source: at working size, and at every size that it is written in."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ctxedit.editing.parts import Parts
from ctxedit.media.geometry import resize
from ctxedit.media.mask import read_mask
from ctxedit.media.read import read_frames
from ctxedit.media.scratch import release


def outside(
    edited: NDArray[np.uint8], source: NDArray[np.uint8], mask: NDArray[np.float32]
) -> NDArray[np.uint8]:
    """Outside the mask the pixels are the source's own, not the autoencoder's.

    Args:
        edited, source: RGB uint8 (F, h, w, 3).
        mask: (F, h, w) in [0, 1], 1 where the edit is.
    """
    inside = mask[..., None]
    return np.rint(edited * inside + source * (1 - inside)).astype(np.uint8)


def paste_source(parts: Parts, frames: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    """Write frames into ``out`` at its size, with the source's pixels outside the mask.

    Source and mask are read again and scaled to that size once; where it is the source's own, its pixels are
    taken as they are. One frame at a time is in memory, and the mask, which is on disk for a long clip.

    Args:
        parts: the clip and its mask; there must be one.
        frames: RGB uint8 (F, h, w, 3) of any size; may be mapped, and may be ``out``.
        out: RGB uint8 (F, H, W, 3).
    """
    height, width = out.shape[1:3]
    request, span = parts.request, parts.config.clip
    assert request.mask is not None
    fit = replace(parts.prepared.fit, width=width, height=height)
    mask = read_mask(request.mask, span.frames, span.start, span.stride, fit, parts.store, may_be_black=True)
    places = iter(range(len(frames)))

    def paste(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        one = slice(place := next(places), place + 1)
        edited, source = (resize(p, width, height) for p in (frames[one], picture[None]))
        out[one] = outside(edited, source, mask[one])
        release(frames, out, mask)
        return picture[:1, :1]

    read_frames(request.clip, frames=span.frames, start=span.start, stride=span.stride, each=paste)


def at_source_size(parts: Parts, frames: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
    """Frames at the source's size with its pixels outside the mask; None where scaling them is enough."""
    fit = parts.prepared.fit
    size = fit.source_height, fit.source_width
    if parts.request.mask is None or frames.shape[1:3] == size:
        return None
    out = parts.store((len(frames), *size, 3), np.uint8)
    paste_source(parts, frames, out)
    return out
