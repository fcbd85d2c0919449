"""Pictures with captions on disk: a folder, or webdataset shards. Listed once, read by number.

Shards are read with the standard library: a webdataset is a plain tar, and with the offsets of its members
any sample can be read by its number, in any order, which the streaming library cannot do and resuming needs.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ctxedit.errors import InputError

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
#: Files that caption a folder: Hugging Face's imagefolder name, and a plainer one. One JSON object a line.
TABLES = ("metadata.jsonl", "captions.jsonl")
_KEYS = ("text", "caption")
_NO_PICTURE, _NO_CAPTION = "no picture", "no caption"


@dataclass(frozen=True)
class Entry:
    """One sample. ``span`` is (offset, bytes) inside a shard; None is the whole file."""

    name: str
    file: Path
    span: tuple[int, int] | None
    caption: str


@dataclass(frozen=True)
class Listing:
    """What can be used, and what cannot: name to reason."""

    entries: list[Entry]
    bad: dict[str, str]


def load_picture(entry: Entry, size: int) -> NDArray[np.uint8]:
    """RGB uint8 (size, size, 3): turned as its EXIF says, cropped to the middle square, on white if clear.

    Raises:
        OSError, ValueError and others of Pillow's, when it cannot be decoded.
    """
    with Image.open(io.BytesIO(_read(entry))) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.has_transparency_data:
            clear = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear)
        fitted = ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.LANCZOS)
    return np.array(fitted)


def _read(entry: Entry) -> bytes:
    if entry.span is None:
        return entry.file.read_bytes()
    with entry.file.open("rb") as file:
        file.seek(entry.span[0])
        data = file.read(entry.span[1])
    if len(data) < entry.span[1]:
        raise OSError("the shard ends inside it")
    return data


# -- a folder ------------------------------------------------------------------------------------------------


def list_folder(folder: Path, captions: bool = True) -> Listing:
    """Pictures in a folder and the folders in it.

    Captions come from ``name.txt`` beside ``name.png``, or from ``metadata.jsonl`` or ``captions.jsonl`` in
    any of the folders: lines ``{"file_name": …, "text": …}`` (or ``"caption"``), from the table's folder.

    Raises:
        InputError: no such folder.
    """
    if not folder.is_dir():
        raise InputError(f"no folder {folder}", "data.path is a folder of pictures; shards are a webdataset")
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    pictures = {p for p in files if p.suffix.lower() in PICTURES}
    bad: dict[str, str] = {}
    said = {p: text for table in files if table.name in TABLES for p, text in _table(table, folder, bad)}
    for file in files:
        if file.suffix == ".txt":
            owners = [p for p in _owners(file) if p in pictures]
            if not owners:
                bad[_name(file, folder)] = _NO_PICTURE
            for picture in owners:
                said.setdefault(picture, _text(file))
    for picture in said.keys() - pictures:
        bad[_name(picture, folder)] = _NO_PICTURE
    entries = []
    for picture in sorted(pictures):
        caption = " ".join(said.get(picture, "").split())
        if caption or not captions:
            entries.append(Entry(_name(picture, folder), picture, None, caption))
        else:
            bad[_name(picture, folder)] = "an empty caption" if picture in said else _NO_CAPTION
    return Listing(entries, bad)


def _owners(file: Path) -> list[Path]:
    return [file.with_suffix(end) for suffix in PICTURES for end in (suffix, suffix.upper())]


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def _table(table: Path, folder: Path, bad: dict[str, str]) -> Iterator[tuple[Path, str]]:
    for number, line in enumerate(_text(table).splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            file_name = row["file_name"]
            yield table.parent / file_name, _caption(row)
        except (ValueError, KeyError, TypeError):
            bad[f"{_name(table, folder)}:{number}"] = "no JSON object with file_name"


def _caption(row: Any) -> str:
    found = [row[key] for key in _KEYS if isinstance(row, dict) and isinstance(row.get(key), str)]
    return found[0] if found else ""


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace")


# -- shards --------------------------------------------------------------------------------------------------


def list_shards(path: Path, captions: bool = True) -> Listing:
    """Samples in webdataset shards: members that share a name up to its first dot.

    Each has a picture and a caption, ``.txt`` or a ``.json`` with ``text`` or ``caption``. A shard that
    breaks off or is no tar is bad as a whole.

    Args:
        path: a ``.tar``, a folder of them, or a pattern.

    Raises:
        InputError: no shard there.
    """
    if path.is_dir():
        shards = sorted(path.glob("*.tar"))
    else:
        shards = [path] if path.is_file() else sorted(path.parent.glob(path.name))
    if not shards:
        raise InputError(
            f"no shard {path}", "data.path is a .tar, a folder of them, or a pattern: data/*.tar"
        )
    entries: list[Entry] = []
    bad: dict[str, str] = {}
    for shard in shards:
        try:
            samples = _samples(shard)
        except (tarfile.TarError, OSError, EOFError) as error:
            bad[shard.name] = f"a broken shard: {' '.join(str(error).split())[:80]}"
            continue
        for key, members in samples.items():
            name = f"{shard.name}/{key}"
            picture = next((members[end] for end in PICTURES if end in members), None)
            caption = _member_caption(shard, members)
            if picture is None:
                bad[name] = _NO_PICTURE
            elif not caption and captions:
                bad[name] = _NO_CAPTION if caption is None else "an empty caption"
            else:
                entries.append(Entry(name, shard, picture, caption or ""))
    return Listing(entries, bad)


def _samples(shard: Path) -> dict[str, dict[str, tuple[int, int]]]:
    """Key to extension to (offset, bytes); raises TarError for a shard that is not whole."""
    found: dict[str, dict[str, tuple[int, int]]] = {}
    # "r:" takes no compression: a member of a compressed shard has no place of its own.
    with tarfile.open(shard, "r:") as tar, shard.open("rb") as raw:
        for member in tar.getmembers():
            if member.isfile():
                folder, _, file = member.name.rpartition("/")
                key, _, end = file.partition(".")
                place = (member.offset_data, member.size)
                found.setdefault(f"{folder}/{key}".lstrip("/"), {})["." + end.lower()] = place
        # tarfile takes a damaged header for the end; a tar ends in zeros.
        raw.seek(tar.offset)
        if raw.read(512).strip(b"\0"):
            raise tarfile.ReadError("a damaged header")
    return found


def _member_caption(shard: Path, members: dict[str, tuple[int, int]]) -> str | None:
    """The caption, empty where it says nothing; None without a member for it."""
    for end in (".txt", ".json"):
        if end not in members:
            continue
        data = _read(Entry("", shard, members[end], "")).decode("utf-8", "replace")
        if end == ".json":
            try:
                data = _caption(json.loads(data))
            except ValueError:
                data = ""
        return " ".join(data.split())
    return None
