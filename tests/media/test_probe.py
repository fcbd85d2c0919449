from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ctxedit.errors import InputError
from ctxedit.media.probe import FOLDER_FPS, probe
from ctxedit.media.timeline import Orientation

from .clips import REAL, draw, encode, ffmpeg

SOUND = ("-f", "lavfi", "-i", "sine=d=0.48")


def test_what_a_plain_clip_is(tmp_path: Path) -> None:
    info = probe(encode(tmp_path / "clip.mp4", draw(5, 64, 48)))
    assert (info.width, info.height, info.coded_width, info.coded_height) == (64, 48, 64, 48)
    assert (info.codec, info.pix_fmt, info.bit_depth, info.has_alpha) == ("h264", "yuv420p", 8, False)
    assert (info.rotation, info.pixel_aspect, info.has_audio, info.audio_codec) == (0, 1, False, None)


def test_rotation_is_clockwise_and_gives_the_size_as_displayed(tmp_path: Path) -> None:
    upright = encode(tmp_path / "upright.mp4", draw(3))
    for turn, rotation, size in ((-90, 90, (48, 64)), (90, 270, (48, 64)), (180, 180, (64, 48))):
        path = tmp_path / f"turned{rotation}.mp4"
        ffmpeg("-display_rotation", turn, "-i", upright, "-c", "copy", path)
        info = probe(path)
        assert (info.rotation, info.width, info.height) == (rotation, *size)
        assert (info.coded_width, info.coded_height) == (64, 48)


def test_orientation_flips() -> None:
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    clockwise = Orientation(transpose=True, flip_x=True)
    assert np.array_equal(clockwise.apply(image), np.rot90(image, -1))
    assert np.array_equal(Orientation(flip_x=True).apply(image), image[:, ::-1])


def test_pixel_aspect_bit_depth_alpha_and_sound(tmp_path: Path) -> None:
    wide = probe(encode(tmp_path / "wide.mp4", draw(3), "-vf", "setsar=4/3", "-pix_fmt", "yuv420p"))
    assert (wide.width, wide.height, wide.pixel_aspect) == (85, 48, Fraction(4, 3))
    deep = probe(encode(tmp_path / "deep.mp4", draw(3), "-pix_fmt", "yuv420p10le"))
    assert (deep.bit_depth, deep.pix_fmt) == (10, "yuv420p10le")
    alpha = probe(encode(tmp_path / "alpha.webm", draw(3), "-c:v", "libvpx-vp9", "-pix_fmt", "yuva420p"))
    assert alpha.has_alpha
    loud = probe(encode(tmp_path / "loud.mp4", draw(12), "-pix_fmt", "yuv420p", inputs=SOUND))
    assert (loud.has_audio, loud.audio_codec, loud.frames) == (True, "aac", 12)


def test_uneven_timing_is_seen(tmp_path: Path) -> None:
    drop = "select='not(eq(n,3)+eq(n,4)+eq(n,7))'"
    options = ("-vf", drop, "-fps_mode", "passthrough", "-pix_fmt", "yuv420p")
    info = probe(encode(tmp_path / "uneven.mp4", draw(12), *options))
    assert info.variable_frame_rate and info.frames == 9
    assert info.duration == pytest.approx(12 / 25)


def test_invisible_vp8_pictures_are_not_counted(tmp_path: Path) -> None:
    options = (
        "-c:v",
        "libvpx",
        "-auto-alt-ref",
        1,
        "-lag-in-frames",
        16,
        "-b:v",
        "400k",
        "-pix_fmt",
        "yuv420p",
    )
    assert probe(encode(tmp_path / "clip.webm", draw(40), *options)).frames == 40


def test_gif(tmp_path: Path) -> None:
    info = probe(encode(tmp_path / "clip.gif", draw(7), "-c:v", "gif", rate=10))
    assert (info.kind, info.frames, info.fps, info.duration) == ("gif", 7, 10, pytest.approx(0.7))


def test_folder_and_image(tmp_path: Path) -> None:
    for index in range(11):
        Image.fromarray(draw(1, 63, 47)[0]).save(tmp_path / f"frame{index}.png")
    (tmp_path / "notes.txt").write_text("not a frame")
    folder, image = probe(tmp_path), probe(tmp_path / "frame3.png")
    assert (folder.kind, folder.frames, folder.width, folder.height) == ("folder", 11, 63, 47)
    assert (image.kind, image.frames, image.fps) == ("image", 1, FOLDER_FPS)


def test_photo_lying_on_its_side(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(draw(1)[0]).save(tmp_path / "photo.jpg", exif=exif)
    info = probe(tmp_path / "photo.jpg")
    assert (info.width, info.height, info.coded_width) == (48, 64, 64)


def _truncated(folder: Path) -> Path:
    whole = encode(folder / "whole.mp4", draw(12)).read_bytes()
    assert whole.index(b"moov") > len(whole) // 2  # the index is at the end, and gets lost
    (folder / "bad.mp4").write_bytes(whole[: len(whole) // 2])
    return folder / "bad.mp4"


def _text(folder: Path) -> Path:
    (folder / "bad.mp4").write_text("This is a letter, not a clip.\n" * 50)
    return folder / "bad.mp4"


def _empty(folder: Path) -> Path:
    (folder / "bad.mp4").touch()
    return folder / "bad.mp4"


def _sound_only(folder: Path) -> Path:
    ffmpeg("-f", "lavfi", "-i", "sine=d=0.2", folder / "bad.mp4")
    return folder / "bad.mp4"


def _song_with_cover(folder: Path) -> Path:
    Image.fromarray(draw(1)[0]).save(folder / "cover.png")
    cover = ("-i", folder / "cover.png", "-map", 0, "-map", 1, "-disposition:v", "attached_pic")
    ffmpeg("-f", "lavfi", "-i", "sine=d=0.2", *cover, "-c:v", "png", folder / "bad.mp3")
    return folder / "bad.mp3"


def _no_frames(folder: Path) -> Path:
    options = ("-frames:v", 0, "-c:v", "libx264", "-pix_fmt", "yuv420p", "-f", "matroska")
    return encode(folder / "bad.mkv", draw(1), *options)


def _empty_folder(folder: Path) -> Path:
    (folder / "bad").mkdir()
    (folder / "bad" / ".hidden.png").touch()
    return folder / "bad"


def _mixed_sizes(folder: Path) -> Path:
    (folder / "bad").mkdir()
    Image.fromarray(draw(1)[0]).save(folder / "bad" / "1.png")
    Image.fromarray(draw(1, 32, 32)[0]).save(folder / "bad" / "2.png")
    return folder / "bad"


def _not_an_image(folder: Path) -> Path:
    (folder / "bad.png").write_text("nothing to see")
    return folder / "bad.png"


def _pages(folder: Path) -> Path:
    frames = [Image.fromarray(frame) for frame in draw(3)]
    frames[0].save(folder / "bad.tif", save_all=True, append_images=frames[1:])
    return folder / "bad.tif"


def _standard_input(folder: Path) -> Path:
    return Path("-")


def _address(folder: Path) -> Path:
    return Path("https://example.org/clip.mp4")


def _pattern(folder: Path) -> Path:
    return folder / "frame_%04d.png"


def _long(folder: Path) -> Path:
    return folder / ("x" * 300 + ".mp4")


def _heif(folder: Path) -> Path:
    (folder / "bad.jpg").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 40)
    return folder / "bad.jpg"


def _huge(folder: Path) -> Path:
    Image.new("1", (14000, 14000)).save(folder / "bad.png")
    return folder / "bad.png"


def _playlist(folder: Path) -> Path:
    encode(folder / "a.mp4", draw(3))
    (folder / "list.mp4").write_text("ffconcat version 1.0\nfile a.mp4\n")
    return folder / "list.mp4"


def _stream(folder: Path) -> Path:
    path = _playlist(folder).with_name("stream.mp4")
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:2,\na.mp4\n#EXT-X-ENDLIST\n")
    return path.rename(path.with_suffix(".m3u8"))


def _absent(folder: Path) -> Path:
    return folder / "absent.mp4"


BAD = {
    _absent: "does not exist",
    _truncated: "truncated",
    _text: "cannot be read as a video",
    _empty: "0 bytes",
    _sound_only: "sound but no video",
    _song_with_cover: "sound but no video",
    _no_frames: "bad.mkv",
    _empty_folder: "no images",
    _mixed_sizes: "2.png is 32x32",
    _not_an_image: "as an image",
    _pages: "several images",
    _standard_input: "standard input",
    _address: "web address",
    _pattern: "pattern",
    _long: "too long",
    _heif: "HEIF",
    _huge: "megapixels",
    _playlist: "list of other files",
    _stream: "list of other files",
}


@pytest.mark.parametrize(("make", "message"), BAD.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_bad_input_is_refused_with_a_hint_and_no_noise(make, message, tmp_path: Path, capfd) -> None:
    bad = make(tmp_path)
    capfd.readouterr()
    with pytest.raises(InputError, match=message) as caught:
        probe(bad)
    assert caught.value.hint and "\n" not in caught.value.message
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(not REAL.is_dir(), reason="no real clips beside the repository")
def test_real_clips() -> None:
    skiing, jeep = probe(REAL / "man_skiing" / "source.mp4"), probe(REAL / "jeep" / "frames")
    assert (skiing.frames, skiing.fps, skiing.width) == (91, Fraction(30000, 1001), 718)
    assert (jeep.frames, jeep.kind) == (8, "folder")
