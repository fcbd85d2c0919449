"""Reading frames: a few of them, by index, out of a clip of any length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ctxedit.errors import ConfigError, InputError
from ctxedit.media import stills, timing
from ctxedit.media.decode import rgb_frames
from ctxedit.media.probe import ClipInfo, clock_of, probe
from ctxedit.media.scratch import release
from ctxedit.media.timeline import scan
from ctxedit.media.timing import Span

#: Makes an array of a shape and a type.
Store = Callable[[tuple[int, ...], Any], np.ndarray]
#: A kept array that is on disk gives its memory back after so many frames.
_RELEASED = 16
BACKENDS = ("auto", "decord", "pyav")

#: Larger frames are not read by decord, which holds several of them in RGB.
_DECORD_PIXELS = 3840 * 2160
_UNEVEN = (
    "the clip's frames are unevenly spaced in time: each frame of the edit lasts as long as its source's"
)


@dataclass(frozen=True, eq=False)
class Clip:
    """Frames read from a source.

    Attributes:
        frames: (F, H, W, 3) uint8 RGB, upright, square pixels; or what ``each`` made of them.
        fps: the source's frame rate divided by the stride, exact; the average where `durations` is given.
        indices: of each frame in the source, in the order of presentation.
        start_seconds: time of the first frame, as for FFmpeg's ``-ss``.
        span_seconds: how much of the source the frames stand for.
        durations: seconds that each frame stays, where the source's timing is uneven; else None.
    """

    frames: np.ndarray
    fps: Fraction
    indices: list[int]
    info: ClipInfo
    start_seconds: float
    span_seconds: float
    durations: tuple[Fraction, ...] | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know of how the clip was read: a sentence each."""
        return self.info.notes + (() if self.durations is None else (_UNEVEN,))


def read_frames(
    path: str | Path,
    *,
    frames: int,
    start: int = 0,
    stride: int = 1,
    backend: str = "auto",
    background: int = 255,
    each: Callable[[np.ndarray], np.ndarray] | None = None,
    store: Store = np.empty,
    only: Sequence[int] | None = None,
) -> Clip:
    """Read `frames` frames: `start`, `start + stride`, and so on, in the order they are shown.

    Only what is needed is decoded: from the key frame before, to the last frame wanted. Rotation is
    applied; pixels that are not square are made so by scaling the width (the height before turning is
    kept); interlaced pictures are deinterlaced; HDR is tone-mapped to BT.709; more than 8 bits are rounded
    to 8; transparency is laid over white (`background`: its grey level).

    Args:
        backend: "auto" (decord where it is sure to give the same frames, else PyAV), "decord" or "pyav".
        each: called with every (H, W, 3) frame as it is read, so that a clip larger than memory can be
            scaled down on the way; what it returns is kept instead.
        store: makes the array that is kept, from its shape and type: on disk, for a clip larger than memory.
        only: which of the frames to read, by rising place among them; None is all. The clip's times are
            those of all.

    Raises:
        InputError: the clip cannot be read, or has too few frames.
        ConfigError: `frames`, `start`, `stride` or `backend` out of range.
    """
    _check(frames, start, stride, backend)
    info = probe(path)
    span = span_of(info, frames, start, stride)
    indices = list(range(start, start + frames * stride, stride))
    if only is not None:
        indices = [indices[place] for place in only]
    pictures: np.ndarray | None = None
    for index, picture in enumerate(_pictures(info, indices, backend, background)):
        kept = picture if each is None else each(picture)
        if pictures is None:
            pictures = store((len(indices), *kept.shape), kept.dtype)
        pictures[index] = kept
        if index % _RELEASED == 0:
            release(pictures)
    assert pictures is not None
    return Clip(pictures, span.fps, indices, info, span.start, span.seconds, span.durations)


def span_of(info: ClipInfo, frames: int, start: int, stride: int) -> Span:
    """Display times of the frames that ``read_frames`` would read, without reading them.

    Raises:
        InputError: the clip has too few frames.
        ConfigError: a number out of range.
    """
    _check(frames, start, stride, "auto")
    if start + (frames - 1) * stride >= info.frames:
        raise _too_few(info, frames, start, stride)
    clock = clock_of(info)
    if clock is None:
        fps = info.fps / stride
        return Span(float(start / info.fps), float(frames / fps), fps)
    return timing.span(clock, range(start, start + frames * stride, stride), stride, info.fps)


def _pictures(info: ClipInfo, indices: list[int], backend: str, background: int) -> Iterator[np.ndarray]:
    """The frames of these indices, one by one, by whichever library reads such a clip."""
    if info.kind in ("image", "folder"):
        files = [info.path] if info.kind == "image" else stills.image_files(info.path)
        return (stills.read_image(files[index], background) for index in indices)
    if info.kind == "animation":
        return stills.animation_frames(info.path, indices, background)
    reader = _decord_reader(info) if backend != "pyav" and decord_fits(info) else None
    if reader is not None:
        return _decord_frames(reader, info, indices)
    if backend == "decord":
        raise ConfigError(
            f"decord is not installed, or cannot read {info.path} faithfully", "use the reader pyav, or auto"
        )
    return rgb_frames(info.path, scan(info.path), indices, background)


def decord_fits(info: ClipInfo) -> bool:
    """Whether decord may be sure to give the frames that PyAV gives.

    The decord on PyPI (0.6.0, 2021) drops the pixel aspect, turns some rotated clips and not others, knows
    no alpha, is built on an FFmpeg that lacks newer codecs, finds frames of uneven streams by guess, gives
    the wrong frames after a seek into open groups of pictures, and trusts a seek to land where it aimed,
    which it does not in MPEG-TS, Matroska or fragmented MP4. So it gets the common case, for which the tests
    hold both equal: an MP4 or MOV whose table lists every frame, 8-bit H.264 4:2:0 in limited range,
    progressive, upright, square pixels, even size, even timing, closed groups. All else goes to PyAV.
    """
    if info.kind != "video":
        return False
    timeline = scan(info.path)
    return (
        timeline.plain
        and timeline.indexed
        and info.codec == "h264"
        and info.pix_fmt == "yuv420p"
        and (info.width, info.height) == (info.coded_width, info.coded_height)
        and info.width % 2 == info.height % 2 == 0
        and info.width * info.height <= _DECORD_PIXELS
        and info.pixel_aspect == 1
        and info.rotation == 0
        and not info.variable_frame_rate
        and not info.motion_photo
    )


def _decord_reader(info: ClipInfo) -> Any:
    """decord's reader; None where it is absent, fails, or tells other time stamps than PyAV."""
    try:
        import decord

        decord.logging.set_level(decord.logging.QUIET)
        reader = decord.VideoReader(str(info.path.absolute()), num_threads=1)
        if len(reader) != info.frames or reader[0].shape != (info.height, info.width, 3):
            return None  # rows of some widths (48) come out as four channels
        stamps = reader.get_frame_timestamp(range(info.frames))[:, 0]
    except Exception:  # ImportError, OSError (its libraries), its own DECORDError, RuntimeError
        return None
    timeline = scan(info.path)
    assert timeline.pts is not None
    seconds = timeline.pts * float(timeline.time_base)
    return reader if np.abs(stamps - seconds).max() < 1e-3 else None


def _decord_frames(reader: Any, info: ClipInfo, indices: Sequence[int]) -> Iterator[np.ndarray]:
    """Frames through decord; PyAV gives the rest where decord fails on the way."""
    for place, index in enumerate(indices):
        try:
            picture = reader[index].asnumpy()
        except Exception:  # its own DECORDError, RuntimeError
            yield from rgb_frames(info.path, scan(info.path), indices[place:])
            return
        yield picture


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
    given = f"--frames {frames} --stride {stride} --start {start}"
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
        f"{info.path} has {info.frames} {noun}; {given} needs {start + (frames - 1) * stride + 1}",
        f"it has {info.frames} {noun}: {' or '.join(fits)} would fit",
    )
