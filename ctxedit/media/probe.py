"""What a clip is, found out without decoding it: size as displayed, frames, frame rate, sound."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Literal

from ctxedit.errors import InputError
from ctxedit.media import stills, timing
from ctxedit.media.sources import check_exists, is_heif, is_jpeg_stream, video_offset
from ctxedit.media.timeline import Timeline, scan
from ctxedit.media.timing import FOLDER_FPS

__all__ = ["FOLDER_FPS", "ClipInfo", "clock_of", "probe"]

Kind = Literal["video", "gif", "animation", "folder", "image"]


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
        audio_codec: FFmpeg's name of the chosen sound track's codec, or None.
        audio_index: that track's stream in the file, or None.
        interlaced: reading deinterlaces.
        converted: HDR or wide gamut that reading converts to BT.709, by name, or None.
        sound_note: what a person should know of the choice of the sound, or None.
        motion_photo: the clip is the video of a photo.
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
    audio_index: int | None = None
    interlaced: bool = False
    converted: str | None = None
    sound_note: str | None = None
    motion_photo: bool = False

    @property
    def notes(self) -> tuple[str, ...]:
        """What reading does to the picture that a person should know: a sentence each."""
        said = []
        if self.motion_photo:
            said.append("the photo holds a video, which is taken as the clip")
        if self.interlaced:
            said.append("the clip is interlaced: its frames are deinterlaced")
        if self.converted is not None and self.converted.startswith("HDR"):
            said.append(f"the clip is {self.converted}: its frames are tone-mapped to BT.709")
        elif self.converted is not None:
            said.append(f"the clip is {self.converted}: its colours are converted to BT.709")
        return tuple(said)


def probe(path: str | Path) -> ClipInfo:
    """Describe a video, an animation, a folder of images or one image. Of videos hardly more than the first
    frame is decoded.

    Raises:
        InputError: missing, not readable as a clip, damaged, without picture or without frames; a folder
            that is empty or whose images differ in size.
    """
    path = check_exists(path)
    if not os.access(path, os.R_OK):
        raise InputError(f"{path} cannot be read", "check its permissions")
    if path.is_dir():
        return _probe_stills(path, "folder", stills.image_files(path))
    if not path.is_file():
        raise InputError(f"{path} is not a file", "give a clip, an image or a folder of images")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes)", "copy or download it again")
    if is_heif(path):
        raise InputError(
            f"{path} is a HEIF photo: that format is not supported",
            "save it as JPEG or PNG; of a live photo give its .mov",
        )
    if stills.is_image(path) and video_offset(path) is None and not is_jpeg_stream(path):
        if stills.header(path).frames > 1:
            return _probe_animation(path)
        return _probe_stills(path, "image", [path])
    return _probe_video(path, scan(path))


def clock_of(info: ClipInfo) -> timing.Clock | None:
    """When the frames of a clip are shown; None for images and folders, which have no times."""
    if info.kind in ("image", "folder"):
        return None
    return stills.animation(info.path) if info.kind == "animation" else scan(info.path)


def _probe_stills(path: Path, kind: Kind, files: list[Path]) -> ClipInfo:
    first = stills.header(files[0])
    for file in files[1:]:
        size = stills.header(file).size
        if size != first.size:
            raise InputError(
                f"the images in {path} differ in size: {files[0].name} is {_size(first.size)}, "
                f"{file.name} is {_size(size)}",
                "bring them to one size, or move the others out of the folder",
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


def _probe_animation(path: Path) -> ClipInfo:
    still, clock = _probe_stills(path, "animation", [path]), stills.animation(path)
    fps = timing.frame_rate(clock)
    return replace(
        still,
        frames=clock.count,
        fps=fps,
        duration=timing.duration(clock, fps),
        variable_frame_rate=timing.varies(clock),
    )


def _probe_video(path: Path, timeline: Timeline) -> ClipInfo:
    width, height = timeline.display_size
    fps = timing.frame_rate(timeline)
    return ClipInfo(
        path=path,
        kind="gif" if timeline.codec == "gif" else "video",
        width=width,
        height=height,
        coded_width=timeline.coded_size[0],
        coded_height=timeline.coded_size[1],
        frames=timeline.count,
        fps=fps,
        duration=timing.duration(timeline, fps),
        has_audio=timeline.sound.index is not None,
        audio_codec=timeline.sound.codec,
        rotation=timeline.orientation.rotation,
        pixel_aspect=timeline.pixel_aspect,
        variable_frame_rate=timing.varies(timeline),
        codec=timeline.codec,
        pix_fmt=timeline.pix_fmt,
        bit_depth=timeline.bit_depth,
        has_alpha=timeline.has_alpha,
        audio_index=timeline.sound.index,
        interlaced=timeline.interlaced,
        converted=timeline.colours,
        sound_note=timeline.sound.note,
        motion_photo=video_offset(path) is not None,
    )


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
