"""One pass over a video file's packets, which tells which frame is shown when.

The file is read once, only its first frame is decoded, and two integers a frame are kept (a few MB for two
hours). Any frame can then be found by its index in the order of presentation, whatever the frame rate does.
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
from ctxedit.media.container import DAMAGED, opened

_FULL_RANGE = 2  # AVCOL_RANGE_JPEG


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
    audio_codec: str | None

    @property
    def plain(self) -> bool:
        """Stamps to rely on, closed groups of pictures, an upright picture, not in full range."""
        upright = self.orientation == Orientation()
        return self.pts is not None and self.closed and upright and self.color_range != _FULL_RANGE

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
        for packet in container.demux(stream):
            if first is None:
                first = next(iter(decoder.decode(packet)), None)
            if packet.size and not packet.is_corrupt and not _invisible(packet, decoder.name):
                packets.add(packet)
        if first is None or not packets.pts:
            raise InputError(f"{path} has no frames that can be decoded", DAMAGED)
        return _timeline(container, stream, first, packets)


def _timeline(container: Any, stream: Any, first: Any, packets: _Packets) -> Timeline:
    pts: np.ndarray | None = None
    keys = keys_dts = np.empty(0, np.int64)
    if None not in packets.pts and None not in packets.keys:
        keys, keys_dts = (np.sort(np.array(one, np.int64)) for one in (packets.keys, packets.keys_dts))
        pts = np.sort(np.array(packets.pts, np.int64))
        # Frames shown before the first key frame lean on pictures that are not in the file.
        pts = pts[pts >= packets.keys[0]]
        if len(np.unique(pts)) != len(pts):
            pts = None
    parts = first.format.components
    audio = next((one for one in container.streams.audio if one.codec_context is not None), None)
    return Timeline(
        pts=pts,
        keyframes=keys,
        keyframes_dts=keys_dts,
        count=len(packets.pts) if pts is None else len(pts),
        end=max(packets.ends, default=None),
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
        audio_codec=audio.codec_context.codec.canonical_name if audio is not None else None,
    )


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
