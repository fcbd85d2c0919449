"""The clip as the model wants it: read, scaled, padded; and back."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ctxedit.config import ClipConfig
from ctxedit.errors import counted
from ctxedit.media.geometry import Fit, crop, pad, plan_fit, resize, to_working
from ctxedit.media.probe import ClipInfo, probe
from ctxedit.media.read import Clip, Store, read_frames
from ctxedit.models.captioner import pick_frames

#: Longer sides of frames to be captioned are reduced to this: captioners look at a few hundred pixels.
_CAPTIONED = 1024


@dataclass(frozen=True)
class Prepared:
    """A clip at working size.

    Attributes:
        clip: the frames at working size, and what is known of the source.
        fit: how sizes relate.
        frames: RGB uint8 (F, h, w, 3) at working size: what results are compared with.
    """

    clip: Clip
    fit: Fit
    frames: NDArray[np.uint8]

    @property
    def padded(self) -> NDArray[np.uint8]:
        """The frames padded to the model's multiples."""
        return pad(self.frames, self.fit)

    def unpad(self, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Model-sized frames cropped back to working size."""
        return crop(frames, self.fit)


def prepare(
    path: Path, config: ClipConfig, resolution: int, multiple: int, store: Store = np.empty
) -> Prepared:
    """Read the frames that the settings name and bring them to the model's size; errors as in media.

    ``store`` is as for ``read_frames``.
    """
    info = probe(path)
    fit = plan_fit(info.width, info.height, config.size or resolution, multiple)
    clip = read_working(path, config, fit, store)
    return Prepared(clip, fit, clip.frames)


def fit_span(path: Path, config: ClipConfig, given: Collection[str]) -> tuple[ClipConfig, str | None]:
    """Reduce the number of frames to what the clip has; values that the user gave are kept.

    Args:
        path: the clip.
        config: the settings.
        given: which of ``frames`` and ``stride`` a person gave. They are left to be refused.

    Returns:
        The settings to use, and what was changed as a sentence, or None.

    Raises:
        InputError: the clip cannot be read.
    """
    info = probe(path)
    there, frames, stride = info.frames - config.start, config.frames, config.stride
    if not frames:  # all: every frame, unless the user gave a stride
        stride = stride if "stride" in given else 1
        return replace(config, frames=max(1, (there - 1) // stride + 1), stride=stride), None
    if there < 1 or (frames - 1) * stride < there:
        return config, None
    if "stride" not in given:
        stride = max(1, min(stride, (there - 1) // max(1, frames - 1)))
    if "frames" not in given:
        frames = min(frames, (there - 1) // stride + 1)
    if (frames, stride) == (config.frames, config.stride):
        return config, None
    fitted = replace(config, frames=frames, stride=stride)
    if info.kind == "image":
        return fitted, f"{path.name} is an image: a clip of 1 frame"
    used = counted(frames, "frame")
    wanted = f"{config.frames} with stride {config.stride}"
    has = counted(info.frames, "frame")
    return fitted, f"{path.name} has {has}: using {used} with stride {stride} instead of {wanted}"


def read_working(path: Path, config: ClipConfig, fit: Fit, store: Store = np.empty) -> Clip:
    """Read the frames that the settings name at working size; one at a time is held at the source's."""
    return read_frames(
        path,
        frames=config.frames,
        start=config.start,
        stride=config.stride,
        each=lambda picture: to_working(picture[None], fit)[0],
        store=store,
    )


def read_for_caption(path: Path, config: ClipConfig) -> Clip:
    """Those of the settings' frames that are captioned: of the source's size, unless that is very large."""
    width, height = captioned_size(probe(path))
    return read_frames(
        path,
        frames=config.frames,
        start=config.start,
        stride=config.stride,
        each=lambda picture: resize(picture[None], width, height)[0],
        only=pick_frames(config.frames),
    )


def check_readable(path: Path, config: ClipConfig) -> Clip:
    """Read the frames that the settings name and discard them, to find damaged ones.

    Returns:
        What is known of the clip and of its times; the frames are of one pixel.
    """
    return read_frames(
        path, frames=config.frames, start=config.start, stride=config.stride,
        each=lambda picture: picture[:1, :1],
    )  # fmt: skip


def captioned_size(info: ClipInfo) -> tuple[int, int]:
    """Width and height of the frames that :func:`read_for_caption` gives."""
    fit = plan_fit(info.width, info.height, min(_CAPTIONED, max(info.width, info.height)), 1)
    return fit.width, fit.height
