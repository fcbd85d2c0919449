"""One pass over a video file's packets, which tells which frame is shown when.

The file is read once, only its first frame is decoded, and two integers a frame are kept (a few MB for two
hours). Any frame can then be found by its index in the order of presentation, even if the frame rate varies.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ctxedit.errors import InputError
from ctxedit.media.container import DAMAGED, Sound, choose_sound, opened
from ctxedit.media.hdr import described

_FULL_RANGE = 2  # AVCOL_RANGE_JPEG
_FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip", b"pnot")
#: Frames looked at to tell whether the picture is interlaced: recorders may begin with progressive ones.
_LOOKED_AT = 4


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
        keyframes_dts: int64, the stamps in decoding order of the same; MPEG-TS seeks by them.
        end: the time stamp at which the last frame ends, where the container says it.
        closed: whether no frame is shown before the key frame that it follows in the file.
        start_time: the file's first time stamp in seconds; players and FFmpeg count from it.
        declared_rates: frame rates that the container states, the average first.
        transfer, primaries: of the colours, in H.273's numbers (as FFmpeg's).
        interlaced: whether pictures are made of two fields, half a frame's time apart.
        sound: the track that goes with the picture.
        indexed: whether the MP4's own table lists every frame, so that any seek is exact.
    """

    pts: np.ndarray | None
    keyframes: np.ndarray
    keyframes_dts: np.ndarray
    count: int
    end: int | None
    closed: bool
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
    transfer: int
    primaries: int
    interlaced: bool
    sound: Sound
    indexed: bool

    @property
    def plain(self) -> bool:
        """Stamps to rely on, closed groups of pictures, upright, progressive, in ordinary colours."""
        upright = self.orientation == Orientation()
        ordinary = self.color_range != _FULL_RANGE and self.colours is None
        return self.pts is not None and self.closed and upright and ordinary and not self.interlaced

    @property
    def literal(self) -> bool:
        """A GIF's clock is its truth: it has no frame rate that was rounded."""
        return self.codec == "gif"

    @property
    def colours(self) -> str | None:
        """What HDR or wide gamut the colours are of, None for ordinary ones."""
        return None if self.has_alpha else described(self.transfer, self.primaries)

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


@dataclass
class _Packets:
    """Stamps as they come: of the shown frames, of the key frames (shown, decoded), of the frames' ends."""

    pts: list[int | None] = field(default_factory=list)
    keys: list[int | None] = field(default_factory=list)
    keys_dts: list[int | None] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    closed: bool = True

    def add(self, packet: Any) -> None:
        if packet.is_keyframe:
            self.keys.append(packet.pts)
            self.keys_dts.append(packet.pts if packet.dts is None else packet.dts)
        # What comes before the first key frame cannot be decoded.
        if not self.keys or packet.is_discard:
            return
        self.pts.append(packet.pts)
        if packet.pts is None or self.keys[-1] is None or packet.pts < self.keys[-1]:
            self.closed = False
        if packet.pts is not None and packet.duration:
            self.ends.append(packet.pts + packet.duration)


@lru_cache(maxsize=8)
def _scan(path: Path, size: int, mtime: int) -> Timeline:
    with opened(path) as (container, stream, decoder):
        packets = _Packets()
        first: Any = None
        looked_at, interlaced = 0, False
        for packet in container.demux(stream):
            if looked_at < _LOOKED_AT:
                for frame in decoder.decode(packet):
                    first = first or frame
                    looked_at += 1
                    interlaced |= frame.interlaced_frame
            if packet.size and not packet.is_corrupt and not _invisible(packet, decoder.name):
                packets.add(packet)
        if first is None or not packets.pts:
            raise InputError(f"{path} has no frames that can be decoded", DAMAGED)
        return _timeline(path, (container, stream), first, packets, interlaced)


def _timeline(
    path: Path, source: tuple[Any, Any], first: Any, packets: _Packets, interlaced: bool
) -> Timeline:
    container, stream = source
    pts, keys, keys_dts = _stamps(container, stream, packets)
    parts = first.format.components
    return Timeline(
        pts=pts,
        keyframes=keys,
        keyframes_dts=keys_dts,
        count=len(packets.pts) if pts is None else len(pts),
        end=_end(container, stream, packets, pts),
        closed=packets.closed,
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
        transfer=int(stream.codec_context.color_trc),
        primaries=int(stream.codec_context.color_primaries),
        interlaced=interlaced,
        sound=choose_sound(container),
        indexed=_indexed(path, container.format.name),
    )


def _stamps(
    container: Any, stream: Any, packets: _Packets
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray]:
    """Sorted time stamps of the frames (None: they are not to be relied on), and of the key frames, twice."""
    nothing = np.empty(0, np.int64)
    if None in packets.pts or None in packets.keys:
        return None, nothing, nothing
    pts, keys, keys_dts = (
        np.sort(np.array(one, np.int64)) for one in (packets.pts, packets.keys, packets.keys_dts)
    )
    # AVI keeps no presentation times. FFmpeg works them out for MPEG-4; for H.264 it numbers the packets as
    # they come, which is not the order of the pictures.
    reordered = "avi" in container.format.name and stream.codec_context.has_b_frames
    if reordered and packets.pts == pts.tolist():
        return None, keys, keys_dts
    # Frames shown before the first key frame lean on pictures that are not in the file.
    first = next(key for key in packets.keys if key is not None)
    pts = pts[pts >= first]
    return (pts if len(np.unique(pts)) == len(pts) else None), keys, keys_dts


def _end(container: Any, stream: Any, packets: _Packets, pts: np.ndarray | None) -> int | None:
    """The timestamp at which the last frame ends. Matroska may give it for the whole file only."""
    end = max(packets.ends, default=None)
    said_of_all = container.duration and not container.streams.audio
    if pts is not None and (end is None or end <= pts[-1]) and said_of_all:
        seconds = Fraction((container.start_time or 0) + container.duration, 1_000_000)
        end = max(round(seconds / stream.time_base), end or 0)
    return end


def _indexed(path: Path, format_name: str) -> bool:
    """Whether the file is an MP4 or MOV without fragments, by its boxes."""
    if "mp4" not in format_name.split(","):
        return False
    with path.open("rb") as file:
        at, size = 0, path.stat().st_size
        while at + 8 <= size:
            file.seek(at)
            head = file.read(16)
            length = int.from_bytes(head[:4], "big")
            if head[4:8] in (b"moof", b"sidx") or (at == 0 and head[4:8] not in _FIRST_BOXES):
                return False
            if length == 1:
                length = int.from_bytes(head[8:16], "big")
            if length == 0:  # to the end of the file
                break
            if length < 8:
                return False
            at += length
    return True


def _invisible(packet: Any, codec: str) -> bool:
    """Whether a VP8 packet only holds a reference picture: bit 4 of its first byte is show_frame."""
    return codec in ("vp8", "libvpx") and not bytes(packet)[0] & 0x10


def _orientation(frame: Any) -> Orientation:
    side = frame.side_data.get("DISPLAYMATRIX")
    if side is None:
        return Orientation()
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(side)[:36])
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return Orientation(False, a < 0, d < 0)
    return Orientation(True, c < 0, b < 0)
