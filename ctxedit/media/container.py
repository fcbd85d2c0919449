"""Video files through PyAV: one pass over the packets, and frames decoded by their place in time.

The pass over the packets reads the file once, decodes only the first frame and keeps two integers a frame
(a few MB for two hours); it tells which frame is shown when, so that any frame can be found by its index in
presentation order, whatever the frame rate does.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from ctxedit.errors import InputError
from ctxedit.media.stills import flatten

_DAMAGED = (
    "the file is damaged or cut short; copy it again, or re-encode it: ffmpeg -i IN -c:v libx264 OUT.mp4"
)


@dataclass(frozen=True)
class Orientation:
    """How the stored picture is turned to be shown: first transposed, then flipped."""

    transpose: bool = False
    flip_x: bool = False
    flip_y: bool = False

    @property
    def rotation(self) -> int:
        """Clockwise degrees; a mirror image counts as the turn without its mirror."""
        if self.transpose:
            return 90 if self.flip_x else 270
        return 180 if self.flip_y else 0

    def apply(self, image: np.ndarray) -> np.ndarray:
        """Turn one (H, W, 3) image."""
        if self.transpose:
            image = image.swapaxes(0, 1)
        return image[:: -1 if self.flip_y else 1, :: -1 if self.flip_x else 1]


@dataclass(frozen=True)
class Timeline:
    """What one pass over a file's packets found.

    Attributes:
        pts: (count,) int64, the time stamps of the shown frames in order, in units of `time_base`;
            None where the container keeps none that can be relied on: frames are then counted.
        keyframes: int64, the time stamps at which decoding can begin.
        start_time: the file's first time stamp in seconds; players and FFmpeg count from it.
        declared_rates: frame rates that the container states, the average first.
    """

    pts: np.ndarray | None
    keyframes: np.ndarray
    count: int
    time_base: Fraction
    start_time: Fraction
    declared_rates: tuple[Fraction | None, ...]
    coded_size: tuple[int, int]
    orientation: Orientation
    pixel_aspect: Fraction
    codec: str
    pix_fmt: str
    bit_depth: int
    has_alpha: bool
    color_range: int
    audio_codec: str | None

    @property
    def square_size(self) -> tuple[int, int]:
        """Stored picture in square pixels, before it is turned: the height is kept, the width scaled."""
        width, height = self.coded_size
        return max(1, round(width * self.pixel_aspect)), height

    @property
    def display_size(self) -> tuple[int, int]:
        """Width and height as a player shows them."""
        width, height = self.square_size
        return (height, width) if self.orientation.transpose else (width, height)


def scan(path: Path) -> Timeline:
    """Pass over the packets of a file; kept for the file as long as its size and date stay.

    Raises:
        InputError: no video, no picture in it, no frames, or damaged.
    """
    stat = path.stat()
    return _scan(path.absolute(), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=8)
def _scan(path: Path, size: int, mtime: int) -> Timeline:
    with opened(path) as (container, stream, decoder):
        stamps: list[int | None] = []
        keys: list[int | None] = []
        first: Any = None
        for packet in container.demux(stream):
            if first is None:
                first = next(iter(decoder.decode(packet)), None)
            if packet.size == 0 or packet.is_corrupt or _invisible(packet, decoder.name):
                continue
            if packet.is_keyframe:
                keys.append(packet.pts)
            # What comes before the first key frame cannot be decoded.
            if keys and not packet.is_discard:
                stamps.append(packet.pts)
        if first is None or not stamps:
            raise InputError(f"{path} has no frames that can be decoded", _DAMAGED)
        return _timeline(container, stream, first, stamps, keys)


def _timeline(
    container: Any, stream: Any, first: Any, stamps: list[int | None], keys: list[int | None]
) -> Timeline:
    pts: np.ndarray | None = None
    keyframes = np.empty(0, np.int64)
    if None not in stamps and None not in keys:
        keyframes = np.sort(np.array(keys, np.int64))
        pts = np.sort(np.array(stamps, np.int64))
        # Frames shown before the first key frame lean on pictures that are not in the file.
        pts = pts[pts >= keys[0]]
        if len(np.unique(pts)) != len(pts):
            pts = None
    parts = first.format.components
    audio = next((one for one in container.streams.audio if one.codec_context is not None), None)
    return Timeline(
        pts=pts,
        keyframes=keyframes,
        count=len(stamps) if pts is None else len(pts),
        time_base=stream.time_base,
        start_time=Fraction(container.start_time or 0, 1_000_000),
        declared_rates=(stream.average_rate, stream.guessed_rate, stream.base_rate),
        coded_size=(first.width, first.height),
        orientation=_orientation(first),
        pixel_aspect=Fraction(stream.sample_aspect_ratio or 1),
        codec=stream.codec_context.codec.canonical_name,
        pix_fmt=first.format.name,
        bit_depth=max(part.bits for part in parts),
        has_alpha=any(part.is_alpha for part in parts) or first.format.has_palette,
        color_range=int(first.color_range),
        audio_codec=audio.codec_context.codec.canonical_name if audio is not None else None,
    )


def rgb_frames(
    path: Path, timeline: Timeline, indices: Sequence[int], background: int = 255
) -> Iterator[np.ndarray]:
    """The frames of these rising indices as (H, W, 3) uint8 RGB: upright, in square pixels.

    Raises:
        InputError: a frame cannot be decoded.
    """
    with opened(path) as (container, stream, decoder):
        places = range(timeline.count) if timeline.pts is None else timeline.pts
        frames = None
        keyframe = last = None
        for index in indices:
            want = int(places[index])
            if timeline.pts is not None:
                before = timeline.keyframes[timeline.keyframes <= want]
                keyframe = int(before[-1])
            # Going on decoding is right unless a whole group of pictures can be skipped.
            if frames is None or (keyframe is not None and last is not None and keyframe > last):
                frames = _decode_from(container, stream, decoder, keyframe if index else None)
            frame = None
            for count, pts, found in frames:
                place = count if timeline.pts is None else pts
                if place is not None and place >= want:
                    frame = found if place == want else None
                    break
            if frame is None:
                raise InputError(f"frame {index} of {path} cannot be decoded", _DAMAGED)
            last = want
            yield _finish(frame, timeline, background)


def _decode_from(
    container: Any, stream: Any, decoder: Any, keyframe: int | None
) -> Iterator[tuple[int, int | None, Any]]:
    """Decoded frames from a key frame on (None: from the beginning): count, time stamp, frame."""
    if keyframe is not None:
        container.seek(keyframe, stream=stream, backward=True, any_frame=False)
        if decoder is not stream.codec_context:
            decoder.flush_buffers()
    count = 0
    for packet in container.demux(stream):
        for frame in decoder.decode(packet):
            yield count, frame.pts, frame
            count += 1


def _finish(frame: Any, timeline: Timeline, background: int) -> np.ndarray:
    # swscale takes matrix and range from the frame (BT.601 where unsaid) and rounds 10 bits to 8.
    if timeline.has_alpha:
        image = flatten(frame.to_ndarray(format="rgba"), background)
    else:
        image = frame.to_ndarray(format="rgb24")
    if (image.shape[1], image.shape[0]) != timeline.square_size:
        image = np.asarray(Image.fromarray(image).resize(timeline.square_size, Image.Resampling.LANCZOS))
    return np.ascontiguousarray(timeline.orientation.apply(image))


@contextmanager
def opened(path: Path) -> Iterator[tuple[Any, Any, Any]]:
    """A file's PyAV container, its video stream and the decoder for it; PyAV's errors become InputError."""
    try:
        # The absolute path has no colon early enough to be taken for a protocol.
        with av.open(str(path.absolute()), metadata_errors="replace") as container:
            stream = _video_stream(container, path)
            yield container, stream, _decoder(stream, path)
    except av.FFmpegError as error:
        if "moov" in str(error) or (path.suffix.lower() in (".mp4", ".mov", ".m4v") and _is_mp4(path)):
            raise InputError(f"{path} is cut short or damaged", _DAMAGED) from error
        raise InputError(
            f"{path} cannot be read as a video",
            "mp4, mov, webm, mkv, gif, images and folders of images are read",
        ) from error


def _video_stream(container: Any, path: Path) -> Any:
    for stream in container.streams.video:
        # A song's cover is a video stream too.
        if av.stream.Disposition.attached_pic not in stream.disposition:
            return stream
    if container.streams.audio:
        raise InputError(f"{path} holds sound only, no picture", "give a clip with a video stream")
    raise InputError(
        f"{path} holds no video", "mp4, mov, webm, mkv, gif, images and folders of images are read"
    )


def _decoder(stream: Any, path: Path) -> Any:
    context = stream.codec_context
    if context is None or context.codec.canonical_name == "ansi":
        raise InputError(
            f"{path} cannot be read as a video", "its codec is unknown; convert it to MP4 with H.264"
        )
    # FFmpeg's own VP8 and VP9 decoders leave out the alpha that WebM carries beside the picture.
    if stream.metadata.get("alpha_mode") == "1" and context.name in ("vp8", "vp9"):
        name = {"vp8": "libvpx", "vp9": "libvpx-vp9"}[context.name]
        if name in av.codecs_available:
            return av.CodecContext.create(name, "r")
    return context


def _invisible(packet: Any, codec: str) -> bool:
    """Whether a VP8 packet only holds a reference picture: bit 4 of its first byte is show_frame."""
    return codec in ("vp8", "libvpx") and not bytes(packet)[0] & 0x10


def _orientation(frame: Any) -> Orientation:
    for side in frame.side_data:
        if side.type.name == "DISPLAYMATRIX":
            a, b, _, c, d, *_ = struct.unpack("=9i", bytes(side)[:36])
            if abs(a) + abs(d) >= abs(b) + abs(c):
                return Orientation(False, a < 0, d < 0)
            return Orientation(True, c < 0, b < 0)
    return Orientation()


def _is_mp4(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(12)[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip")
