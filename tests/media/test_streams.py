"""Which of a file's streams are the clip and its sound; interlaced pictures."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from ctxedit.media.probe import probe
from ctxedit.media.read import read_frames
from ctxedit.media.write import write_clip

from .clips import draw, encode, ffmpeg, numbers
from .drawn import heard

TONES = ("-f", "lavfi", "-i", "sine=f=220:d=2", "-f", "lavfi", "-i", "sine=f=880:d=2")


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encode(tmp_path_factory.mktemp("film") / "film.mp4", draw(50), "-g", 10, "-pix_fmt", "yuv420p")


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
@pytest.mark.parametrize("marks", [("0", "default"), ("default", "0"), ("attached_pic", "default")])
def test_a_sleeve_is_never_the_clip(tmp_path: Path, film: Path, suffix: str, marks: tuple[str, str]) -> None:
    Image.fromarray(draw(1, 96, 80)[0]).save(tmp_path / "cover.png")
    path = tmp_path / f"sleeve{suffix}"
    ffmpeg(
        *("-i", tmp_path / "cover.png", "-i", film, "-map", 0, "-map", 1, "-c", "copy"),
        *("-disposition:v:0", marks[0], "-disposition:v:1", marks[1], path),
    )
    clip = read_frames(path, frames=3, start=20, stride=10)
    assert (clip.info.width, clip.info.frames) == (64, 50)
    assert numbers(clip.frames) == [20, 30, 40]


def test_of_two_films_the_default_one_and_else_the_longer(tmp_path: Path, film: Path) -> None:
    short = encode(tmp_path / "short.mp4", draw(10, 32, 32), "-pix_fmt", "yuv420p")
    for marks, frames in ((("default", "0"), 10), (("0", "default"), 50), (("0", "0"), 50)):
        path = tmp_path / "two.mp4"
        ffmpeg(
            *("-i", short, "-i", film, "-map", 0, "-map", 1, "-c", "copy"),
            *("-disposition:v:0", marks[0], "-disposition:v:1", marks[1], path),
        )
        # An MP4 without a default track makes its first one that.
        expected = 10 if marks == ("0", "0") and probe(path).frames == 10 else frames
        assert probe(path).frames == expected


@pytest.mark.parametrize(("marks", "tone"), [(("0", "default"), 880), (("default", "0"), 220)])
@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_the_default_sound_is_the_one_written(
    tmp_path: Path, film: Path, marks: tuple[str, str], tone: int, suffix: str
) -> None:
    path = tmp_path / "commentary.mkv"
    ffmpeg(
        *("-i", film, *TONES, "-map", 0, "-map", 1, "-map", 2, "-c:v", "copy", "-c:a", "aac"),
        *("-disposition:a:0", marks[0], "-disposition:a:1", marks[1], path),
    )
    edit = write_clip(tmp_path / f"edit{suffix}", draw(40), Fraction(25), audio_from=path, audio_start=0.2)
    assert heard(edit)[1] == pytest.approx(tone, abs=3)


def _unknown(path: Path, which: int) -> Path:
    """Give a sound track of a Matroska file a codec that nobody knows."""
    data = bytearray(path.read_bytes())
    at = -1
    for _ in range(which + 1):
        at = data.index(b"A_AAC", at + 1)
    data[at : at + 5] = b"A_XYZ"
    path.write_bytes(data)
    return path


def test_sound_in_an_unknown_codec(tmp_path: Path, film: Path) -> None:
    one = tmp_path / "one.mkv"
    ffmpeg("-i", film, *TONES[:4], "-map", 0, "-map", 1, "-c:v", "copy", "-c:a", "aac", one)
    info = probe(_unknown(one, 0))
    assert not info.has_audio and info.sound_note is not None and "silent" in info.sound_note
    said: list[str] = []
    edit = write_clip(tmp_path / "a.mp4", draw(5), Fraction(25), audio_from=one, warn=said.append)
    assert (probe(edit).frames, probe(edit).has_audio) == (5, False)
    two = tmp_path / "two.mkv"
    ffmpeg(
        *("-i", film, *TONES, "-map", 0, "-map", 1, "-map", 2, "-c:v", "copy", "-c:a", "aac"),
        *("-disposition:a:0", "default", "-disposition:a:1", "0", two),
    )
    info = probe(_unknown(two, 0))
    assert info.has_audio and info.sound_note is not None and "another" in info.sound_note
    edit = write_clip(tmp_path / "b.mp4", draw(40), Fraction(25), audio_from=two)
    assert heard(edit)[1] == pytest.approx(880, abs=3)


def _combs(frames: np.ndarray) -> float:
    """How much neighbouring lines differ beyond what lines two apart do."""
    grey = frames.astype(float).mean(-1)
    return float(np.abs(np.diff(grey, axis=1)).mean() - np.abs(grey[:, 2:] - grey[:, :-2]).mean() / 2)


@pytest.fixture(scope="module", params=["field.mp4", "field.ts", "field.mpg"])
def interlaced(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    y, x = np.mgrid[:64, :96]
    frames = np.stack(
        [np.repeat((((x + 6 * i) // 16 + y // 32) % 2 * 200 + 20)[..., None], 3, -1) for i in range(60)]
    ).astype(np.uint8)
    codec = ("-c:v", "mpeg2video", "-q:v", 2, "-flags", "+ilme+ildct", "-g", 8)
    if request.param != "field.mpg":
        codec = ("-c:v", "libx264", "-x264opts", "tff=1", "-crf", 4, "-g", 8, "-flags", "+ilme+ildct")
    filters = ("-vf", "tinterlace=4,setfield=tff,setparams=colorspace=bt709", "-pix_fmt", "yuv420p")
    path = tmp_path_factory.mktemp("fields") / request.param
    return encode(path, frames, *filters, *codec, rate=50)


def test_interlaced_frames_are_deinterlaced(interlaced: Path) -> None:
    info = probe(interlaced)
    assert info.interlaced and info.frames == 30 and info.fps == 25
    assert [note for note in info.notes if "deinterlaced" in note]
    clip = read_frames(interlaced, frames=30)
    with av.open(str(interlaced)) as container:
        raw = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert _combs(raw) > 10
    assert _combs(clip.frames) < 2
    # Colours and the field shown first are the raw frame's.
    assert np.abs(clip.frames[:, 8:-8:2].astype(int) - raw[:, 8:-8:2]).mean() < 3


@pytest.mark.parametrize(("start", "stride"), [(1, 1), (7, 1), (8, 1), (16, 5)])
def test_deinterlaced_frames_do_not_depend_on_where_reading_began(
    interlaced: Path, start: int, stride: int
) -> None:
    whole = read_frames(interlaced, frames=30).frames
    clip = read_frames(interlaced, frames=3, start=start, stride=stride)
    assert np.array_equal(clip.frames, whole[clip.indices])


def test_progressive_clips_are_left_alone(film: Path) -> None:
    assert not probe(film).interlaced and probe(film).notes == ()
