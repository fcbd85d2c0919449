"""Reads lists of all formats into one form: entries like the tables of a TOML list.

TOML: ``[[clips]]`` as :mod:`ctxedit.bench.listing` says. JSON Lines: one such table per line, where
``targets`` may also contain plain texts, or a single ``target`` may be given instead. CSV: one line for each
clip and target with the columns ``path`` and, as needed, ``prompt``, ``target``, ``kind``, ``name``,
``mask``, ``control``, ``ideal``. A folder: each video, GIF, image and folder of images in it is a clip,
except edits and comparisons that ctxedit wrote.
LOVEU-TGVE's CSV and V2VBench's YAML or JSON: see :mod:`ctxedit.bench.benchmarks`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctxedit.bench import benchmarks
from ctxedit.errors import ConfigError, CtxeditError, did_you_mean
from ctxedit.files import TEXT_LIMIT, lines_of, parse_json, read_text, reason
from ctxedit.media import stills
from ctxedit.media.embed import embedded
from ctxedit.media.sources import CLIP_SUFFIXES
from ctxedit.provenance import from_text
from ctxedit.tables import read_table

#: File types that count as clips in a folder.
SUFFIXES = (*CLIP_SUFFIXES, *stills.SUFFIXES, ".heic", ".heif")  # HEIF is refused by name, not passed over
_OF_CLIP = ("path", "prompt", "name", "control")
_OF_TARGET = ("target", "kind", "mask", "ideal")


@dataclass(frozen=True)
class Entry:
    """One clip of a list: its position for messages, and its unchecked fields."""

    where: str
    table: Any


def entries(path: Path) -> list[Entry]:
    """The clips of a list.

    Raises:
        ConfigError: no such list, not of its form, unknown columns or keys, or nothing in it.
    """
    if path.is_dir():
        return list(_in_folder(path))
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return _in_csv(path)
    if suffix in (".jsonl", ".ndjson"):
        return list(_in_json_lines(path))
    if suffix in SUFFIXES:
        raise ConfigError(f"{path} is a clip, not a list", f"to edit it alone: ctxedit run {path} TEXT")
    if suffix in (".json", ".yaml", ".yml"):
        return [Entry(where, table) for where, table in benchmarks.v2vbench(path)]
    if suffix != ".toml" and path.is_file():
        raise ConfigError(
            f"{path} is not a list: its name ends in {suffix or 'no suffix'}",
            "a list is .toml, .csv, .jsonl, .yaml, .json, or a folder of clips",
        )
    return _in_toml(path)


def _in_toml(path: Path) -> list[Entry]:
    table = read_table(path)
    if strange := sorted(set(table) - {"clips"}):
        raise ConfigError(f"{path}: unknown key {strange[0]}", "known here: clips")
    found = table.get("clips")
    if not isinstance(found, list) or not found:
        raise ConfigError(f"{path} lists no clips", "each clip is a table [[clips]] with path and prompt")
    return [Entry(f"{path}, clip {i}", one) for i, one in enumerate(found, 1)]


def _in_json_lines(path: Path) -> Iterator[Entry]:
    text = read_text(path, "list", TEXT_LIMIT, ConfigError)
    found = False
    for number, line in enumerate(lines_of(text), 1):
        if not line.strip():
            continue
        found, where = True, f"{path}, line {number}"
        try:
            table = parse_json(line)
        except ValueError as error:
            raise ConfigError(
                f"{where} is not JSON: {str(error)[:160]}", "each line is one JSON object"
            ) from error
        yield Entry(where, _with_targets(table, where))
    if not found:
        raise ConfigError(
            f"{path} lists no clips", 'e.g. {"path": "a.mp4", "target": "a panda on the beach"}'
        )


def _with_targets(table: Any, where: str) -> Any:
    """A JSON object with its targets as tables; anything else is returned unchanged, to be refused later."""
    if not isinstance(table, dict):
        return table
    table = dict(table)
    if "target" in table:
        if "targets" in table:
            raise ConfigError(f"{where} has both target and targets", "use one of them")
        table["targets"] = [table.pop("target")]
    if isinstance(targets := table.get("targets"), list):
        table["targets"] = [{"prompt": one} if isinstance(one, str) else one for one in targets]
    return table


def _in_csv(path: Path) -> list[Entry]:
    """Lines with the same path form one clip with several targets, in the order of their first line."""
    text = read_text(path, "list", TEXT_LIMIT, ConfigError)
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        columns = [name.strip() for name in reader.fieldnames or ()]
        reader.fieldnames = columns
        rows = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise ConfigError(f"{path} is not CSV: {error}", "quote cells that hold commas or quotes") from error
    if benchmarks.is_loveu(columns):
        return [Entry(where, table) for where, table in benchmarks.loveu(path, [row for _, row in rows])]
    _check_columns(path, columns)
    clips: dict[str, tuple[str, dict[str, Any]]] = {}
    for number, row in rows:
        where = f"{path}, line {number}"
        if None in row or None in row.values():
            raise ConfigError(
                f"{where} does not have as many cells as the header", "quote cells that hold commas"
            )
        cells = {key: value for key, value in row.items() if value.strip()}
        if not cells:
            continue
        clip = {key: cells[key] for key in _OF_CLIP if key in cells}
        first, known = clips.setdefault(cells.get("path", where), (where, {**clip, "targets": []}))
        if differing := [k for k in clip if known.get(k) != clip[k]]:
            raise ConfigError(
                f"{where}: another {differing[0]} than in {first.rsplit(', ')[-1]}, for the same clip"
            )
        target = {"prompt" if k == "target" else k: cells[k] for k in _OF_TARGET if k in cells}
        known["targets"] += [target] if target else []
    if not clips:
        raise ConfigError(f"{path} lists no clips", "it has a header and no rows")
    return [
        Entry(where, {k: v for k, v in clip.items() if k != "targets" or v}) for where, clip in clips.values()
    ]


def _check_columns(path: Path, columns: list[str]) -> None:
    known = (*_OF_CLIP, *_OF_TARGET)
    if strange := [column for column in columns if column not in known]:
        if len(columns) == 1 and (other := next((one for one in ";\t|" if one in columns[0]), None)):
            raise ConfigError(
                f"{path} separates its columns by {other!r}", "save it with commas between the columns"
            )
        hint = f"{did_you_mean(strange[0], known)}The first line names the columns: {', '.join(known)}"
        raise ConfigError(f"{path}: unknown column {strange[0]!r}", hint)
    if "path" not in columns:
        raise ConfigError(
            f"{path} has no column path", f"the first line names the columns: {', '.join(known)}"
        )
    if len(set(columns)) < len(columns):
        raise ConfigError(f"{path} has a column twice", "name each once")


def _in_folder(path: Path) -> Iterator[Entry]:
    inside, results = _clips_in(path), results_in(path)
    if not inside:
        raise ConfigError(
            f"{path} holds no clips", f"clips are {', '.join(CLIP_SUFFIXES)}, images and folders of images"
        )
    clips = [one for one in inside if one not in results]
    if not clips:
        raise ConfigError(
            f"{path} holds only results of ctxedit",
            "to edit a result further, name it in a list, or to `run`",
        )
    for one in clips:
        # Two files may differ only in their suffix.
        twice = sum(other.stem == one.stem for other in clips) > 1
        yield Entry(str(one), {"path": one.name, "name": one.name if twice else one.stem})


def results_in(folder: Path) -> list[Path]:
    """What ctxedit wrote into a folder: edits with their side-by-sides and contact sheets, and comparisons.

    They are known by their metadata. Generated images are not among them: they are edited like others.

    Raises:
        ConfigError: the folder cannot be read.
    """
    return [one for one in _clips_in(folder) if _is_result(one)]


def _is_result(path: Path) -> bool:
    try:
        facts = from_text(embedded(path))
    except CtxeditError:
        return False  # reported when the clip is read
    return facts is not None and facts["kind"] in ("edit", "comparison")


def _clips_in(folder: Path) -> list[Path]:
    try:
        inside = sorted(one for one in folder.iterdir() if not one.name.startswith("."))
        return [
            one for one in inside if one.suffix.lower() in SUFFIXES or (one.is_dir() and _holds_images(one))
        ]
    except OSError as error:
        raise ConfigError(f"{folder} cannot be read: {reason(error)}", "check its permissions") from error


def _holds_images(folder: Path) -> bool:
    return any(one.suffix.lower() in stills.SUFFIXES for one in folder.iterdir())


def base_of(path: Path) -> Path:
    """The folder that a list's relative paths start from."""
    return path if path.is_dir() else path.parent
