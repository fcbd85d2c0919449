"""Opening video files through PyAV, and choosing the picture and the sound among their streams."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av

from ctxedit.errors import InputError
from ctxedit.media.sources import is_jpeg_stream, location

DAMAGED = (
    "the file is damaged or cut short; copy it again, or re-encode it: ffmpeg -i IN -c:v libx264 OUT.mp4"
)

#: For tags that are not UTF-8. PyAV 19 replaces invalid bytes itself and has no such option.
_TAGS: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}

#: Codecs of cover art that is not marked as an attached picture, beside a stream in a codec of films.
_PICTURE_CODECS = frozenset({"png", "mjpeg", "bmp", "tiff", "webp", "gif"})

#: Formats that only name other files, which could change without the file that a run is known by.
_LISTS = frozenset({"concat", "hls", "dash", "imf"})

_UNKNOWN_SOUND = "the clip's sound has a codec that FFmpeg does not know"


@dataclass(frozen=True)
class Sound:
    """The sound track that goes with the picture.

    Attributes:
        index: of the stream in the file, None where there is no track to be used.
        codec: FFmpeg's name of its codec.
        note: what a person should know of the choice, or None.
    """

    index: int | None = None
    codec: str | None = None
    note: str | None = None


@contextmanager
def opened(path: Path) -> Iterator[tuple[Any, Any, Any]]:
    """A file's PyAV container, its video stream and the decoder for it; PyAV's errors become InputError."""
    try:
        form = "mjpeg" if is_jpeg_stream(path) else None  # else FFmpeg takes it for one picture too
        with av.open(location(path), format=form, **_TAGS) as container:
            if container.format.name in _LISTS:
                raise InputError(
                    f"{path} is a list of other files ({container.format.name}), not a video",
                    "join them into one file: ffmpeg -i LIST -c copy OUT.mp4",
                )
            stream = _video_stream(container, path)
            yield container, stream, _decoder(stream, path)
    except av.FFmpegError as error:
        if "moov" in str(error) or (path.suffix.lower() in (".mp4", ".mov", ".m4v") and _is_mp4(path)):
            raise InputError(f"{path} is truncated or damaged", DAMAGED) from error
        raise InputError(
            f"{path} cannot be read as a video",
            "mp4, mov, webm, mkv, gif, images and folders of images are read",
        ) from error


def choose_sound(container: Any) -> Sound:
    """The default track, of several the longest; one in an unknown codec only where there is no other."""
    known: list[Any] = []
    unknown: list[Any] = []
    for stream in container.streams:
        if stream.type == "audio":
            (known if stream.codec_context is not None else unknown).append(stream)
    if not known:
        return Sound(note=f"{_UNKNOWN_SOUND}: the edit is silent") if unknown else Sound()
    chosen = max(known, key=_rank)
    note = None
    if unknown and _rank(max(unknown, key=_rank))[:1] > _rank(chosen)[:1]:
        note = f"{_UNKNOWN_SOUND}: another of its tracks is taken"
    return Sound(chosen.index, chosen.codec_context.codec.canonical_name, note)


def _video_stream(container: Any, path: Path) -> Any:
    """The default stream, of several the longest. A sleeve's picture is a video stream too, but no clip."""
    attached = av.stream.Disposition.attached_pic
    films = [stream for stream in container.streams.video if attached not in stream.disposition]
    moving = [stream for stream in films if _codec_name(stream) not in _PICTURE_CODECS]
    if films:
        return max(moving or films, key=_rank)
    if container.streams.audio:
        raise InputError(f"{path} holds sound but no video", "give a clip with a video stream")
    raise InputError(
        f"{path} holds no video", "mp4, mov, webm, mkv, gif, images and folders of images are read"
    )


def _codec_name(stream: Any) -> str:
    context = stream.codec_context
    return "" if context is None else str(context.codec.canonical_name)


def _rank(stream: Any) -> tuple[bool, bool, float, int]:
    """Streams by how much they are what the file is about: known codec, default, length, order."""
    default = av.stream.Disposition.default in stream.disposition
    known = stream.type == "audio" or stream.codec_context is not None
    return known and default, known, _seconds(stream), -stream.index


def _seconds(stream: Any) -> float:
    """A stream's length by the container (for Matroska, in a tag); 0 where it is not given."""
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    tags = {name.upper(): value for name, value in stream.metadata.items()}
    said = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", tags.get("DURATION", "").strip())
    if said is None:
        return 0.0
    hours, minutes, seconds = said.groups()
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def _decoder(stream: Any, path: Path) -> Any:
    context = stream.codec_context
    if context is None or context.codec.canonical_name == "ansi":
        raise InputError(
            f"{path} cannot be read as a video", "its codec is unknown; convert it to MP4 with H.264"
        )
    # FFmpeg's own VP8 and VP9 decoders leave out the alpha that WebM carries beside the picture.
    if stream.metadata.get("alpha_mode") == "1" and context.name in ("vp8", "vp9"):
        name = {"vp8": "libvpx", "vp9": "libvpx-vp9"}[context.name]
        if name in av.codecs_available:
            return av.CodecContext.create(name, "r")
    return context


def _is_mp4(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(12)[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip")
