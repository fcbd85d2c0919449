"""Animated images, motion photos, and clips too large to be held at their own size."""

from __future__ import annotations

import tracemalloc
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, features

from ctxedit.errors import InputError
from ctxedit.media.companions import read_companion
from ctxedit.media.geometry import plan_fit, resize
from ctxedit.media.mask import read_mask
from ctxedit.media.probe import probe
from ctxedit.media.read import read_frames
from ctxedit.media.write import write_clip

from .clips import draw, encode, far, numbers

TIMES = [40] * 4 + [400] * 4


def _animated(path: Path, times: list[int] | int, frames: np.ndarray) -> Path:
    images = [Image.fromarray(frame) for frame in frames]
    options = {".png": {}, ".webp": {"lossless": True}, ".avif": {"quality": 95}}[path.suffix]
    images[0].save(path, save_all=True, append_images=images[1:], duration=times, **options)
    return path


@pytest.mark.parametrize("suffix", [".png", ".webp", ".avif"])
def test_animated_images(tmp_path: Path, suffix: str) -> None:
    if suffix == ".avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    drawn = draw(8)
    uneven = read_frames(_animated(tmp_path / f"uneven{suffix}", TIMES, drawn), frames=8)
    assert (uneven.info.kind, uneven.info.frames) == ("animation", 8)
    assert uneven.info.duration == pytest.approx(1.76)
    assert uneven.durations == tuple(Fraction(time, 1000) for time in TIMES)
    assert far(uneven.frames, drawn) < 3
    clip = read_frames(tmp_path / f"uneven{suffix}", frames=3, start=1, stride=2)
    assert numbers(clip.frames) == clip.indices == [1, 3, 5]
    assert clip.durations == (Fraction(2, 25), Fraction(11, 25), Fraction(4, 5))
    assert clip.start_seconds == pytest.approx(0.04)
    even = read_frames(_animated(tmp_path / f"even{suffix}", 50, drawn), frames=4, stride=2)
    assert (even.fps, even.durations) == (10, None)
    edge = read_frames(tmp_path / f"uneven{suffix}", frames=3, start=5)
    assert (edge.fps, edge.durations) == (Fraction(5, 2), None)


def test_an_edit_of_an_uneven_clip_lasts_as_long(tmp_path: Path) -> None:
    clip = read_frames(_animated(tmp_path / "clip.webp", TIMES, draw(8)), frames=4, start=2, stride=1)
    assert clip.span_seconds == pytest.approx(0.88)
    path = write_clip(tmp_path / "edit.mp4", clip.frames, clip.fps, durations=clip.durations)
    assert probe(path).duration == pytest.approx(0.88)
    assert read_frames(path, frames=4).durations == clip.durations


def test_a_pause_elsewhere_does_not_change_the_speed(tmp_path: Path) -> None:
    pause = ("-vf", "setpts='(N/25+if(lt(N,20),0,600))/TB'", "-fps_mode", "vfr", "-pix_fmt", "yuv420p")
    path = encode(tmp_path / "pause.mp4", draw(40), *pause, "-video_track_timescale", 90000)
    assert probe(path).variable_frame_rate
    for start in (0, 11, 25):
        clip = read_frames(path, frames=4, start=start, stride=2)
        assert (clip.fps, clip.durations) == (Fraction(25, 2), None)
        assert clip.span_seconds == pytest.approx(8 / 25)
        assert numbers(clip.frames) == clip.indices
    across = read_frames(path, frames=4, start=18)
    with av.open(str(path)) as container:  # the encoder may move the first frame after the pause
        stream = container.streams.video[0]
        shown = [int(frame.pts) * stream.time_base for frame in container.decode(stream)]
    assert shown[20] - shown[19] > 590
    assert across.durations == tuple(shown[n + 1] - shown[n] for n in range(18, 22))


def test_motion_photo(tmp_path: Path) -> None:
    Image.fromarray(draw(1, 96, 80)[0]).save(tmp_path / "still.jpg")
    film = encode(tmp_path / "film.mp4", draw(12), "-pix_fmt", "yuv420p", "-g", 4)
    path = tmp_path / "photo: of, mine.jpg"
    path.write_bytes((tmp_path / "still.jpg").read_bytes() + film.read_bytes())
    clip = read_frames(path, frames=3, start=5, stride=3)
    assert clip.info.motion_photo and clip.info.frames == 12 and clip.notes
    assert np.array_equal(clip.frames, read_frames(film, frames=3, start=5, stride=3).frames)
    assert probe(tmp_path / "still.jpg").kind == "image"
    (tmp_path / "trap.jpg").write_bytes((tmp_path / "still.jpg").read_bytes() + b"xxxxftypxxxx" * 9)
    assert probe(tmp_path / "trap.jpg").kind == "image"


def _peak(work) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["video", "folder", "animation"])
def test_no_more_than_a_frame_is_held_at_the_size_of_the_source(tmp_path: Path, kind: str) -> None:
    side, count = 768, 12
    frames = np.zeros((count, side, side, 3), np.uint8)
    frames[:, :, side // 2 :] = 255
    path = tmp_path / {"video": "clip.mp4", "folder": "clip", "animation": "clip.webp"}[kind]
    if kind == "animation":
        _animated(path, 40, frames + np.arange(count, dtype=np.uint8)[:, None, None, None])
    else:
        write_clip(path, frames, Fraction(25))
    fit = plan_fit(side, side, 64, 8)
    small = lambda picture: resize(picture[None], 64, 64)[0]  # noqa: E731
    whole = read_frames(path, frames=count)
    scaled = read_frames(path, frames=count, each=small)
    assert np.array_equal(scaled.frames, resize(whole.frames, 64, 64))
    one = side * side * 3
    del whole
    assert _peak(lambda: read_frames(path, frames=count, each=small)) < 5 * one
    assert _peak(lambda: read_mask(path, count, 0, 1, fit)) < 5 * one
    assert _peak(lambda: read_companion(path, "control map", count, 0, 1, fit)) < 5 * one


def test_one_large_mask_for_many_frames(tmp_path: Path) -> None:
    Image.new("L", (1024, 1024), 255).save(tmp_path / "mask.png")
    fit = plan_fit(64, 64, 64, 8)
    assert _peak(lambda: read_mask(tmp_path / "mask.png", 24, 0, 1, fit)) < 5 * 3 * 1024**2


def test_a_hundred_million_frames_are_counted_before_they_are_listed(tmp_path: Path) -> None:
    path = encode(tmp_path / "clip.mp4", draw(10), "-pix_fmt", "yuv420p")
    Image.new("RGB", (64, 48)).save(tmp_path / "picture.png")

    def ask() -> None:
        for one in (path, tmp_path / "picture.png"):
            with pytest.raises(InputError, match="frame"):
                read_frames(one, frames=100_000_000)

    assert _peak(ask) < 1 << 22
