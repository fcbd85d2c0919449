"""The frames asked for, whatever container, codec and span: held against decoding from the start."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import av
import numpy as np
import pytest

from ctxedit.media.read import read_frames

from .clips import draw, encode, ffmpeg, numbers

H264 = ("-c:v", "libx264", "-preset", "ultrafast", "-g", 12, "-bf", 2, "-pix_fmt", "yuv420p")
FILES = {
    "plain.mp4": H264,
    "plain.mov": H264,
    "plain.mkv": H264,
    "plain.ts": H264,
    "plain.flv": H264,
    "disc.m2ts": ("-c:v", "mpeg2video", "-g", 12, "-bf", 2, "-q:v", 2, "-pix_fmt", "yuv420p"),
    "disc.mpg": ("-c:v", "mpeg2video", "-g", 12, "-bf", 2, "-q:v", 2, "-pix_fmt", "yuv420p"),
    "old.avi": ("-c:v", "mpeg4", "-g", 12, "-bf", 2, "-q:v", 2, "-pix_fmt", "yuv420p"),
    "intra.avi": ("-c:v", "mjpeg", "-q:v", 2, "-pix_fmt", "yuvj420p"),
    "h264.avi": H264,
    "bare.mjpeg": ("-c:v", "mjpeg", "-q:v", 2, "-pix_fmt", "yuvj420p"),
    "web.webm": (
        "-c:v",
        "libvpx-vp9",
        "-g",
        12,
        "-cpu-used",
        8,
        "-deadline",
        "realtime",
        "-pix_fmt",
        "yuv420p",
    ),
    "hevc.mp4": ("-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "log-level=none:keyint=12"),
}
# Fragments that do not begin at key frames, ones that do, and a file whose index comes first.
MOVES = {
    "dash.mp4": ("-movflags", "dash", "-frag_duration", 300000),
    "fragments.mp4": ("-movflags", "frag_keyframe+empty_moov"),
    "fast.mp4": ("-movflags", "faststart"),
    "late.mp4": ("-output_ts_offset", 5),
    "late.ts": ("-output_ts_offset", 5),
}
SPANS = [(0, 6, 1), (5, 6, 1), (29, 4, 3), (12, 3, 20), (54, 6, 1)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("spans")
    drawn = draw(60)

    @cache
    def make(name: str) -> tuple[Path, np.ndarray]:
        path = folder / name
        if name in MOVES:
            ffmpeg("-i", make("plain.mp4")[0], "-c", "copy", *MOVES[name], path)
        else:
            encode(path, drawn, *FILES[name])
        with av.open(str(path)) as container:
            return path, np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])

    return make


@pytest.mark.parametrize("name", [*FILES, *MOVES])
def test_every_span_is_what_decoding_from_the_start_gives(made, name: str) -> None:
    path, whole = made(name)
    assert numbers(whole) == list(range(60))
    for start, frames, stride in SPANS:
        clip = read_frames(path, frames=frames, start=start, stride=stride)
        assert numbers(clip.frames) == clip.indices
        assert np.array_equal(clip.frames, whole[clip.indices])
        # An AVI's own clock begins a frame late.
        assert clip.start_seconds == pytest.approx(start / 25, abs=0.041 if name == "old.avi" else 0.002)
        assert clip.span_seconds == pytest.approx(frames * stride / 25)


@pytest.mark.parametrize("width", [48, 72, 118])
def test_widths_whose_rows_are_padded(tmp_path: Path, width: int) -> None:
    path = encode(tmp_path / "clip.mp4", draw(4, width), *H264)
    with av.open(str(path)) as container:
        whole = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert np.array_equal(read_frames(path, frames=4).frames, whole)
