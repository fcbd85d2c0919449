"""What a clip is: exact rates, sizes as displayed, and one clear error for each broken file."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from ctxedit.errors import InputError
from ctxedit.media.probe import probe

from .drawn import draw, encode, ffmpeg, song

RATES = [Fraction(25), Fraction(30000, 1001), Fraction(24000, 1001), Fraction(15, 2), Fraction(60)]


@pytest.mark.parametrize("fps", RATES, ids=str)
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm"])
def test_exact_rate_and_count(tmp_path: Path, suffix: str, fps: Fraction) -> None:
    codec = "libvpx-vp9" if suffix == ".webm" else "libx264"
    options = {"deadline": "realtime", "cpu-used": "8"} if suffix == ".webm" else {}
    path = encode(tmp_path / f"clip{suffix}", draw(21), fps, codec=codec, options=options)
    info = probe(path)
    assert info.kind == "video"
    assert info.path == path
    assert (info.width, info.height, info.frames) == (64, 48, 21)
    assert info.fps == fps
    assert info.duration == pytest.approx(float(21 / fps), abs=0.03)
    assert (info.rotation, info.pixel_aspect, info.variable_frame_rate) == (0, 1, False)
    assert (info.has_audio, info.has_alpha, info.bit_depth) == (False, False, 8)
    assert info.codec == ("vp9" if suffix == ".webm" else "h264")
    assert info.pix_fmt == "yuv420p"


def test_sound_is_seen(tmp_path: Path) -> None:
    assert probe(encode(tmp_path / "clip.mp4", draw(30), 10, sound="aac")).has_audio


@pytest.mark.parametrize(("degrees", "size"), [(90, (48, 64)), (180, (64, 48)), (270, (48, 64))])
def test_rotation(tmp_path: Path, degrees: int, size: tuple[int, int]) -> None:
    upright = encode(tmp_path / "clip.mp4", draw(3))
    turned = tmp_path / "turned.mp4"
    # FFmpeg counts counter-clockwise.
    ffmpeg("-display_rotation", str(-degrees), "-i", upright, "-c", "copy", turned)
    info = probe(turned)
    assert info.rotation == degrees
    assert (info.width, info.height) == size


@pytest.mark.parametrize(
    ("aspect", "width"), [(Fraction(2), 128), (Fraction(1, 2), 32), (Fraction(12, 11), 70)]
)
def test_pixel_aspect(tmp_path: Path, aspect: Fraction, width: int) -> None:
    info = probe(encode(tmp_path / "clip.mp4", draw(3), aspect=aspect))
    assert info.pixel_aspect == aspect
    assert (info.width, info.height) == (width, 48)


def test_variable_rate(tmp_path: Path) -> None:
    times = [0, 40, 80, 280, 320, 700, 740, 780, 900, 1000]
    info = probe(encode(tmp_path / "clip.mp4", draw(10), pts=times))
    assert info.variable_frame_rate
    assert info.frames == 10
    assert float(info.fps) == pytest.approx(10, rel=0.1)


def test_ten_bits(tmp_path: Path) -> None:
    assert probe(encode(tmp_path / "clip.mp4", draw(3), pix_fmt="yuv420p10le")).bit_depth == 10


def test_alpha(tmp_path: Path) -> None:
    rgba = np.concatenate([draw(3), np.full((3, 48, 64, 1), 128, np.uint8)], axis=-1)
    path = encode(tmp_path / "clip.mov", rgba, codec="qtrle", pix_fmt="argb")
    assert probe(path).has_alpha


def test_gif(tmp_path: Path) -> None:
    images = [Image.fromarray(image) for image in draw(6)]
    images[0].save(tmp_path / "clip.gif", save_all=True, append_images=images[1:], duration=100, loop=0)
    info = probe(tmp_path / "clip.gif")
    assert (info.kind, info.width, info.height, info.frames, info.fps) == ("gif", 64, 48, 6, 10)


def test_folder_and_image(tmp_path: Path) -> None:
    for index, image in enumerate(draw(4, 63, 47)):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
    (tmp_path / "notes.txt").write_text("not a frame")
    info = probe(tmp_path)
    assert (info.kind, info.width, info.height, info.frames) == ("folder", 63, 47, 4)
    info = probe(tmp_path / "2.png")
    assert (info.kind, info.width, info.height, info.frames) == ("image", 63, 47, 1)


def _missing(folder: Path) -> Path:
    return folder / "none.mp4"


def _empty(folder: Path) -> Path:
    (folder / "clip.mp4").touch()
    return folder / "clip.mp4"


def _text(folder: Path) -> Path:
    (folder / "clip.mp4").write_text("this is no film\n" * 40)
    return folder / "clip.mp4"


def _noise(folder: Path) -> Path:
    (folder / "clip.mp4").write_bytes(np.random.default_rng(0).bytes(20_000))
    return folder / "clip.mp4"


def _truncated(folder: Path) -> Path:
    path = encode(folder / "clip.mp4", draw(30))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def _sound_only(folder: Path) -> Path:
    return song(folder / "song.mp4")


def _song_with_cover(folder: Path) -> Path:
    Image.fromarray(draw(1)[0]).save(folder / "cover.png")
    song(folder / "song.m4a")
    ffmpeg(
        "-i", folder / "song.m4a", "-i", folder / "cover.png", "-map", "0:a", "-map", "1:v",
        "-c", "copy", "-disposition:v:0", "attached_pic", folder / "covered.m4a",
    )  # fmt: skip
    return folder / "covered.m4a"


def _no_frames(folder: Path) -> Path:
    with av.open(str(folder / "clip.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()
    return folder / "clip.mkv"


def _no_images(folder: Path) -> Path:
    (folder / "frames").mkdir()
    (folder / "frames" / "readme.txt").write_text("soon")
    return folder / "frames"


def _sizes_differ(folder: Path) -> Path:
    (folder / "frames").mkdir()
    for name, size in (("1.png", (64, 48)), ("2.png", (64, 48)), ("3.png", (48, 64))):
        Image.new("RGB", size).save(folder / "frames" / name)
    return folder / "frames"


def _broken_image(folder: Path) -> Path:
    (folder / "picture.png").write_text("not a picture")
    return folder / "picture.png"


def _broken_in_folder(folder: Path) -> Path:
    (folder / "frames").mkdir()
    Image.new("RGB", (64, 48)).save(folder / "frames" / "1.png")
    (folder / "frames" / "2.png").write_bytes(b"\x89PNG")
    return folder / "frames"


BAD = {
    _missing: "does not exist",
    _empty: "empty",
    _text: "cannot be read as a video",
    _noise: "cannot be read as a video",
    _truncated: "truncated",
    _sound_only: "sound but no video",
    _song_with_cover: "sound but no video",
    _no_frames: "frames|video",
    _no_images: "no images",
    _sizes_differ: "1.png is 64x48, 3.png is 48x64",
    _broken_image: "cannot be read as an image",
    _broken_in_folder: "2.png cannot be read as an image",
}


@pytest.mark.parametrize(("make", "says"), BAD.items(), ids=[make.__name__[1:] for make in BAD])
def test_bad_files(tmp_path: Path, capfd: pytest.CaptureFixture[str], make, says: str) -> None:
    path = make(tmp_path)
    with pytest.raises(InputError, match=says) as caught:
        probe(path)
    assert caught.value.exit_code == 3
    assert caught.value.hint
    for line in (caught.value.message, caught.value.hint):
        assert "\n" not in line
    # FFmpeg must not talk past the error.
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no FIFOs")
def test_a_fifo_among_stills_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "1.png")
    os.mkfifo(tmp_path / "2.png")
    with pytest.raises(InputError, match=r"2\.png is a FIFO"):
        probe(tmp_path)
