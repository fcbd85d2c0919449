"""Writing clips and images: whole or not at all."""

from __future__ import annotations

import re
import subprocess
from fractions import Fraction
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from PIL import Image

from ctxedit.errors import ConfigError, CtxeditError, OutputError
from ctxedit.media.montage import contact_sheet, side_by_side
from ctxedit.media.probe import probe
from ctxedit.media.temporary import as_output_error, atomic, check_writable, remove

__all__ = ["check_output", "contact_sheet", "holds_audio", "side_by_side", "write_clip", "write_image"]

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".gif")

# BT.601 is what readers assume who do not look at the tag, and the tag tells the others.
_COLOUR = ["-colorspace", "smpte170m", "-color_primaries", "smpte170m", "-color_trc", "smpte170m"]
_COLOUR += ["-color_range", "tv"]
_H264 = ["-crf", "12", "-preset", "medium", *_COLOUR]
_VP9 = ["-crf", "14", "-b:v", "0", "-deadline", "good", "-cpu-used", "4", *_COLOUR]
# One palette for the clip, made of what moves as much as of what stands.
_GIF = [
    "-filter_complex",
    "[0:v]split[a][b];[a]palettegen=reserve_transparent=0[p];[b][p]paletteuse=dither=sierra2_4a",
]
# Audio codecs that a container takes as they are; None: all. Others are encoded anew.
_COPIED: dict[str, frozenset[str] | None] = {
    ".mp4": frozenset({"aac", "mp3", "ac3", "eac3", "alac", "opus"}),
    ".mov": frozenset({"aac", "mp3", "ac3", "alac", "pcm_s16le", "pcm_s24le"}),
    ".webm": frozenset({"opus", "vorbis"}),
    ".mkv": None,
}
_FRAME_NAME = re.compile(r"\d{5,}\.png")


def holds_audio(path: str | Path) -> bool:
    """Whether an output of this name can carry sound."""
    return Path(path).suffix.lower() in _COPIED


def check_output(path: str | Path, fps: Fraction | None = None, overwrite: bool = False) -> None:
    """Everything about an output that can be seen before a frame is made; ``write_clip`` begins with it.

    Raises:
        ConfigError: a suffix that is not written, or a frame rate that GIF cannot hold.
        OutputError: it exists and not `overwrite`, its folder cannot be written, or it is a folder of
            other things than frames.
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
        raise OutputError(f"{path} is a folder that holds other things than frames", "choose a new folder")
    check_writable(path, overwrite)


def write_clip(
    path: str | Path,
    frames: np.ndarray,
    fps: Fraction,
    *,
    audio_from: str | Path | None = None,
    audio_start: float = 0.0,
    audio_duration: float | None = None,
    overwrite: bool = False,
) -> Path:
    """Write (F, H, W, 3) uint8 RGB frames; the suffix chooses the kind.

    ``.mp4``, ``.mov``, ``.mkv``: H.264, yuv420p (yuv444p for an odd side, which 4:2:0 cannot hold; such a
    file plays in VLC, mpv and Chrome, not in QuickTime). ``.webm``: VP9. ``.gif``: one palette; its clock
    ticks 100 times a second, so that a rate like 30 holds on average only. No suffix, or a ``/`` at the end:
    a folder of PNGs, lossless.

    Args:
        audio_from: a clip whose sound from `audio_start` (seconds) on is copied, for `audio_duration`
            seconds but no longer than the frames last. Kept as it is where the container takes its codec,
            else encoded as AAC or Opus. A source without sound, and a GIF or folder, give a silent clip.

    Raises:
        OutputError, ConfigError: see ``check_output``; also a full disk. Nothing is left then.
    """
    _expect_frames(frames)
    check_output(path, fps, overwrite)
    suffix, path = _suffix(path), Path(path)
    with atomic(path, overwrite) as temporary:
        if suffix == "":
            _write_folder(temporary, frames)
        else:
            _write_video(temporary, frames, fps, suffix)
            if audio_from is not None and holds_audio(path):
                length = float(len(frames) / fps)
                length = length if audio_duration is None else min(length, audio_duration)
                _add_audio(temporary, Path(audio_from), audio_start, length)
    return path


def write_image(path: str | Path, image: np.ndarray, overwrite: bool = False) -> Path:
    """Write one (H, W, 3) uint8 RGB image; the suffix chooses the format.

    Raises:
        ConfigError: a suffix that Pillow does not write.
        OutputError: it exists and not `overwrite`, cannot be written, or the disk is full.
    """
    path = Path(path)
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"):
        raise ConfigError(f"images are not written as {path.suffix or path.name}", "use .png, .jpg or .webp")
    with atomic(path, overwrite) as temporary:
        Image.fromarray(image).save(temporary, quality=95)
    return path


def _suffix(path: str | Path) -> str:
    # A Path forgets the slash at its end.
    return "" if str(path).endswith("/") or Path(path).is_dir() else Path(path).suffix.lower()


def _write_folder(folder: Path, frames: np.ndarray) -> None:
    folder.mkdir()
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{index:05d}.png")


def _write_video(path: Path, frames: np.ndarray, fps: Fraction, suffix: str) -> None:
    height, width = frames.shape[1:3]
    codec, pixels, options = "libx264", "yuv420p", _H264
    if suffix == ".webm":
        codec, options = "libvpx-vp9", _VP9
    elif suffix == ".gif":
        codec, pixels, options = "gif", "pal8", _GIF
    elif width % 2 or height % 2:
        pixels = "yuv444p"
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
        output_params=[*options, "-threads", "2", "-fps_mode", "passthrough"],
    )
    try:
        writer.send(None)
        for frame in frames:
            writer.send(np.ascontiguousarray(frame))
        writer.close()
    except OSError as error:
        raise _failed(path, error) from error
    _verify(path, len(frames), (width, height))


def _verify(path: Path, frames: int, size: tuple[int, int]) -> None:
    """FFmpeg's exit status does not come through imageio-ffmpeg, so the file itself is asked."""
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


def _add_audio(video: Path, source: Path, start: float, duration: float) -> None:
    """Put the sound of a span beside the picture, which is copied untouched."""
    codec = probe(source).audio_codec
    if codec is None:
        return
    suffix = video.suffix.lower()
    takes = _COPIED[suffix]
    encoder = "libopus" if suffix == ".webm" else "aac"
    ways = ["copy", encoder] if takes is None or codec in takes else [encoder]
    mixed = video.with_name(f"{video.stem}.sound{video.suffix}")
    try:
        for way in ways:
            command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error", "-nostdin"]
            command += ["-i", str(video.absolute())]
            command += ["-ss", f"{start:.6f}", "-t", f"{duration:.6f}", "-i", str(source.absolute())]
            command += ["-map", "0:v:0", "-map", "1:a:0", "-c:v", "copy", "-c:a", way, "-map_metadata", "-1"]
            # A seek may land early; without this, copied sound would begin there and lag behind.
            command += ["-copypriorss:a", "0"]
            done = subprocess.run([*command, str(mixed.absolute())], capture_output=True, check=False)
            if done.returncode == 0:
                mixed.replace(video)
                return
        raise _failed(video, None)
    finally:
        remove(mixed)


def _expect_frames(frames: np.ndarray) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise ValueError(f"expected (F, H, W, 3) uint8 frames, got {frames.shape} {frames.dtype}")
