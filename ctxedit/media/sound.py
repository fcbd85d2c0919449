"""Adding the sound of a span of a clip to an edited video."""

from __future__ import annotations

import subprocess
from pathlib import Path

import imageio_ffmpeg

from ctxedit.media.embed import ffmpeg_options
from ctxedit.media.probe import probe
from ctxedit.media.sources import location
from ctxedit.media.temporary import remove

# Audio codecs that a container takes as they are; None: all. Others are re-encoded.
_COPIED: dict[str, frozenset[str] | None] = {
    ".mp4": frozenset({"aac", "mp3", "ac3", "eac3", "alac", "opus"}),
    ".mov": frozenset({"aac", "mp3", "ac3", "alac", "pcm_s16le", "pcm_s24le"}),
    ".webm": frozenset({"opus", "vorbis"}),
    ".mkv": None,
}


def holds_audio(path: str | Path) -> bool:
    """Whether an output of this name can carry sound."""
    return Path(path).suffix.lower() in _COPIED


def add_sound(
    video: Path, source: Path, start: float, duration: float, about: str | None = None
) -> str | None:
    """Add the sound of a span to the video stream, which is copied unchanged.

    The track is the one that ``probe`` chose. Sound that cannot be decoded, encoded or written leaves the
    video silent, as it was.

    Args:
        video: replaced by the same video with sound.
        source: the clip whose sound is taken.
        start, duration: of the span in seconds.
        about: text that the video carries, which is kept.

    Returns:
        Why there is no sound, as a sentence; None where all is well, or the source has none.
    """
    info = probe(source)
    if info.audio_index is None:
        return None
    suffix = video.suffix.lower()
    takes = _COPIED[suffix]
    encoder = "libopus" if suffix == ".webm" else "aac"
    ways = ["copy", encoder] if takes is None or info.audio_codec in takes else [encoder]
    mixed = video.with_name(f"{video.stem}.sound{video.suffix}")
    said = ""
    try:
        for way in ways:
            command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error", "-nostdin"]
            command += ["-i", str(video.absolute())]
            command += ["-ss", f"{start:.6f}", "-t", f"{duration:.6f}", "-i", location(source)]
            command += ["-map", "0:v:0", "-map", f"1:{info.audio_index}", "-c:v", "copy", "-c:a", way]
            command += ["-map_metadata", "-1", *ffmpeg_options(about)]
            # A seek may land early; without this, copied sound would begin there and lag behind.
            command += ["-copypriorss:a", "0"]
            done = subprocess.run([*command, str(mixed.absolute())], capture_output=True, check=False)
            if done.returncode == 0:
                mixed.replace(video)
                return None
            said = _last_line(done.stderr) or said
    except OSError as error:
        said = str(error)
    finally:
        remove(mixed)
    return f"the sound of {source} could not be copied, the edit is silent{said and f': {said}'}"


def _last_line(stderr: bytes | None) -> str:
    lines = (stderr or b"").decode(errors="replace").strip().splitlines()
    return lines[-1].strip()[:200] if lines else ""
