"""Adding the sound of a span of a clip to an edited video."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import av

from ctxedit.media.embed import ffmpeg_options
from ctxedit.media.ffmpeg import ffmpeg
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
    mixed = video.with_name(f"{video.stem}.sound{video.suffix}")
    said, failed = "", False
    try:
        for way in _ways(video.suffix.lower(), info.audio_codec, start, duration):
            command = [ffmpeg(), "-y", "-v", "error", "-nostdin"]
            command += ["-i", str(video.absolute()), *way.seek, "-i", location(source)]
            command += ["-map", "0:v:0", "-map", f"1:{info.audio_index}", "-c:v", "copy", *way.encode]
            command += ["-map_metadata", "-1", *ffmpeg_options(about)]
            done = subprocess.run([*command, str(mixed.absolute())], capture_output=True, check=False)
            if done.returncode == 0 and _has_sound(mixed):
                mixed.replace(video)
                return None
            failed = done.returncode != 0
            said = (failed and _last_line(done.stderr)) or said
    except (OSError, av.FFmpegError) as error:
        said, failed = str(error), True
    finally:
        remove(mixed)
    if not failed:  # the track is silent here: it begins later, or has ended
        return None
    return f"the sound of {source} could not be copied, the edit is silent{said and f': {said}'}"


class _Way(NamedTuple):
    """FFmpeg's options before the source, and those of the sound that is written."""

    seek: list[str]
    encode: list[str]


def _ways(suffix: str, codec: str | None, start: float, duration: float) -> Iterator[_Way]:
    """How the sound can be taken, the way that changes least first."""
    seek = ["-ss", f"{start:.6f}", "-t", f"{duration:.6f}"]
    takes = _COPIED[suffix]
    if takes is None or codec in takes:
        # A seek may land early; without this, copied sound would begin there and lag behind.
        yield _Way(seek, ["-c:a", "copy", "-copypriorss:a", "0"])
    encoder = ["-c:a", "libopus" if suffix == ".webm" else "aac"]
    yield _Way(seek, encoder)
    # In some files (ADPCM in an AVI) nothing is found after a seek.
    trim = f"atrim=start={start:.6f}:duration={duration:.6f},asetpts=PTS-{start:.6f}/TB"
    yield _Way([], ["-af", trim, *encoder])


def _has_sound(video: Path) -> bool:
    """Whether a file that FFmpeg wrote without complaint holds a packet of sound."""
    with av.open(str(video.absolute())) as container:
        streams = container.streams.audio
        return bool(streams) and any(packet.size for packet in container.demux(streams[0]))


def _last_line(stderr: bytes | None) -> str:
    lines = (stderr or b"").decode(errors="replace").strip().splitlines()
    return lines[-1].strip()[:200] if lines else ""
