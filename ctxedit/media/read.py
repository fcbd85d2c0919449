"""Reading frames: a few of them, by index, out of a clip of any length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np

from ctxedit.errors import ConfigError, InputError
from ctxedit.media import stills
from ctxedit.media.decode import rgb_frames
from ctxedit.media.probe import ClipInfo, probe
from ctxedit.media.timeline import scan

BACKENDS = ("auto", "decord", "pyav")


@dataclass(frozen=True, eq=False)
class Clip:
    """Frames read from a source.

    Attributes:
        frames: (F, H, W, 3) uint8 RGB, upright, square pixels.
        fps: the source's frame rate divided by the stride, exact.
        indices: of each frame in the source, in the order of presentation.
        start_seconds: where the first frame lies, counted as FFmpeg's ``-ss`` counts.
        span_seconds: how much of the source the frames stand for.
    """

    frames: np.ndarray
    fps: Fraction
    indices: list[int]
    info: ClipInfo
    start_seconds: float
    span_seconds: float


def read_frames(
    path: str | Path,
    *,
    frames: int,
    start: int = 0,
    stride: int = 1,
    backend: str = "auto",
    background: int = 255,
) -> Clip:
    """Read `frames` frames: `start`, `start + stride`, and so on, in the order they are shown.

    Only what is needed is decoded: from the key frame before, to the last frame wanted. Rotation is
    applied; pixels that are not square are made so by scaling the width (the height before turning is
    kept); more than 8 bits are rounded to 8; transparency is laid over white (`background`: its grey level).

    Args:
        backend: "auto" (decord where it is sure to give the same frames, else PyAV), "decord" or "pyav".

    Raises:
        InputError: the clip cannot be read, or has too few frames.
        ConfigError: `frames`, `start`, `stride` or `backend` out of range.
    """
    _check(frames, start, stride, backend)
    info = probe(path)
    indices = list(range(start, start + frames * stride, stride))
    if indices[-1] >= info.frames:
        raise _too_few(info, frames, start, stride)
    fps = info.fps / stride
    if info.kind in ("image", "folder"):
        files = [info.path] if info.kind == "image" else stills.image_files(info.path)
        stack = np.stack([stills.read_image(files[index], background) for index in indices])
        return Clip(stack, fps, indices, info, float(start / info.fps), float(frames / fps))
    pictures: np.ndarray | None = None
    if backend != "pyav" and decord_fits(info):
        pictures = _read_decord(info, indices)
    if pictures is None and backend == "decord":
        raise ConfigError(
            f"decord is not installed, or cannot read {info.path} faithfully", "use the reader pyav, or auto"
        )
    if pictures is None:
        pictures = _read_pyav(info, indices, background)
    return Clip(pictures, fps, indices, info, *_span(info, start, frames * stride))


def decord_fits(info: ClipInfo) -> bool:
    """Whether decord gives the frames that PyAV gives.

    The decord on PyPI (0.6.0, 2021) drops the pixel aspect, turns some rotated clips and not others, knows
    no alpha, is built on an FFmpeg that lacks newer codecs, finds frames of uneven streams by guess, and
    gives the wrong frames after a seek into open groups of pictures. So it gets the common case, for which
    the tests hold both equal: 8-bit H.264 or VP9 4:2:0 in limited range, upright, square pixels, even size,
    even timing, closed groups. All else goes to PyAV.
    """
    return (
        info.kind == "video"
        and scan(info.path).plain
        and info.codec in ("h264", "vp9")
        and info.pix_fmt == "yuv420p"
        and (info.width, info.height) == (info.coded_width, info.coded_height)
        and info.width % 2 == info.height % 2 == 0
        and info.pixel_aspect == 1
        and info.rotation == 0
        and not info.variable_frame_rate
    )


def _read_decord(info: ClipInfo, indices: list[int]) -> np.ndarray | None:
    """Frames through decord, or None where it is absent, fails, or counts the frames otherwise than PyAV."""
    try:
        import decord

        decord.logging.set_level(decord.logging.QUIET)
        reader = decord.VideoReader(str(info.path.absolute()), num_threads=1)
        if len(reader) != info.frames:
            return None
        pictures = reader.get_batch(indices).asnumpy()
    except Exception:  # ImportError, OSError (its libraries), its own DECORDError, RuntimeError
        return None
    return pictures if pictures.shape[1:3] == (info.height, info.width) else None


def _read_pyav(info: ClipInfo, indices: Sequence[int], background: int) -> np.ndarray:
    pictures = np.empty((len(indices), info.height, info.width, 3), np.uint8)
    found = rgb_frames(info.path, scan(info.path), indices, background)
    for place, picture in enumerate(islice(found, len(indices))):
        pictures[place] = picture
    return pictures


def _span(info: ClipInfo, start: int, length: int) -> tuple[float, float]:
    """Seconds at which frame `start` is shown, and seconds until frame ``start + length`` is."""
    timeline = scan(info.path)
    if timeline.pts is None:
        return float(start / info.fps), float(length / info.fps)
    begin = int(timeline.pts[start]) * timeline.time_base
    span = length / info.fps
    if info.variable_frame_rate:
        end = min(start + length, info.frames - 1)
        extra = (start + length - end) / info.fps
        span = int(timeline.pts[end]) * timeline.time_base - begin + extra
    return max(0.0, float(begin - timeline.start_time)), float(span)


def _check(frames: int, start: int, stride: int, backend: str) -> None:
    if frames < 1:
        raise ConfigError(f"--frames must be at least 1, not {frames}", "8 to 24 frames are usual")
    if stride < 1:
        raise ConfigError(
            f"--stride must be at least 1, not {stride}", "1 takes every frame, 2 every second one"
        )
    if start < 0:
        raise ConfigError(f"--start must be 0 or more, not {start}", "it is the number of the first frame")
    if backend not in BACKENDS:
        raise ConfigError(f"unknown reader {backend!r}", f"choose one of {', '.join(BACKENDS)}")


def _too_few(info: ClipInfo, frames: int, start: int, stride: int) -> InputError:
    asked = f"--frames {frames} --stride {stride} --start {start}"
    fits = []
    if start < info.frames:
        fits.append(f"--frames {(info.frames - 1 - start) // stride + 1}")
        if frames > 1 and (info.frames - 1 - start) // (frames - 1) >= 1:
            fits.append(f"--stride {(info.frames - 1 - start) // (frames - 1)}")
    if info.frames > (frames - 1) * stride:
        fits.append(f"--start {info.frames - 1 - (frames - 1) * stride}")
    if not fits:
        fits.append(f"--start 0 --stride 1 --frames {info.frames}")
    noun = "frame" if info.frames == 1 else "frames"
    return InputError(
        f"{info.path} has {info.frames} {noun}; {asked} needs {start + (frames - 1) * stride + 1}",
        f"it has {info.frames} {noun}: {' or '.join(fits)} would fit",
    )
