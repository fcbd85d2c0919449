"""What a clip is, found out without decoding it: size as displayed, frames, frame rate, sound."""

from __future__ import annotations

import os
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import numpy as np

from ctxedit.errors import InputError
from ctxedit.media import stills
from ctxedit.media.timeline import Timeline, scan

Kind = Literal["video", "gif", "folder", "image"]

FOLDER_FPS = Fraction(8)
"""Frame rate given to folders and single images, which have none of their own."""


@dataclass(frozen=True)
class ClipInfo:
    """What ``probe`` found.

    Attributes:
        width, height: in square pixels, upright: after the rotation and the pixel aspect of the file.
        coded_width, coded_height: as stored.
        frames: number of frames, counted by packets (video, gif) or files (folder).
        fps: frames a second as an exact fraction; the average where ``variable_frame_rate``.
        duration: seconds.
        rotation: clockwise degrees that the player turns the stored picture by: 0, 90, 180 or 270.
        pixel_aspect: width over height of one stored pixel.
        bit_depth: bits of the deepest component.
        audio_codec: FFmpeg's name of the first audio stream's codec, or None.
    """

    path: Path
    kind: Kind
    width: int
    height: int
    coded_width: int
    coded_height: int
    frames: int
    fps: Fraction
    duration: float
    has_audio: bool = False
    audio_codec: str | None = None
    rotation: int = 0
    pixel_aspect: Fraction = Fraction(1)
    variable_frame_rate: bool = False
    codec: str = ""
    pix_fmt: str = ""
    bit_depth: int = 8
    has_alpha: bool = False


def probe(path: str | Path) -> ClipInfo:
    """Describe a video, a GIF, a folder of images or one image. Nothing but the first frame is decoded.

    Raises:
        InputError: missing, not readable as a clip, damaged, without picture or without frames; a folder
            that is empty or whose images differ in size.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(
            f"{path} does not exist", "check the path; relative paths start at the current folder"
        )
    if not os.access(path, os.R_OK):
        raise InputError(f"{path} cannot be read", "check its permissions")
    if path.is_dir():
        return _probe_stills(path, "folder", stills.image_files(path))
    if not path.is_file():
        raise InputError(f"{path} is not a file", "give a clip, an image or a folder of images")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes)", "copy or download it again")
    if stills.is_image(path):
        return _probe_stills(path, "image", [path])
    return _probe_video(path, scan(path))


def _probe_stills(path: Path, kind: Kind, files: list[Path]) -> ClipInfo:
    first = stills.header(files[0])
    for file in files[1:]:
        size = stills.header(file).size
        if size != first.size:
            raise InputError(
                f"the images in {path} differ in size: {files[0].name} is {_size(first.size)}, "
                f"{file.name} is {_size(size)}",
                "bring them to one size, or move the odd ones out of the folder",
            )
    width, height = first.size
    return ClipInfo(
        path=path,
        kind=kind,
        width=width,
        height=height,
        coded_width=first.coded_size[0],
        coded_height=first.coded_size[1],
        frames=len(files),
        fps=FOLDER_FPS,
        duration=float(len(files) / FOLDER_FPS),
        codec=first.codec,
        pix_fmt=first.mode,
        bit_depth=first.bit_depth,
        has_alpha=first.has_alpha,
    )


def _probe_video(path: Path, timeline: Timeline) -> ClipInfo:
    width, height = timeline.display_size
    fps = frame_rate(timeline)
    return ClipInfo(
        path=path,
        kind="gif" if timeline.codec == "gif" else "video",
        width=width,
        height=height,
        coded_width=timeline.coded_size[0],
        coded_height=timeline.coded_size[1],
        frames=timeline.count,
        fps=fps,
        duration=_duration(timeline, fps),
        has_audio=timeline.audio_codec is not None,
        audio_codec=timeline.audio_codec,
        rotation=timeline.orientation.rotation,
        pixel_aspect=timeline.pixel_aspect,
        variable_frame_rate=varies(timeline),
        codec=timeline.codec,
        pix_fmt=timeline.pix_fmt,
        bit_depth=timeline.bit_depth,
        has_alpha=timeline.has_alpha,
    )


def varies(timeline: Timeline) -> bool:
    """Whether frames lie unevenly in time, beyond what a container's clock (Matroska: 1 ms) rounds."""
    if timeline.pts is None or timeline.count < 3:
        return False
    steps = np.diff(timeline.pts)
    tolerance = max(1.0, 0.0015 / float(timeline.time_base))
    return bool(np.abs(steps - np.median(steps)).max() > tolerance)


def frame_rate(timeline: Timeline) -> Fraction:
    """The exact rate. Equal steps of a fine clock say it exactly; a coarse clock (Matroska's milliseconds)
    only bounds it, and the container's declared rate that agrees with the measured one is taken. Uneven
    steps have an average only."""
    declared = [rate for rate in timeline.declared_rates if rate and 0 < rate <= 1000]
    gif = timeline.codec == "gif"
    if timeline.pts is None or (timeline.count < 2 and not gif):
        return declared[0] if declared else FOLDER_FPS
    steps = np.diff(timeline.pts)
    fine = gif or timeline.time_base <= Fraction(1, 8000)
    if len(steps) and fine and steps.min() == steps.max():
        return 1 / (int(steps[0]) * timeline.time_base)
    length = _length(timeline)
    if length and (gif or varies(timeline)):
        return timeline.count / length  # a GIF's clock is its truth
    span = int(timeline.pts[-1] - timeline.pts[0]) * timeline.time_base
    measured = (timeline.count - 1) / span if span else FOLDER_FPS
    slack = max(2 * timeline.time_base / span, Fraction(1, 2000)) if span else 1
    fitting = [rate for rate in declared if abs(rate / measured - 1) <= slack]
    return fitting[0] if fitting else measured.limit_denominator(1001)


def _length(timeline: Timeline) -> Fraction | None:
    """Seconds from the first frame's start to the last one's end, where the container says the latter."""
    if timeline.pts is None or timeline.end is None or timeline.end <= timeline.pts[-1]:
        return None
    return (timeline.end - int(timeline.pts[0])) * timeline.time_base


def _duration(timeline: Timeline, fps: Fraction) -> float:
    if timeline.pts is None:
        return float(timeline.count / fps)
    span = int(timeline.pts[-1] - timeline.pts[0]) * timeline.time_base
    return float(_length(timeline) or span + 1 / fps)


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
