"""Clips drawn for the tests. FFmpeg's command line makes them and is the second opinion on reading them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
REAL = Path(__file__).parents[3] / "shared" / "clips"
_BLOCK = 8


def draw(count: int = 12, width: int = 64, height: int = 48) -> np.ndarray:
    """Smooth moving colours, with the frame's number in binary along the top: (F, H, W, 3) uint8."""
    y, x = np.mgrid[:height, :width]
    frames = np.empty((count, height, width, 3), np.uint8)
    for index in range(count):
        frames[index, ..., 0] = 128 + 90 * np.sin(x / 19 + index / 3)
        frames[index, ..., 1] = 128 + 90 * np.cos(y / 17 - index / 4)
        frames[index, ..., 2] = 60 + 120 * x / width
        for bit in range(min(width // _BLOCK, 7)):
            frames[index, :_BLOCK, bit * _BLOCK : (bit + 1) * _BLOCK] = 235 if index >> bit & 1 else 20
    return frames


def numbers(frames: np.ndarray) -> list[int]:
    """The numbers that ``draw`` put into the frames."""
    centre = _BLOCK // 2
    bits = frames[:, centre, centre : 7 * _BLOCK : _BLOCK].mean(-1) > 128
    return [int(sum(int(bit) << place for place, bit in enumerate(row))) for row in bits]


def ffmpeg(*arguments: object, stdin: bytes | None = None) -> bytes:
    command = [FFMPEG, "-y", "-v", "error", *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, check=True).stdout


def encode(path: Path, frames: np.ndarray, *options: object, rate: object = 25, inputs: tuple = ()) -> Path:
    """Encode frames with FFmpeg; ``inputs`` are further inputs, ``options`` belong to the output."""
    height, width = frames.shape[1:3]
    pixels = "rgba" if frames.shape[3] == 4 else "rgb24"
    raw = ("-f", "rawvideo", "-s", f"{width}x{height}", "-pix_fmt", pixels, "-r", rate, "-i", "-")
    ffmpeg(*raw, *inputs, *(options or ("-pix_fmt", "yuv420p", "-crf", 8)), path, stdin=frames.tobytes())
    return path


def decode(path: Path, width: int, height: int, filters: str = "null") -> np.ndarray:
    """Every frame as FFmpeg's command line shows it (it turns clips by their metadata)."""
    raw = ffmpeg(
        *("-i", path, "-an", "-fps_mode", "passthrough", "-vf", filters),
        *("-f", "rawvideo", "-pix_fmt", "rgb24", "-"),
    )
    return np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3)


def far(a: np.ndarray, b: np.ndarray) -> float:
    """Mean absolute difference in levels."""
    assert a.shape == b.shape
    return float(np.abs(a.astype(int) - b.astype(int)).mean())
