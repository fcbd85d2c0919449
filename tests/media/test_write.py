from __future__ import annotations

import errno
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from ctxedit.errors import ConfigError, OutputError
from ctxedit.media import sound
from ctxedit.media.geometry import resize
from ctxedit.media.probe import probe
from ctxedit.media.read import read_frames
from ctxedit.media.write import check_output, holds_audio, write_clip, write_image

from .clips import draw, encode, far, ffmpeg, numbers
from .drawn import heard

NTSC = Fraction(30000, 1001)


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm"])
@pytest.mark.parametrize(("width", "height"), [(64, 48), (63, 47), (48, 65)])
def test_video_round_trip(tmp_path: Path, suffix: str, width: int, height: int) -> None:
    drawn = draw(10, width, height)
    path = write_clip(tmp_path / f"clip{suffix}", drawn, NTSC)
    clip = read_frames(path, frames=5, stride=2)
    even = suffix != ".webm"
    size = (width + width % 2, height + height % 2) if even else (width, height)
    assert (clip.info.width, clip.info.height, clip.info.frames) == (*size, 10)
    assert (clip.info.fps, clip.fps) == (NTSC, NTSC / 2)
    assert not clip.info.variable_frame_rate
    assert far(clip.frames[:, :height, :width], drawn[::2]) < 5
    assert far(clip.frames[:, -1:], clip.frames[:, -2:-1]) < 5
    assert clip.info.codec == ("vp9" if suffix == ".webm" else "h264")
    assert clip.info.pix_fmt == "yuv420p"
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("fps", [Fraction(8), Fraction(25, 3), NTSC / 2, Fraction(1, 2)])
def test_frame_rates(tmp_path: Path, fps: Fraction) -> None:
    assert probe(write_clip(tmp_path / "clip.mp4", draw(3), fps)).fps == fps


def test_one_frame(tmp_path: Path) -> None:
    for name in ("one.mp4", "one.webm", "one.gif", "one"):
        assert read_frames(write_clip(tmp_path / name, draw(1), Fraction(8)), frames=1).frames.shape[0] == 1


@pytest.mark.parametrize(("fps", "told"), [(Fraction(10), 10), (Fraction(25), 25), (NTSC, Fraction(30))])
def test_gif(tmp_path: Path, fps: Fraction, told: Fraction) -> None:
    drawn = draw(12, 63, 47)
    path = write_clip(tmp_path / "clip.gif", drawn, fps)
    clip = read_frames(path, frames=12)
    assert (clip.info.kind, clip.info.width, clip.info.height, clip.fps) == ("gif", 63, 47, told)
    assert numbers(clip.frames) == list(range(12))
    with Image.open(path) as second_opinion:
        assert second_opinion.n_frames == 12


def test_folder_is_lossless(tmp_path: Path) -> None:
    drawn = draw(11, 63, 47)
    for target in (tmp_path / "frames", f"{tmp_path}/frames.v2/"):
        assert np.array_equal(read_frames(write_clip(target, drawn, NTSC), frames=11).frames, drawn)
    assert sorted(os.listdir(tmp_path / "frames"))[::10] == ["00000.png", "00010.png"]
    write_clip(tmp_path / "frames", drawn[:2], NTSC, overwrite=True)
    assert len(os.listdir(tmp_path / "frames")) == 2


def test_a_folder_of_other_things_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(OutputError, match="files other than frames"):
        write_clip(tmp_path, draw(2), NTSC, overwrite=True)
    assert os.listdir(tmp_path) == ["holiday.jpg"]


def test_what_exists_is_kept_unless_told(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_text("mine")
    with pytest.raises(OutputError, match="exists"):
        write_clip(path, draw(2), NTSC)
    assert path.read_text() == "mine"
    write_clip(path, draw(2), NTSC, overwrite=True)
    assert probe(path).frames == 2


def test_names_and_rates_that_are_refused_beforehand(tmp_path: Path) -> None:
    for name, fps in (("clip.avi", Fraction(8)), ("clip.gif", Fraction(60))):
        with pytest.raises(ConfigError) as caught:
            check_output(tmp_path / name, fps)
        assert caught.value.hint
    check_output(tmp_path / "clip.gif", Fraction(50))
    with pytest.raises(ValueError, match="uint8"):
        write_clip(tmp_path / "clip.mp4", draw(2).astype(np.float32), NTSC)
    assert os.listdir(tmp_path) == []


def _breaks(error: BaseException):
    def write_frames(path, *_, **__):
        Path(path).write_bytes(b"half")
        yield
        raise error

    return write_frames


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), OutputError),
        (OSError("Broken pipe"), OutputError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
    ids=["full", "pipe", "interrupt"],
)
def test_no_half_file_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error, expected) -> None:
    (tmp_path / "clip.mp4").write_text("before")
    monkeypatch.setattr(imageio_ffmpeg, "write_frames", _breaks(error))
    with pytest.raises(expected):
        write_clip(tmp_path / "clip.mp4", draw(2), NTSC, overwrite=True)
    assert os.listdir(tmp_path) == ["clip.mp4"]
    assert (tmp_path / "clip.mp4").read_text() == "before"


def test_ffmpeg_that_writes_fewer_frames_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = imageio_ffmpeg.write_frames

    def short(*arguments, output_params, **options):
        return original(*arguments, output_params=[*output_params, "-frames:v", "3"], **options)

    monkeypatch.setattr(imageio_ffmpeg, "write_frames", short)
    with pytest.raises(OutputError, match="could not write"):
        write_clip(tmp_path / "clip.mp4", draw(5), NTSC)
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a limit on file sizes")
@pytest.mark.parametrize("name", ["clip.mp4", "clip.gif", "frames"])
def test_a_disk_that_really_fills(tmp_path: Path, name: str) -> None:
    code = f"""
import resource, signal
from fractions import Fraction
import numpy as np
from ctxedit.errors import OutputError
from ctxedit.media.write import write_clip
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
frames = np.random.default_rng(0).integers(0, 255, (12, 96, 128, 3), np.uint8)
try:
    write_clip({str(tmp_path / name)!r}, frames, Fraction(8))
except OutputError as error:
    print("refused:", error.message)
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.stdout.startswith("refused:") and done.stderr == ""
    assert os.listdir(tmp_path) == []


def _with_sound(folder: Path, codec: str, suffix: str = ".mkv") -> Path:
    tones = ("-f", "lavfi", "-i", "sine=frequency=440:duration=4:sample_rate=48000")
    options = ("-pix_fmt", "yuv420p", "-c:a", codec, "-strict", "-2")
    return encode(folder / f"source{suffix}", draw(100), *options, inputs=tones)


def _seconds_of_sound(path: Path) -> tuple[str, float]:
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        length = sum(frame.samples / frame.sample_rate for frame in container.decode(stream))
        return stream.codec_context.codec.canonical_name, length


@pytest.mark.parametrize(
    ("suffix", "source", "kept"),
    [
        (".mp4", "aac", "aac"),
        (".mp4", "flac", "aac"),
        (".mov", "aac", "aac"),
        (".mkv", "flac", "flac"),
        (".webm", "libopus", "opus"),
        (".webm", "aac", "opus"),
    ],
)
def test_the_sound_of_the_span_is_kept(tmp_path: Path, suffix: str, source: str, kept: str) -> None:
    origin = _with_sound(tmp_path, source)
    clip = read_frames(origin, frames=12, start=25, stride=4)
    path = tmp_path / f"edit{suffix}"
    audio = {"audio_start": clip.start_seconds, "audio_duration": clip.span_seconds}
    write_clip(path, clip.frames, clip.fps, audio_from=origin, **audio)
    codec, seconds = _seconds_of_sound(path)
    assert codec == kept
    assert clip.span_seconds == pytest.approx(1.92)
    assert seconds == pytest.approx(1.92, abs=0.15)
    assert numbers(read_frames(path, frames=12).frames) == clip.indices
    assert probe(path).fps == Fraction(25, 4)
    assert sorted(os.listdir(tmp_path)) == sorted([path.name, origin.name])


def test_sound_copied_is_untouched_and_comes_from_the_right_place(tmp_path: Path) -> None:
    sweep = ("-f", "lavfi", "-i", "aevalsrc='if(lt(t,2),0,0.5*sin(2000*t))':d=4:s=48000")
    options = ("-pix_fmt", "yuv420p", "-c:a", "pcm_s16le")
    origin = encode(tmp_path / "source.mkv", draw(100), *options, inputs=sweep)
    path = write_clip(tmp_path / "edit.mkv", draw(50), Fraction(25), audio_from=origin, audio_start=1.0)
    sound = np.frombuffer(ffmpeg("-i", path, "-f", "s16le", "-ac", 1, "-"), np.int16)
    assert len(sound) / 48000 == pytest.approx(2.0, abs=0.05)
    assert np.flatnonzero(np.abs(sound) > 1000)[0] / 48000 == pytest.approx(1.0, abs=0.05)


def test_no_sound(tmp_path: Path) -> None:
    origin = _with_sound(tmp_path, "aac", ".mp4")
    silent = encode(tmp_path / "silent.mp4", draw(5))
    assert not probe(write_clip(tmp_path / "a.mp4", draw(5), Fraction(8))).has_audio
    assert not probe(write_clip(tmp_path / "b.mp4", draw(5), Fraction(8), audio_from=silent)).has_audio
    assert not probe(write_clip(tmp_path / "c.gif", draw(5), Fraction(8), audio_from=origin)).has_audio
    assert holds_audio("a.webm") and not holds_audio("a.gif") and not holds_audio("frames/")


def test_sound_is_not_longer_than_the_picture(tmp_path: Path) -> None:
    origin = _with_sound(tmp_path, "aac", ".mp4")
    path = write_clip(tmp_path / "a.mp4", draw(8), Fraction(8), audio_from=origin, audio_duration=3.5)
    assert _seconds_of_sound(path)[1] == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize("start", [0.0, 1.0])
def test_sound_that_no_seek_finds_is_decoded_from_the_beginning(tmp_path: Path, start: float) -> None:
    """FFmpeg finds no ADPCM in an AVI after a seek, and does not call that an error."""
    origin = _with_sound(tmp_path, "adpcm_ms", ".avi")
    path = tmp_path / "a.mp4"
    write_clip(path, draw(8), Fraction(8), audio_from=origin, audio_start=start, audio_duration=1.0)
    seconds, tone = heard(path)
    assert (seconds, tone) == (pytest.approx(1.0, abs=0.05), pytest.approx(440, abs=2))


def test_a_track_that_ends_before_the_span_leaves_a_silent_clip(tmp_path: Path) -> None:
    origin, said = _with_sound(tmp_path, "aac", ".mp4"), list[str]()
    path = tmp_path / "a.mp4"
    write_clip(path, draw(8), Fraction(8), audio_from=origin, audio_start=9.0, warn=said.append)
    assert not probe(path).has_audio and said == []


def test_sound_that_fails_costs_a_warning_and_not_the_edit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin = _with_sound(tmp_path, "aac", ".mp4")
    failed = subprocess.CompletedProcess([], 1, stderr=b"first\nno such encoder\n")
    monkeypatch.setattr(sound.subprocess, "run", lambda *_, **__: failed)
    said: list[str] = []
    path = write_clip(tmp_path / "a.mp4", draw(8), Fraction(8), audio_from=origin, warn=said.append)
    assert len(said) == 1 and "silent" in said[0] and "no such encoder" in said[0]
    assert (probe(path).frames, probe(path).has_audio) == (8, False)
    assert sorted(os.listdir(tmp_path)) == sorted([path.name, origin.name])


def test_chroma_and_odd_sizes(tmp_path: Path) -> None:
    said: list[str] = []
    write_clip(tmp_path / "a.mp4", draw(2, 63, 48), NTSC, warn=said.append)
    assert len(said) == 1 and "63×48 becomes 64×48" in said[0]
    path = write_clip(tmp_path / "b.mp4", draw(2, 63, 47), NTSC, chroma="444", warn=said.append)
    assert (probe(path).pix_fmt, probe(path).width, probe(path).height) == ("yuv444p", 63, 47)
    assert len(said) == 1
    with pytest.raises(ConfigError, match="chroma"):
        write_clip(tmp_path / "c.mp4", draw(2), NTSC, chroma="422")


def test_scaled_as_it_is_written(tmp_path: Path) -> None:
    drawn = draw(3)
    write_clip(tmp_path / "large", drawn, NTSC, size=(128, 96))
    frames = read_frames(tmp_path / "large", frames=3).frames
    assert np.array_equal(frames, resize(drawn, 128, 96))


UNEVEN = [Fraction(1, 25)] * 4 + [Fraction(2, 5)] * 3 + [Fraction(1)]


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm", ".gif"])
@pytest.mark.parametrize("loud", [False, True])
def test_frames_keep_their_own_times(tmp_path: Path, suffix: str, loud: bool) -> None:
    origin = _with_sound(tmp_path, "aac", ".mp4") if loud else None
    drawn = draw(8)
    fps = 8 / sum(UNEVEN)
    path = write_clip(tmp_path / f"a{suffix}", drawn, fps, durations=UNEVEN, audio_from=origin)
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        times = [float(frame.pts * frame.time_base) for frame in frames]
        assert container.duration / 1e6 == pytest.approx(float(sum(UNEVEN)), abs=0.05)
    assert times == pytest.approx(list(np.cumsum([0, *map(float, UNEVEN[:-1])])), abs=0.002)
    clip = read_frames(path, frames=8)
    assert clip.durations is not None
    assert [float(one) for one in clip.durations[:-1]] == pytest.approx(
        [float(one) for one in UNEVEN[:-1]], abs=0.002
    )
    if not loud or suffix in (".mp4", ".mov"):  # Matroska says the last frame's end of the whole file only
        assert clip.span_seconds == pytest.approx(float(sum(UNEVEN)), abs=0.002)
    assert numbers(clip.frames) == list(range(8))
    if loud and holds_audio(path):
        assert _seconds_of_sound(path)[1] == pytest.approx(float(sum(UNEVEN)), abs=0.15)


def test_images(tmp_path: Path) -> None:
    image = draw(1, 63, 47)[0]
    path = write_image(tmp_path / "deep" / "a.png", image)
    with Image.open(path) as again:
        assert np.array_equal(np.asarray(again), image)
    with pytest.raises(OutputError):
        write_image(path, image)
    assert write_image(path, image[::2], overwrite=True) == path
    with pytest.raises(ConfigError, match="images are not written"):
        write_image(tmp_path / "a.mp4", image)
