"""``run.toml``: read with everything in it of the kind that it is used as, and written at once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from ctxedit.config import Config, merge
from ctxedit.contents import fingerprint
from ctxedit.errors import CtxeditError, InputError, OutputError
from ctxedit.media.temporary import atomic
from ctxedit.renames import with_current_names
from ctxedit.tables import read_table

#: What a run must say of itself, and as what.
_KEYS = {"clip": str, "clip_hash": str, "preset": str, "config": dict, "stages": dict}
#: Bytes. Enough to tell one video from another of the same encoder: its length is within them.
_HEAD = 64
#: First and last line. A file cut between two entries is still TOML, but of a run without its last edits.
#: Files without the first line are of versions that wrote neither, or edited by hand.
_BEGIN, _END = '# A run of ctxedit, complete where the last line is "# end".', "# end"
#: Facts that later stages read.
_FACTS = {"caption": {"text": str}, "edit": {"target": str, "video": str, "frames": str}}


def read_run(file: Path) -> dict[str, Any]:
    """A ``run.toml``, with everything in it of the kind that it is read as; raises InputError."""
    try:
        table = read_table(file)
        lines = file.read_text(encoding="utf-8").splitlines()
        if lines[:1] == [_BEGIN] and _END not in lines:
            raise InputError("it is truncated")
        if lacking := set(_KEYS) - set(table):
            raise InputError(f"it lacks {', '.join(sorted(lacking))}")
        for name, kind in _KEYS.items():
            if not isinstance(table[name], kind):
                raise InputError(f"{name} = {table[name]!r}"[:80])
        table["config"] = with_current_names(table["config"])  # those of an earlier version
        merge(Config(), table["config"])
        for stage, entry in table["stages"].items():
            _check_stage(stage, entry)
    except (CtxeditError, RecursionError) as error:
        line = str(error).removeprefix(f"{file}: ")
        raise InputError(
            f"{file} is damaged: {line}",
            "repeat the command that made it, which then starts over; or name another run with --run",
        ) from error
    return table


def _check_stage(stage: str, entry: Any) -> None:
    good = isinstance(entry, dict) and isinstance(entry.get("key"), str)
    good = good and isinstance(entry.get("files"), list) and isinstance(entry.setdefault("facts", {}), dict)
    if good:
        for file in entry["files"]:
            good = good and (isinstance(file, str) or _is_noted(file))
        for name, kind in _FACTS.get(stage.split("/")[0], {}).items():
            good = good and isinstance(entry["facts"].get(name, kind()), kind)
        if isinstance(settings := entry["facts"].get("settings"), dict):
            entry["facts"]["settings"] = with_current_names(settings)
    if not good:
        raise InputError(f"the entry of stage {stage} is malformed")


def _is_noted(file: Any) -> bool:
    kinds = {"name": str, "size": int, "hash": str}
    return isinstance(file, dict) and all(isinstance(file.get(k), t) for k, t in kinds.items())


def noted(path: Path, name: str) -> dict[str, Any]:
    """A file or folder as ``run.toml`` knows it: name, size, hash of all of it, and a file's first bytes.

    Of a folder, the files in it are noted the same way.
    """
    if path.is_dir():
        inside = [noted(file, file.name) for file in sorted(path.iterdir()) if file.is_file()]
        return {"name": name, "size": 0, "hash": fingerprint(path), "files": inside}
    with path.open("rb") as stream:
        head = stream.read(_HEAD).hex()
    return {"name": name, "size": path.stat().st_size, "hash": fingerprint(path), "head": head}


def name_of(noted: Any) -> str:
    return noted if isinstance(noted, str) else str(noted["name"])


def is_ruined(path: Path, file: Mapping[str, Any]) -> bool:
    """Whether `path` is a truncated (or emptied) copy of a recorded file, so that no user's work is in it.

    Of a folder: whether files are missing or cut off, the rest are unchanged, and there are no others.
    """
    if path.is_dir() and isinstance(file.get("files"), list):
        known = {one["name"]: one for one in file["files"] if _is_noted(one)}
        return all(
            (one := known.get(inner.name)) is not None
            and (is_ruined(inner, one) or fingerprint(inner) == one["hash"])
            for inner in path.iterdir()
        )
    if not path.is_file() or path.stat().st_size >= file["size"]:
        return False
    with path.open("rb") as stream:
        return str(file.get("head", "")).startswith(stream.read(_HEAD).hex())


def write_toml(path: Path, table: Mapping[str, Any]) -> None:
    """Write a run's table at once: to a temporary name, then renamed. Its last line says that it is complete.

    Raises:
        OutputError: the folder is gone or cannot be written, or the disk is full.
    """
    text = f"{_BEGIN}\n{tomli_w.dumps(_plain(table))}{_END}\n".encode()
    if not path.parent.is_dir():
        raise OutputError(f"{path} cannot be written: its folder is missing", "check the folder and the disk")
    with atomic(path, True) as temporary:
        temporary.write_bytes(text)


def _plain(value: Any) -> Any:
    """TOML has no null: a missing figure is left out."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items() if v is not None}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value
