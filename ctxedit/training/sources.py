"""Images with captions on disk: a folder, or webdataset shards. They are listed once and read by index.

Shards are read with the standard library's ``tarfile``. The webdataset package streams shards in sequence;
resuming bit for bit and shuffling need random access, which the members' offsets in the tar give. Its indexed
reader (``wids``) needs an index file next to the shards.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ctxedit.errors import InputError
from ctxedit.files import is_inside, lines_of, parse_json
from ctxedit.media.stills import SUFFIXES, to_rgb

#: Files with the captions of a folder, one JSON object per line; the first is datasets' imagefolder name.
TABLES = ("metadata.jsonl", "captions.jsonl")
_KEYS = ("text", "caption")
#: Of a missing ``classes.txt``.
CLASSES_HINT = "it lists the class names, one per line, in the order of the .cls numbers"
_NO_IMAGE, _NO_CAPTION = "no image", "no caption"


@dataclass(frozen=True)
class Entry:
    """One sample.

    Attributes:
        span: (offset, bytes) inside a shard; None is the whole file.
        labels: numbers of its labels, if the source has any.
        boxes: one per label: left, top, right, bottom in pixels of the image as it is stored.
        sides: width and height that ``boxes`` were annotated at.
        suffix: of the image inside a shard.
    """

    name: str
    file: Path
    span: tuple[int, int] | None
    caption: str
    labels: tuple[int, ...] = ()
    boxes: tuple[tuple[float, float, float, float], ...] = ()
    sides: tuple[int, int] | None = None
    suffix: str = ""


@dataclass(frozen=True)
class Listing:
    """Usable samples, and the others: name to reason."""

    entries: Sequence[Entry]
    bad: dict[str, str]


def load_image(entry: Entry, size: int) -> NDArray[np.uint8]:
    """RGB uint8 (size, size, 3): EXIF orientation applied, transparency on white, centre crop, resized.

    Raises:
        InputError, OSError, ValueError and others, as :func:`~ctxedit.media.stills.to_rgb`.
    """
    with Image.open(io.BytesIO(read_bytes(entry))) as opened:
        image = Image.fromarray(to_rgb(opened))
        fitted = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
    return np.array(fitted)


def read_bytes(entry: Entry) -> bytes:
    """The sample's image file; raises OSError."""
    if entry.span is None:
        return entry.file.read_bytes()
    with entry.file.open("rb") as file:
        file.seek(entry.span[0])
        data = file.read(entry.span[1])
    if len(data) < entry.span[1]:
        raise OSError("the shard is truncated")
    return data


# -- a folder ------------------------------------------------------------------------------------------------


def list_folder(folder: Path, captions: bool = True) -> Listing:
    """List the images in a folder and its subfolders.

    Captions come from ``name.txt`` next to ``name.png``, or from ``metadata.jsonl`` or ``captions.jsonl`` in
    any of these folders: lines ``{"file_name": …, "text": …}`` (or ``"caption"``), relative to that folder.

    Raises:
        InputError: no such folder.
    """
    if not folder.is_dir():
        raise InputError(
            f"no folder {folder}", 'data.path is a folder of images; shards need data.source = "webdataset"'
        )
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    images = {p for p in files if p.suffix.lower() in SUFFIXES}
    bad: dict[str, str] = {}
    texts = {p: text for table in files if table.name in TABLES for p, text in _table(table, folder, bad)}
    for file in files:
        if file.suffix == ".txt":
            owners = [p for p in _owners(file) if p in images]
            if not owners:
                bad[_name(file, folder)] = _NO_IMAGE
            for image in owners:
                texts.setdefault(image, _text(file))
    for image in texts.keys() - images:
        bad[_name(image, folder)] = _NO_IMAGE
    entries = []
    for image in sorted(images):
        caption = " ".join(texts.get(image, "").split())
        if caption or not captions:
            entries.append(Entry(_name(image, folder), image, None, caption))
        else:
            bad[_name(image, folder)] = "empty caption" if image in texts else _NO_CAPTION
    return Listing(entries, bad)


def _owners(file: Path) -> list[Path]:
    return [file.with_suffix(end) for suffix in SUFFIXES for end in (suffix, suffix.upper())]


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def _table(table: Path, folder: Path, bad: dict[str, str]) -> Iterator[tuple[Path, str]]:
    for number, line in enumerate(lines_of(_text(table)), 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
            file_name = row["file_name"]
            if not is_inside(file_name):
                bad[f"{_name(table, folder)}:{number}"] = "file_name is not below the folder"
                continue
            yield table.parent / file_name, _caption(row)
        except (ValueError, KeyError, TypeError, AttributeError):
            bad[f"{_name(table, folder)}:{number}"] = "not a JSON object with file_name"


def _caption(row: Any) -> str:
    found = [row[key] for key in _KEYS if isinstance(row, dict) and isinstance(row.get(key), str)]
    return found[0] if found else ""


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace")


# -- shards --------------------------------------------------------------------------------------------------


def list_shards(path: Path, captions: bool = True, classes: int | None = None) -> Listing:
    """List the samples in webdataset shards: members with the same name up to the first dot.

    A sample is an image with a caption: ``.txt``, or ``.json`` with ``text`` or ``caption``. A shard that is
    truncated or is not a tar is bad as a whole.

    Args:
        path: a ``.tar``, a folder of them, or a glob pattern.
        captions: whether a sample needs a caption.
        classes: samples need a class, ``.cls`` with a number below this; None for those without classes.

    Raises:
        InputError: no shard there.
    """
    if path.is_dir():
        shards = sorted(path.glob("*.tar"))
    else:
        shards = [path] if path.is_file() else sorted(path.parent.glob(path.name))
    if not shards:
        raise InputError(
            f"no shard {path}", "data.path is a .tar, a folder of them, or a pattern such as data/*.tar"
        )
    entries: list[Entry] = []
    bad: dict[str, str] = {}
    for shard in shards:
        try:
            samples = _samples(shard)
        except (tarfile.TarError, OSError, EOFError) as error:
            bad[shard.name] = f"damaged shard: {' '.join(str(error).split())[:80]}"
            continue
        for key, members in samples.items():
            name = f"{shard.name}/{key}"
            end = next((end for end in SUFFIXES if end in members), "")
            image = members.get(end)
            caption = _member_caption(shard, members)
            if image is None:
                bad[name] = _NO_IMAGE
            elif not caption and captions:
                bad[name] = _NO_CAPTION if caption is None else "empty caption"
            elif classes is None:
                entries.append(Entry(name, shard, image, caption or "", suffix=end))
            elif (label := _member_class(shard, members, classes)) is None:
                bad[name] = f"no class below {classes}"
            else:
                entries.append(Entry(name, shard, image, caption or "", (label,), suffix=end))
    return Listing(entries, bad)


def _samples(shard: Path) -> dict[str, dict[str, tuple[int, int]]]:
    """Key to extension to (offset, bytes); raises TarError for a damaged shard."""
    found: dict[str, dict[str, tuple[int, int]]] = {}
    # "r:" refuses compression: members of a compressed tar have no offset to read from.
    with tarfile.open(shard, "r:") as tar, shard.open("rb") as raw:
        for member in tar.getmembers():
            if member.isfile():
                folder, _, file = member.name.rpartition("/")
                key, _, end = file.partition(".")
                place = (member.offset_data, member.size)
                found.setdefault(f"{folder}/{key}".lstrip("/"), {})["." + end.lower()] = place
        # tarfile mistakes a damaged header for the end of the archive, which is a block of zeros.
        raw.seek(tar.offset)
        if raw.read(512).strip(b"\0"):
            raise tarfile.ReadError("damaged header")
    return found


def _member_class(shard: Path, members: dict[str, tuple[int, int]], classes: int) -> int | None:
    """The number in ``.cls``; None if there is none, or not one of so many classes."""
    if ".cls" not in members:
        return None
    text = read_bytes(Entry("", shard, members[".cls"], "")).decode("ascii", "replace").strip()
    return int(text) if text.isdecimal() and int(text) < classes else None


def _member_caption(shard: Path, members: dict[str, tuple[int, int]]) -> str | None:
    """The caption, which may be empty; None if the sample has no caption member."""
    for end in (".txt", ".json"):
        if end not in members:
            continue
        data = read_bytes(Entry("", shard, members[end], "")).decode("utf-8", "replace")
        if end == ".json":
            try:
                data = _caption(parse_json(data))
            except ValueError:
                data = ""
        return " ".join(data.split())
    return None
