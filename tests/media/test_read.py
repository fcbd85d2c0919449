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
OPEN = "open-gop=1:keyint=12:min-keyint=12:bframes=2:b-adapt=0:scenecut=0"
KINDS = {
    "bframes.mp4": ("-bf", 3, "-g", 12, "-pix_fmt", "yuv420p"),
    "open.mp4": (
        "-x264-params",
        "open-gop=1:keyint=12:min-keyint=12:bframes=2:b-adapt=0:scenecut=0",
        "-pix_fmt",
        "yuv420p",
    ),
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
def test_the_frames_asked_for_in_the_order_of_presentation(tmp_path: Path, name: str) -> None:
    drawn = draw(60)
    path = encode(tmp_path / name, drawn, *KINDS[name])
    clip = read_frames(path, frames=6, start=5, stride=10, backend="pyav")
    assert clip.indices == [5, 15, 25, 35, 45, 55]
    assert numbers(clip.frames) == clip.indices
    assert far(clip.frames, decode(path, 64, 48)[clip.indices]) < 1.5
    assert far(clip.frames, drawn[clip.indices]) < 8
    assert clip.fps == Fraction(5, 2)
    assert clip.span_seconds == pytest.approx(60 / 25)


@pytest.mark.parametrize("name", ["bframes.mp4", "bt709.mp4"])
@pytest.mark.parametrize(("start", "stride"), [(0, 1), (7, 1), (3, 9)])
def test_decord_and_pyav_give_the_same_frames(tmp_path: Path, name: str, start: int, stride: int) -> None:
    pytest.importorskip("decord")
    path = encode(tmp_path / name, draw(60), *KINDS[name])
    ours = read_frames(path, frames=6, start=start, stride=stride, backend="pyav")
    theirs = read_frames(path, frames=6, start=start, stride=stride, backend="decord")
    assert numbers(theirs.frames) == ours.indices
    assert np.abs(ours.frames.astype(int) - theirs.frames).max() <= 2


def test_decord_is_kept_from_what_it_reads_wrongly(tmp_path: Path) -> None:
    for name in ("open.mp4", "full.mp4", "ten.mp4", "vp9.webm", "stream.ts"):
        path = encode(tmp_path / name, draw(30), *KINDS[name])
        assert not decord_fits(probe(path))
        assert numbers(read_frames(path, frames=3, stride=13).frames) == [0, 13, 26]
        with pytest.raises(ConfigError, match="decord"):
            read_frames(path, frames=3, backend="decord")


def test_without_decord_pyav_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = encode(tmp_path / "clip.mp4", draw(12))
    monkeypatch.setitem(__import__("sys").modules, "decord", None)
    assert numbers(read_frames(path, frames=4, stride=3).frames) == [0, 3, 6, 9]
    with pytest.raises(ConfigError, match="not installed"):
        read_frames(path, frames=4, backend="decord")


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_only_the_frames_needed_are_decoded(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = encode(tmp_path / f"long{suffix}", draw(120), "-g", 10, "-bf", 2, "-pix_fmt", "yuv420p")
    decoded: list[int] = []
    original = decoding._decode

    def counted(*arguments, **options):
        for place, frame in original(*arguments, **options):
            decoded.append(place)
            yield place, frame

    monkeypatch.setattr(decoding, "_decode", counted)
    clip = read_frames(path, frames=3, start=41, stride=30, backend="pyav")
    assert numbers(clip.frames) == [41, 71, 101]
    # At most one group of pictures and a frame or two each, of 120 frames.
    assert 3 <= len(decoded) <= 36
    decoded.clear()
    read_frames(path, frames=4, start=2, backend="pyav")
    assert len(decoded) <= 8


def test_probing_decodes_one_frame_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = encode(tmp_path / "clip.mp4", draw(60), "-g", 10, "-bf", 0, "-pix_fmt", "yuv420p")
    monkeypatch.setattr(decoding, "_decode", None)
    assert probe(path).frames == 60


@pytest.mark.parametrize("turn", [90, 180, -90])
def test_rotation(tmp_path: Path, turn: int) -> None:
    upright = encode(tmp_path / "upright.mp4", draw(6))
    path = tmp_path / "turned.mp4"
    ffmpeg("-display_rotation", turn, "-i", upright, "-c", "copy", path)
    info = probe(path)
    clip = read_frames(path, frames=3, stride=2)
    assert far(clip.frames, decode(path, info.width, info.height)[::2]) == 0
    turned = np.rot90(decode(upright, 64, 48), turn // 90, axes=(1, 2))
    assert far(clip.frames, turned[::2]) == 0


def test_pixels_are_made_square(tmp_path: Path) -> None:
    path = encode(tmp_path / "wide.mp4", draw(4), "-vf", "setsar=4/3", "-pix_fmt", "yuv420p")
    clip = read_frames(path, frames=4)
    assert clip.frames.shape == (4, 48, 85, 3)
    assert far(clip.frames, decode(path, 85, 48, "scale=85:48:flags=lanczos")) < 3


@pytest.mark.parametrize(("width", "height"), [(63, 47), (64, 47), (47, 64)])
def test_odd_sizes(tmp_path: Path, width: int, height: int) -> None:
    drawn = draw(4, width, height)
    path = encode(tmp_path / "odd.mp4", drawn, "-pix_fmt", "yuv444p", "-crf", 4)
    assert far(read_frames(path, frames=4).frames, drawn) < 4


def test_uneven_timing_goes_by_index(tmp_path: Path) -> None:
    drop = "select='not(eq(n,3)+eq(n,4)+eq(n,7))'"
    options = ("-vf", drop, "-fps_mode", "passthrough", "-pix_fmt", "yuv420p")
    clip = read_frames(encode(tmp_path / "uneven.mp4", draw(12), *options), frames=4, start=1, stride=2)
    assert numbers(clip.frames) == [1, 5, 8, 10]
    # Shown at 1, 5, 8 and 10 twenty-fifths of a second; the file ends at 12.
    assert clip.durations is not None and any("unevenly" in note for note in clip.notes)
    assert [duration * 25 for duration in clip.durations] == [4, 3, 2, 2]
    assert clip.span_seconds == pytest.approx(11 / 25)
    assert clip.fps == Fraction(4 * 25, 11)
    assert clip.start_seconds == pytest.approx(1 / 25)


def test_a_clip_cut_without_encoding_begins_where_it_is_shown_to_begin(tmp_path: Path) -> None:
    whole = encode(tmp_path / "whole.mp4", draw(60), *KINDS["bframes.mp4"])
    path = tmp_path / "cut.mp4"
    ffmpeg("-ss", 0.72, "-i", whole, "-c", "copy", path)
    shown = decode(path, 64, 48)
    clip = read_frames(path, frames=len(shown) // 3, stride=3)
    assert clip.info.frames == len(shown)
    assert far(clip.frames, shown[clip.indices]) == 0


@pytest.mark.parametrize(("background", "level"), [(255, 255), (0, 0)])
def test_transparency_is_laid_over_white_unless_told(tmp_path: Path, background: int, level: int) -> None:
    drawn = np.zeros((3, 32, 64, 4), np.uint8)
    drawn[:, :, :32] = (200, 60, 40, 255)
    film = encode(tmp_path / "film.webm", drawn, "-c:v", "libvpx-vp9", "-crf", 4, "-pix_fmt", "yuva420p")
    Image.fromarray(drawn[0]).save(tmp_path / "still.png")
    for path in (film, tmp_path / "still.png"):
        frames = read_frames(path, frames=1, background=background).frames
        assert frames[0, :, 48:].mean() == pytest.approx(level, abs=2)
        assert frames[0, 16, 8].astype(int) == pytest.approx([200, 60, 40], abs=6)


def test_gif(tmp_path: Path) -> None:
    clip = read_frames(
        encode(tmp_path / "clip.gif", draw(9), "-c:v", "gif", rate=20), frames=4, start=1, stride=2
    )
    assert numbers(clip.frames) == [1, 3, 5, 7]
    assert clip.fps == 10


def test_folder_in_natural_order_and_a_single_image(tmp_path: Path) -> None:
    drawn = draw(12, 63, 47)
    for index, frame in enumerate(drawn):
        Image.fromarray(frame).save(tmp_path / f"frame{index}.png")
    clip = read_frames(tmp_path, frames=5, start=1, stride=2)
    assert np.array_equal(clip.frames, drawn[1:10:2])
    assert np.array_equal(read_frames(tmp_path / "frame7.png", frames=1).frames, drawn[7:8])


def test_sixteen_bit_grey_and_turned_photos(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 32896, np.uint16)).save(tmp_path / "deep.png")
    assert np.unique(read_frames(tmp_path / "deep.png", frames=1).frames).tolist() == [128]
    exif = Image.Exif()
    exif[0x0112] = 6
    drawn = draw(1)[0]
    Image.fromarray(drawn).save(tmp_path / "photo.jpg", exif=exif, quality=98, subsampling=0)
    assert far(read_frames(tmp_path / "photo.jpg", frames=1).frames[0], np.rot90(drawn, -1)) < 3


@pytest.mark.parametrize(
    ("asked", "hint"),
    [
        ({"frames": 24}, "--frames 10 "),
        ({"frames": 8, "stride": 2}, "--frames 5 or --stride 1 would"),
        ({"frames": 4, "start": 8}, "--frames 2 or --start 6 would"),
        ({"frames": 1, "start": 50}, "--start 9 would"),
        ({"frames": 30, "start": 50}, "--start 0 --stride 1 --frames 10 would"),
    ],
)
def test_too_few_frames(tmp_path: Path, asked: dict[str, int], hint: str) -> None:
    path = encode(tmp_path / "short.mp4", draw(10))
    with pytest.raises(InputError, match="has 10 frames") as caught:
        read_frames(path, **asked)
    assert caught.value.hint is not None and hint in caught.value.hint


@pytest.mark.parametrize(
    "wrong", [{"frames": 0}, {"frames": -3}, {"stride": 0}, {"start": -1}, {"backend": "opencv"}], ids=str
)
def test_numbers_out_of_range(tmp_path: Path, wrong: dict) -> None:
    with pytest.raises(ConfigError) as caught:
        read_frames(tmp_path / "absent.mp4", **{"frames": 4, **wrong})
    assert caught.value.hint


def test_a_tail_that_is_lost_is_not_counted(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = encode(tmp_path / "clip.mp4", draw(60), "-movflags", "faststart", "-g", 10, "-pix_fmt", "yuv420p")
    path.write_bytes(path.read_bytes()[:-3000])
    info = probe(path)
    assert 10 < info.frames < 60
    assert numbers(read_frames(path, frames=10, backend="pyav").frames) == list(range(10))
    with pytest.raises(InputError):
        read_frames(path, frames=60)
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(not REAL.is_dir(), reason="no real clips beside the repository")
@pytest.mark.parametrize("name", ["car_turn", "man_skiing", "wolf"])
def test_real_clips(name: str) -> None:
    path = REAL / name / "source.mp4"
    ours = read_frames(path, frames=4, start=11, stride=7, backend="pyav")
    if decord_fits(ours.info):
        theirs = read_frames(path, frames=4, start=11, stride=7, backend="decord")
        assert np.abs(ours.frames.astype(int) - theirs.frames).max() <= 2
    assert far(ours.frames, decode(path, ours.info.width, ours.info.height)[ours.indices]) < 1
