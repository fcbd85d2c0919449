"""The clip as the model wants it: read, scaled, padded; and back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ctxedit.config import ClipConfig
from ctxedit.media.geometry import Fit, crop, pad, plan_fit, to_working
from ctxedit.media.read import Clip, read_frames


@dataclass(frozen=True)
class Prepared:
    """A clip at working size.

    Attributes:
        clip: the frames as read, at the source's size.
        fit: how sizes relate.
        frames: RGB uint8 (F, h, w, 3) at working size: what results are compared with.
        padded: the same, padded to the model's multiples.
    """

    clip: Clip
    fit: Fit
    frames: NDArray[np.uint8]
    padded: NDArray[np.uint8]

    def unpad(self, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Model-sized frames cropped back to working size."""
        return crop(frames, self.fit)


def prepare(path: Path, config: ClipConfig, resolution: int, multiple: int) -> Prepared:
    """Read the frames that the settings name and bring them to the model's size; errors as in media."""
    clip = read_frames(path, frames=config.frames, start=config.start, stride=config.stride)
    height, width = clip.frames.shape[1:3]
    fit = plan_fit(width, height, config.size or resolution, multiple)
    working = to_working(clip.frames, fit)
    return Prepared(clip, fit, working, pad(working, fit))
