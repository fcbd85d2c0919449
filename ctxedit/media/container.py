"""Opening video files through PyAV."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av

from ctxedit.errors import InputError

DAMAGED = (
    "the file is damaged or cut short; copy it again, or re-encode it: ffmpeg -i IN -c:v libx264 OUT.mp4"
)

#: Tags that are no UTF-8: PyAV 19 replaces what it cannot read of them by itself, and takes no word on it.
_TAGS: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}


@contextmanager
def opened(path: Path) -> Iterator[tuple[Any, Any, Any]]:
    """A file's PyAV container, its video stream and the decoder for it; PyAV's errors become InputError."""
    try:
        # The absolute path has no colon early enough to be taken for a protocol.
        with av.open(str(path.absolute()), **_TAGS) as container:
            stream = _video_stream(container, path)
            yield container, stream, _decoder(stream, path)
    except av.FFmpegError as error:
        if "moov" in str(error) or (path.suffix.lower() in (".mp4", ".mov", ".m4v") and _is_mp4(path)):
            raise InputError(f"{path} is cut short or damaged", DAMAGED) from error
        raise InputError(
            f"{path} cannot be read as a video",
            "mp4, mov, webm, mkv, gif, images and folders of images are read",
        ) from error


def _video_stream(container: Any, path: Path) -> Any:
    for stream in container.streams.video:
        # A song's cover is a video stream too.
        if av.stream.Disposition.attached_pic not in stream.disposition:
            return stream
    if container.streams.audio:
        raise InputError(f"{path} holds sound only, no picture", "give a clip with a video stream")
    raise InputError(
        f"{path} holds no video", "mp4, mov, webm, mkv, gif, images and folders of images are read"
    )


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
