"""Clips drawn with numpy and encoded here with PyAV, so that the code under test never makes its own input.

Every frame carries its number as black and white bars, which survive any codec: `numbers` reads them back and
is what tells which frames a reader really gave.
"""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import imageio_ffmpeg
import numpy as np

BITS = 7
RATE = 48000
TONES = (400, 1300, 3100)
"""Frequency in Hz of each second of the sound that `encode` adds."""


def draw(frames: int, width: int = 64, height: int = 48, first: int = 0) -> np.ndarray:
    """(F, H, W, 3) uint8: bars with the frame's number in the upper half, a moving colour ramp below."""
    y, x = np.mgrid[0:height, 0:width]
    clip = np.empty((frames, height, width, 3), np.uint8)
    for index in range(frames):
        number = first + index
        clip[index, ..., 0] = 60 + 120 * x / width
        clip[index, ..., 1] = 60 + 120 * y / height
        clip[index, ..., 2] = 120 + 60 * np.sin((x + 2 * number) / 9)
        clip[index, : height // 2] = np.where((number >> (x[: height // 2] * BITS // width)) & 1, 235, 20)[
            ..., None
        ]
    return clip


def numbers(clip: np.ndarray) -> list[int]:
    """The number that each frame carries."""
    height, width = clip.shape[1:3]
    centres = [(2 * bit + 1) * width // (2 * BITS) for bit in range(BITS)]
    row = clip[:, height // 4].mean(axis=-1)
    return [sum(int(line[at] > 127) << bit for bit, at in enumerate(centres)) for line in row]


def encode(
    path: Path,
    frames: np.ndarray,
    fps: Fraction | int = 25,
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    pts: Sequence[int] | None = None,
    aspect: Fraction | None = None,
    gop: int = 10,
    sound: str | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """Write frames with PyAV; `pts` in milliseconds makes the timing uneven; `sound` is a codec's name."""
    lossless = {"crf": "4", "preset": "ultrafast", "bf": "2"} if codec == "libx264" else {}
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=Fraction(fps), options={**lossless, **(options or {})})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pix_fmt
        stream.codec_context.gop_size = gop
        stream.codec_context.thread_count = 1
        if pts is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        audio = container.add_stream(sound, rate=RATE) if sound else None
        for index, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgba" if image.shape[-1] == 4 else "rgb24")
            frame.pts = index if pts is None else pts[index]
            frame.time_base = 1 / Fraction(fps) if pts is None else Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if audio is not None:
            _encode_tones(container, audio)
    return path


def _encode_tones(container: Any, stream: Any) -> None:
    seconds = np.arange(RATE) / RATE
    wave = np.concatenate([0.5 * np.sin(2 * np.pi * tone * seconds) for tone in TONES])
    samples = (wave * 32767).astype(np.int16)
    for at in range(0, len(samples), 960):
        frame = av.AudioFrame.from_ndarray(samples[None, at : at + 960], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE, at, Fraction(1, RATE)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def heard(path: Path) -> tuple[float, float]:
    """Seconds of sound in a file, and the frequency in Hz that prevails in the middle of it."""
    with av.open(str(path)) as container:
        resampler = av.AudioResampler(format="flt", layout="mono", rate=RATE)
        frames = [part for frame in container.decode(audio=0) for part in resampler.resample(frame)]
    wave = np.concatenate([frame.to_ndarray().reshape(-1) for frame in frames])
    middle = wave[len(wave) // 4 : -len(wave) // 4]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    return len(wave) / RATE, float(spectrum.argmax() * RATE / len(middle))


def song(path: Path) -> Path:
    """A file with sound and no picture."""
    with av.open(str(path), "w") as container:
        _encode_tones(container, container.add_stream("aac", rate=RATE))
    return path


def ffmpeg(*arguments: str | Path) -> None:
    """Run the FFmpeg of imageio-ffmpeg."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error", "-nostdin", *map(str, arguments)]
    subprocess.run(command, check=True, timeout=30)


def garble(path: Path, first: int, last: int) -> None:
    """Overwrite the data of the packets `first` to `last` (in the order of the file) of the video."""
    with av.open(str(path)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    data = bytearray(path.read_bytes())
    for at, size in packets[first : last + 1]:
        # The length before the H.264 unit stays, what it holds does not.
        data[at + 4 : at + size] = struct.pack("B", 0x5A) * (size - 4)
    path.write_bytes(data)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Decibels between two uint8 arrays of one shape."""
    error = np.mean((a.astype(np.float64) - b) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def grown(folder: Path) -> list[str]:
    """All names under a folder, for before and after."""
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*"))
