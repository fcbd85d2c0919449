"""Published lists: LOVEU-TGVE 2023 (CSV) and V2VBench (YAML or JSON). The user provides their videos.

Videos are searched by name in the list's folder and its subfolders, so that an unpacked archive works as it
is. A video file takes precedence over a folder of frames with the same name.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from reprlib import repr as brief
from typing import Any

from ctxedit.errors import ConfigError, InputError
from ctxedit.files import TEXT_LIMIT, check_depth, parse_json, read_text
from ctxedit.media import stills
from ctxedit.media.sources import CLIP_SUFFIXES

#: The columns of LOVEU-TGVE-2023_Dataset.csv, and the names of its edits here.
LOVEU_NAME, LOVEU_PROMPT = "Video name", "Our GT caption"
LOVEU_TARGETS = {
    "Style Change Caption": "style",
    "Object Change Caption": "object",
    "Background Change Caption": "background",
    "Multiple Changes Caption": "other",
}
#: Maximum depth of videos below the list's folder.
_DEPTH = 3


def is_loveu(columns: list[str]) -> bool:
    """Whether these are the columns of LOVEU-TGVE's list."""
    return LOVEU_NAME in columns and LOVEU_PROMPT in columns


def loveu(path: Path, rows: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Entries of LOVEU-TGVE's list: its position, and its table.

    Lines without captions are headings of the three collections.
    """
    videos = _videos_below(path.parent)
    for number, row in enumerate(rows, 2):
        where = f"{path}, line {number}"
        cells = {key: value.strip() for key, value in row.items() if isinstance(value, str) and value.strip()}
        texts: dict[str, str] = {}  # two columns may have the same text
        for column, kind in LOVEU_TARGETS.items():
            if column in cells:
                texts.setdefault(cells[column], kind)
        if LOVEU_NAME not in cells or LOVEU_PROMPT not in cells or not texts:
            continue
        targets = [{"prompt": text, "kind": kind} for text, kind in texts.items()]
        yield where, _entry(cells[LOVEU_NAME], cells[LOVEU_PROMPT], targets, videos, where, path)


def v2vbench(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Entries of V2VBench's list: ``data`` with ``video_id`` and ``edit``, each of them with a ``prompt``."""
    videos = _videos_below(path.parent)
    for number, one in enumerate(_data(path), 1):
        where = f"{path}, entry {number}"
        if not isinstance(one, Mapping) or not isinstance(one.get("edit"), list):
            raise ConfigError(
                f"{where} is not an entry of V2VBench", "an entry has video_id and a list of edits, edit"
            )
        name = one.get("video_id", "")
        if isinstance(name, Mapping | list):
            raise ConfigError(f"{where}: video_id = {brief(name)}", "it is the name of a video")
        name = str(name).strip()
        targets = [_target(edit, where) for edit in one["edit"]]
        yield where, _entry(name, one.get("prompt"), targets, videos, where, path)


def _data(path: Path) -> list[Any]:
    text = read_text(path, "list", TEXT_LIMIT, ConfigError)
    try:
        if path.suffix.lower() == ".json":
            table = parse_json(text)
        else:
            import yaml

            table = yaml.safe_load(text)
            check_depth(table)
    except (ValueError, RecursionError, _yaml_error()) as error:
        line = str(error).strip().split("\n")[0][:160]
        raise ConfigError(
            f"{path} is not {path.suffix[1:].upper()}: {line}", "is it the right file?"
        ) from error
    data = table.get("data") if isinstance(table, Mapping) else table
    if not isinstance(data, list) or not data:
        raise ConfigError(f"{path} lists no clips", "V2VBench's list has its entries under data")
    return data


def _yaml_error() -> type[Exception]:
    import yaml

    error: type[Exception] = yaml.YAMLError
    return error


def _target(edit: Any, where: str) -> dict[str, Any]:
    if isinstance(edit, str):
        return {"prompt": edit}
    if not isinstance(edit, Mapping):
        raise ConfigError(f"{where}: an edit is a text or a table with a prompt, not {brief(edit)}")
    return {"prompt": edit.get("prompt")}


def _entry(
    name: str, prompt: Any, targets: list[dict[str, Any]], videos: Mapping[str, Path], where: str, path: Path
) -> dict[str, Any]:
    stem = name[: -len(Path(name).suffix)] if Path(name).suffix.lower() in CLIP_SUFFIXES else name
    if stem not in videos:
        raise InputError(
            f"{where}: there is no video {stem!r} in {path.parent} or below",
            "put the videos next to the list",
        )
    table = {"name": stem, "path": str(videos[stem].absolute()), "prompt": prompt, "targets": targets}
    return {key: value for key, value in table.items() if value is not None}


def _videos_below(folder: Path) -> dict[str, Path]:
    """Videos and folders of frames by name; if several match, the first in path order, video files before
    folders."""
    files: dict[str, Path] = {}
    frames: dict[str, Path] = {}
    for place, inside, names in os.walk(folder):
        here = Path(place)
        inside.sort()
        if len(here.relative_to(folder).parts) >= _DEPTH:
            inside.clear()
        for name in sorted(names):
            if Path(name).suffix.lower() in CLIP_SUFFIXES:
                files.setdefault(Path(name).stem, here / name)
        if any(Path(name).suffix.lower() in stills.SUFFIXES for name in names):
            frames.setdefault(here.name, here)
    return frames | files
