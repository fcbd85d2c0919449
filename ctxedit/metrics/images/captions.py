"""Captions of images in a folder, from the files that they usually come in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ctxedit.errors import InputError, counted
from ctxedit.files import LIST_LIMIT, lines_of, parse_json, read_text

_FORMS = (
    ".txt (a line an image, in order), .jsonl (file_name and text), "
    "or .json (a table of file names, or COCO's)"
)
_NAMES, _TEXTS = ("file_name", "file", "image"), ("text", "caption", "prompt")


def read_captions(path: Path, files: Sequence[Path]) -> list[str]:
    """A caption for each image, in the order of ``files``.

    Args:
        path: text with a line for each image in natural order; JSON lines with ``file_name`` and ``text`` (or
            ``caption``); JSON that maps file names to captions, or in COCO's format. Of an image's several
            captions, the first is taken. File names count without folders, and suffixes may differ.
        files: the images.

    Raises:
        InputError: an unreadable file, another number of captions than images, or an image without one.
    """
    text = read_text(path, "file of captions", LIST_LIMIT)
    if path.suffix.lower() not in (".json", ".jsonl"):
        return _in_order(path, [line.strip() for line in lines_of(text) if line.strip()], files)
    try:
        if path.suffix.lower() == ".jsonl":
            found: Any = [parse_json(line) for line in lines_of(text) if line.strip()]
        else:
            found = parse_json(text)
        table = _table(found)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not a file of captions", f"captions are {_FORMS}") from error
    if isinstance(table, list):
        return _in_order(path, table, files)
    stems = _by_stem(path, table)
    if lacking := [file.name for file in files if file.stem not in stems]:
        raise InputError(
            f"{path} has no caption for {len(lacking)} of {len(files)} images, including {lacking[0]}",
            "captions are found by the images' file names",
        )
    return _none_empty(path, [stems[file.stem] for file in files], files)


def _none_empty(path: Path, captions: list[str], files: Sequence[Path]) -> list[str]:
    """The captions; raises InputError for empty ones."""
    blank = [file.name for file, one in zip(files, captions, strict=True) if not one.strip()]
    if blank:
        more = f" (so are {len(blank) - 1} others)" if len(blank) > 1 else ""
        raise InputError(
            f"{path}: the caption of {blank[0]} is empty{more}", "say what the image should show"
        )
    return captions


def _by_stem(path: Path, table: Mapping[str, str]) -> dict[str, str]:
    """Captions by file names without folders and suffixes."""
    stems: dict[str, str] = {}
    for name, caption in table.items():
        stem = Path(name).stem
        if stems.setdefault(stem, caption) != caption:
            raise InputError(
                f"{path} has two captions for {stem}: {stems[stem][:60]!r} and {caption[:60]!r}",
                "captions are found by file names without folders and suffixes; name each image once",
            )
    return stems


def _table(found: Any) -> dict[str, str] | list[str]:
    if isinstance(found, Mapping) and "annotations" in found:
        names = {one["id"]: _text(one["file_name"]) for one in found["images"]}
        table: dict[str, str] = {}
        for one in found["annotations"]:
            table.setdefault(names[one["image_id"]], _text(one["caption"]).strip())
        return table
    if isinstance(found, Mapping):
        return {str(name): _text(caption) for name, caption in found.items()}
    if not isinstance(found, list):
        raise TypeError("a list or a table")
    if all(isinstance(one, str) for one in found):
        return list(found)
    lines: dict[str, str] = {}
    for one in found:
        lines.setdefault(_first(one, _NAMES), _first(one, _TEXTS))  # as of COCO's, the first of several
    return lines


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("a caption is text")
    return value


def _first(one: Mapping[str, Any], keys: Sequence[str]) -> str:
    found = [one[key] for key in keys if key in one]
    return _text(found[0] if found else None)


def _in_order(path: Path, captions: list[str], files: Sequence[Path]) -> list[str]:
    if len(captions) != len(files):
        raise InputError(
            f"{path} has {counted(len(captions), 'caption')}, and there are {len(files)} images",
            "one caption an image, in the images' order, or a .json that names the files",
        )
    return _none_empty(path, captions, files)
