"""Writing clips and images: whole or not at all."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
from PIL import Image

from ctxedit.errors import ConfigError, CtxeditError, OutputError
from ctxedit.media.embed import comment_gif, ffmpeg_options, pillow_options
from ctxedit.media.ffmpeg import ffmpeg
from ctxedit.media.geometry import resize
from ctxedit.media.montage import Pictures, contact_sheet, paired, side_by_side
from ctxedit.media.probe import probe
from ctxedit.media.retime import retime
from ctxedit.media.scratch import release
from ctxedit.media.sound import add_sound, holds_audio
from ctxedit.media.temporary import as_output_error, atomic, check_writable

__all__ = [
    "check_output",
    "check_size",
    "contact_sheet",
    "even_note",
    "holds_audio",
    "paired",
    "side_by_side",
    "write_clip",
    "write_image",
]

#: Of single images that are written.
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".gif")
_H264_SUFFIXES = (".mp4", ".mov", ".mkv")
#: The longest side that libx264 encodes.
_H264_SIDE = 16384
_LARGE = 3840 * 2160

# BT.601 is what readers assume who do not look at the tag, and the tag tells the others.
_COLOUR = ["-colorspace", "smpte170m", "-color_primaries", "smpte170m", "-color_trc", "smpte170m"]
_COLOUR += ["-color_range", "tv"]
_H264 = ["-crf", "12", "-preset", "medium", *_COLOUR]
_VP9 = ["-crf", "14", "-b:v", "0", "-deadline", "good", "-cpu-used", "4", *_COLOUR]
# One palette for the clip, with moving and still areas weighted equally.
_GIF = [
    "-filter_complex",
    "[0:v]split[a][b];[a]palettegen=reserve_transparent=0[p];[b][p]paletteuse=dither=sierra2_4a",
]
_FRAME_NAME = re.compile(r"\d{5,}\.png")


def even_note(path: str | Path, width: int, height: int, chroma: str = "420") -> str | None:
    """How a size that H.264 in 4:2:0 cannot hold is changed, as a sentence; None if it is not."""
    if _suffix(path) not in _H264_SUFFIXES or chroma != "420" or not (width % 2 or height % 2):
        return None
    return (
        f"H.264 that every player shows has even sides: {width}×{height} becomes "
        f"{width + width % 2}×{height + height % 2}, the last line of pixels repeated"
    )


def check_size(path: str | Path, width: int, height: int) -> None:
    """Raise ConfigError for frames that are larger than the encoder of this kind of video takes."""
    if _suffix(path) in _H264_SUFFIXES and max(width, height) > _H264_SIDE:
        raise ConfigError(
            f"H.264 holds at most {_H264_SIDE} pixels a side, not {width}×{height}",
            "write a .webm or a folder of PNGs with -o, or leave out --output-size source",
        )


def check_output(path: str | Path, fps: Fraction | None = None, overwrite: bool = False) -> None:
    """Everything about an output that can be seen before a frame is made; ``write_clip`` begins with it.

    Raises:
        ConfigError: a suffix that is not written, or a frame rate that GIF cannot hold.
        OutputError: it exists and not `overwrite`, its folder cannot be written, it is a folder of other
            things than frames, or there is no FFmpeg to write a video.
    """
    suffix = _suffix(path)
    if suffix not in ("", *VIDEO_SUFFIXES):
        raise ConfigError(
            f"clips are not written as {suffix}",
            f"use {', '.join(VIDEO_SUFFIXES)}, or a folder name for PNGs",
        )
    if suffix == ".gif" and fps is not None and fps > 50:
        raise ConfigError(
            f"a GIF holds at most 50 frames a second, not {float(fps):g}",
            "write an .mp4, or take a larger --stride",
        )
    path = Path(path)
    if (
        suffix == ""
        and path.is_dir()
        and not all(_FRAME_NAME.fullmatch(file.name) for file in path.iterdir())
    ):
        raise OutputError(f"{path} is a folder with files other than frames", "choose a new folder")
    check_writable(path, overwrite)
    if suffix:
        ffmpeg()  # is it there?


def write_clip(
    path: str | Path,
    frames: np.ndarray | Pictures,
    fps: Fraction,
    *,
    durations: Sequence[Fraction] | None = None,
    size: tuple[int, int] | None = None,
    chroma: str = "420",
    audio_from: str | Path | None = None,
    audio_start: float = 0.0,
    audio_duration: float | None = None,
    overwrite: bool = False,
    about: str | None = None,
    warn: Callable[[str], None] = lambda text: None,
    complete: Callable[[Path], None] = lambda file: None,
) -> Path:
    """Write (F, H, W, 3) uint8 RGB frames; the suffix chooses the kind.

    ``.mp4``, ``.mov``, ``.mkv``: H.264, yuv420p, which phones and browsers play; an odd side gets its last
    line of pixels twice. ``.webm``: VP9. ``.gif``: one palette; its clock ticks 100 times a second, so that a
    rate like 30 holds on average only. No suffix, or a ``/`` at the end: a folder of PNGs, lossless.

    Args:
        durations: seconds that each frame stays, where they differ; `fps` is then their average.
        size: width and height to scale every frame to as it is written (Lanczos); None leaves them.
        chroma: of H.264: "420", or "444", which keeps odd sizes and colour edges and which few players show.
        audio_from: a clip whose sound from `audio_start` (seconds) on is copied, for `audio_duration`
            seconds but no longer than the frames last. Kept as it is where the container takes its codec,
            else encoded as AAC or Opus. A source without sound, and a GIF or folder, give a silent clip.
        about: text to embed (see :mod:`ctxedit.media.embed`); None embeds nothing.
        warn: called when sound could not be copied or a size is odd; the video is written all the same.
        complete: is called with the complete file, or folder, before it gets its name.

    Raises:
        OutputError, ConfigError: see ``check_output``; also a full disk. Nothing is left then.
    """
    _expect_frames(frames, durations)
    if chroma not in ("420", "444"):
        raise ConfigError(f"unknown chroma {chroma!r}", 'use "420" or "444"')
    check_output(path, fps, overwrite)
    suffix, path = _suffix(path), Path(path)
    size = size or (frames.shape[2], frames.shape[1])
    check_size(path, *size)
    if note := even_note(path, *size, chroma):
        warn(note)
    length = float(sum(durations) if durations is not None else len(frames) / fps)
    with atomic(path, overwrite) as temporary:
        pictures = _scaled(frames, size)
        if suffix == "":
            _write_folder(temporary, pictures, about)
        else:
            even = suffix in _H264_SUFFIXES and chroma == "420"
            shape = (size[0] + size[0] % 2, size[1] + size[1] % 2) if even else size
            _write_video(temporary, pictures, (len(frames), *shape), fps, suffix, chroma, durations, about)
            if audio_from is not None and holds_audio(path):
                length = length if audio_duration is None else min(length, audio_duration)
                if said := add_sound(temporary, Path(audio_from), audio_start, length, about):
                    warn(said)
        complete(temporary)
    return path


def write_image(
    path: str | Path, image: np.ndarray, overwrite: bool = False, about: str | None = None,
    complete: Callable[[Path], None] = lambda file: None,
) -> Path:  # fmt: skip
    """Write one (H, W, 3) uint8 RGB image; the suffix chooses the format.

    ``about`` is text to embed (see :mod:`ctxedit.media.embed`); ``complete`` is called with the complete file
    before it gets its name.

    Raises:
        ConfigError: a suffix that Pillow does not write.
        OutputError: it exists and not `overwrite`, cannot be written, or the disk is full.
    """
    path = Path(path)
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise ConfigError(f"images are not written as {path.suffix or path.name}", "use .png, .jpg or .webp")
    with atomic(path, overwrite) as temporary:
        Image.fromarray(image).save(temporary, quality=95, **pillow_options(path.suffix.lower(), about))
        complete(temporary)
    return path


def _scaled(frames: np.ndarray | Pictures, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Each frame at a size (width, height); of a mapped clip one frame is in memory."""
    for frame in frames:
        yield resize(frame[None], *size)[0]
        if isinstance(frames, np.ndarray):
            release(frames)


def _suffix(path: str | Path) -> str:
    # A Path forgets the slash at its end.
    return "" if str(path).endswith("/") or Path(path).is_dir() else Path(path).suffix.lower()


def _write_folder(folder: Path, frames: Iterable[np.ndarray], about: str | None) -> None:
    folder.mkdir()
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{index:05d}.png", **pillow_options(".png", about))


def _write_video(
    path: Path,
    frames: Iterable[np.ndarray],
    shape: tuple[int, int, int],
    fps: Fraction,
    suffix: str,
    chroma: str,
    durations: Sequence[Fraction] | None,
    about: str | None,
) -> None:
    """Encode frames, one at a time; `shape` is their number and the width and height to be filled."""
    count, width, height = shape
    codec, pixels, options = "libx264", f"yuv{chroma}p", _H264
    if suffix == ".webm":
        codec, pixels, options = "libvpx-vp9", "yuv420p", _VP9
    elif suffix == ".gif":
        codec, pixels, options = "gif", "pal8", _GIF
    if durations is not None and codec == "libx264":
        options = [*options, "-bf", "0"]  # no reordering, as ``retime`` needs
    writer = imageio_ffmpeg.write_frames(
        str(path.absolute()),
        (width, height),
        pix_fmt_out=pixels,
        fps=float(fps),
        quality=None,
        codec=codec,
        macro_block_size=1,
        ffmpeg_log_level="quiet",
        # Older imageio-ffmpeg rounds the rate to two digits; the last -r counts.
        input_params=["-r", f"{fps.numerator}/{fps.denominator}"],
        output_params=[
            *options,
            *_lean(width * height),
            "-threads",
            "2",
            "-fps_mode",
            "passthrough",
            *ffmpeg_options(about),
        ],
    )
    try:
        with _spawning():
            writer.send(None)
        for frame in frames:
            sides = ((0, height - frame.shape[0]), (0, width - frame.shape[1]), (0, 0))
            writer.send(np.ascontiguousarray(np.pad(frame, sides, mode="edge")))
        writer.close()
        _verify(path, count, (width, height))
        if durations is not None:
            retime(path, durations)
        if about is not None and suffix == ".gif":
            comment_gif(path, about)
    except (OSError, av.FFmpegError) as error:
        raise _failed(path, error) from error
    if durations is not None or (about is not None and suffix == ".gif"):
        _verify(path, count, (width, height))


@contextmanager
def _spawning() -> Iterator[None]:
    """Let imageio-ffmpeg start FFmpeg by ``vfork``.

    By default it gives FFmpeg a process group of its own with a ``preexec_fn``. For that Python has to fork,
    which copies the page tables of a process that holds networks, and slows its next writes to memory.
    Without it Ctrl-C also reaches FFmpeg, whose file is discarded then anyway.
    """
    name = "IMAGEIO_FFMPEG_NO_PREVENT_SIGINT"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before


def _lean(pixels: int) -> list[str]:
    """Options that keep an encoder from holding dozens of very large frames; none for ordinary ones."""
    return [] if pixels <= _LARGE else ["-rc-lookahead", "4", "-lag-in-frames", "0", "-bf", "0"]


def _verify(path: Path, frames: int, size: tuple[int, int]) -> None:
    """imageio-ffmpeg does not pass on FFmpeg's exit status, so the file is checked."""
    try:
        info = probe(path)
    except CtxeditError as error:
        raise _failed(path, error) from error
    if (info.frames, info.width, info.height) != (frames, *size):
        raise _failed(path, None)


def _failed(path: Path, error: Exception | None) -> OutputError:
    if isinstance(error, OSError):
        known = as_output_error(error, path)
        if known is not None:
            return known
    return OutputError(
        f"FFmpeg could not write the video in {path.absolute().parent}",
        "check the free disk space there: df -h",
    )


def _expect_frames(frames: np.ndarray | Pictures, durations: Sequence[Fraction] | None = None) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise ValueError(f"expected (F, H, W, 3) uint8 frames, got {frames.shape} {frames.dtype}")
    if durations is not None and len(durations) != len(frames):
        raise ValueError(f"{len(durations)} durations for {len(frames)} frames")
