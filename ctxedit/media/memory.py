"""What reading and writing a clip takes of memory, estimated before it is done."""

from __future__ import annotations

from pathlib import Path

from ctxedit.media.probe import ClipInfo
from ctxedit.media.write import VIDEO_SUFFIXES

#: Pictures that a decoder keeps for reference, and an encoder for reference and to look ahead, in 4:2:0.
_DECODED, _ENCODED = 8, 12
_YUV, _RGB, _PILLOW = 1.5, 3, 4


def reading_bytes(info: ClipInfo, frames: int, width: int, height: int) -> int:
    """Bytes at the peak of reading `frames` frames that are kept at `width` x `height`.

    One frame at a time is held at the source's size: the decoder's pictures, and RGB before and after it is
    scaled, turned or blended.
    """
    pixels = info.coded_width * info.coded_height
    deep = 2 if info.bit_depth > 8 else 1
    # Pillow holds four bytes a pixel.
    decoder = _PILLOW if info.kind in ("image", "folder", "animation") else _DECODED * _YUV * deep
    converting = 4 * deep if info.has_alpha or info.converted or info.interlaced else 0
    source = pixels * (decoder + 2 * _RGB + converting) + info.width * info.height * _RGB
    return int(source) + kept_bytes(frames, width, height)


def kept_bytes(frames: int, width: int, height: int) -> int:
    """Bytes of a clip at working size: its frames, the same padded, and those of an edit."""
    return 3 * frames * width * height * _RGB


def pasting_bytes(frames: int, width: int, height: int) -> int:
    """Bytes of the frames of an edit by a mask at the size that they are written in, and of the mask."""
    return frames * width * height * (_RGB + 4)


def writing_bytes(path: str | Path, frames: int, width: int, height: int) -> int:
    """Bytes at the peak of writing `frames` frames of this size: one in RGB, and what encoders keep."""
    kept = min(frames, _ENCODED) * _YUV if Path(path).suffix.lower() in VIDEO_SUFFIXES else 0
    return int(width * height * (3 * _RGB + kept))
