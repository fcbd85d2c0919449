"""Text inside a written file that says how it was made.

Videos carry it in the container's ``comment`` tag, GIFs in a comment extension, PNGs in a text chunk named
``ctxedit``, JPEGs in their comment, WebP and TIFF images in EXIF's image description. Pixels and timing are
untouched by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from ctxedit.errors import InputError
from ctxedit.files import check_kind
from ctxedit.media import stills
from ctxedit.media.container import opened
from ctxedit.media.sources import check_exists

_KEY = "ctxedit"
_DESCRIPTION = 0x010E  # EXIF's ImageDescription
_NAMES = ("comment", "description")


def ffmpeg_options(text: str | None) -> list[str]:
    """FFmpeg output options that write ``text`` into a video container; none where there is no text."""
    return [] if text is None else ["-metadata", f"comment={text}"]


def pillow_options(suffix: str, text: str | None) -> dict[str, Any]:
    """Arguments of Pillow's ``save`` that write ``text`` into an image; none where it cannot hold text."""
    if text is None:
        return {}
    if suffix == ".png":
        chunk = PngImagePlugin.PngInfo()
        chunk.add_itxt(_KEY, text)
        return {"pnginfo": chunk}
    if suffix in (".jpg", ".jpeg"):
        return {"comment": text.encode("ascii", "backslashreplace")}
    if suffix in (".webp", ".tif", ".tiff"):
        exif = Image.Exif()
        exif[_DESCRIPTION] = text
        return {"exif": exif}
    return {}


def comment_gif(path: Path, text: str) -> None:
    """Insert a comment extension into a GIF, in front of its first frame."""
    data = path.read_bytes()
    at = 13 + (3 << ((data[10] & 7) + 1) if data[10] & 0x80 else 0)  # header, screen descriptor, palette
    if data[at : at + 2] == b"\x21\xff":  # the extension that makes it loop stays the first
        at += 2
        while data[at]:
            at += data[at] + 1
        at += 1
    raw = text.encode("ascii", "backslashreplace")
    blocks = b"".join(bytes([len(raw[i : i + 255])]) + raw[i : i + 255] for i in range(0, len(raw), 255))
    path.write_bytes(data[:at] + b"\x21\xfe" + blocks + b"\x00" + data[at:])


def embedded(path: str | Path) -> str | None:
    """The text that a video, an image or the first image of a folder carries; None where there is none.

    Raises:
        InputError: missing, a device or the like, or not readable as a clip or an image.
    """
    path = check_exists(path)
    check_kind(path, "clip")
    if path.is_dir():
        path = stills.image_files(path)[0]
    if path.suffix.lower() == ".gif" or stills.is_image(path):
        return _of_image(path)
    with opened(path) as (container, _, _):
        return _first(container.metadata, _NAMES)


def _of_image(path: Path) -> str | None:
    try:
        with Image.open(path) as image:
            image.load()  # text may stand behind the pixels
            found = {**image.info, "description": image.getexif().get(_DESCRIPTION)}
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} cannot be read as an image", "it is damaged, or of another kind") from error
    return _first(found, (_KEY, *_NAMES))


def _first(found: Mapping[Any, Any], names: tuple[str, ...]) -> str | None:
    """The first of these entries that is there, as text; names of containers' tags come in either case."""
    lower = {str(name).lower(): value for name, value in found.items()}
    for name in names:
        if value := lower.get(name):
            return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return None
