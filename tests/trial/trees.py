"""Folders compared by what is in them, leaving out what no two runs share: times, places, speeds."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

#: Keys whose values are times or speeds, the place of a run, or a checksum over these, wherever they stand.
_PASSING = re.compile(
    r"second|time|created|finished|versions|memory|peak|path|video|date|started|machine|checksum"
)
#: Pages and tables that show seconds, and a training's log, whose rows are means over two seconds each: that
#: they are there is all that is compared.
_SHOWN = re.compile(
    r"metrics\.jsonl|costs\.|index\.html|table\.|report\.md|\.lock$|training\.json$|MODEL_CARD|README"
)
_DATE = re.compile(r"-20\d{6}-")


def contents(folder: Path) -> dict[str, str]:
    """Relative name to a hash of the file's content, for every file below ``folder``."""
    return {
        _DATE.sub("-DATE-", str(file.relative_to(folder))): _readable(file)
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def difference(expected: dict[str, str], got: dict[str, str]) -> str | None:
    """The first things in which two folders differ; None when they agree."""
    for what, names in (
        ("left over", got.keys() - expected.keys()),
        ("missing", expected.keys() - got.keys()),
    ):
        if names:
            return f"{what}: {', '.join(sorted(names)[:3])}"
    changed = sorted(name for name in expected if expected[name] != got[name])
    return f"different: {', '.join(changed[:3])}" if changed else None


def _readable(file: Path) -> str:
    """The digest; of a file that is broken, whatever its reader says about it, one that equals no other."""
    try:
        return _digest(file)
    except Exception as error:
        return f"{type(error).__name__} {hashlib.sha256(file.read_bytes()).hexdigest()}"


def _digest(file: Path) -> str:
    if _SHOWN.search(file.name):
        return "there"
    if file.suffix == ".pt":
        import torch

        return _hash(_tensors(torch.load(file, map_location="cpu", weights_only=True)))
    if file.name == "run.toml":
        return _hash(_lasting(tomllib.loads(file.read_text())))
    if file.suffix == ".jsonl":
        return _hash([_lasting(json.loads(line)) for line in file.read_text().splitlines()])
    if file.suffix == ".json":
        return _hash(_lasting(json.loads(file.read_text())))
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _tensors(value: Any) -> Any:
    import torch

    if isinstance(value, torch.Tensor):
        return [str(value.dtype), list(value.shape), hashlib.sha256(value.numpy().tobytes()).hexdigest()]
    if isinstance(value, dict):
        return {str(k): _tensors(v) for k, v in value.items() if not _PASSING.search(str(k))}
    if isinstance(value, list | tuple):
        return [_tensors(v) for v in value]
    return repr(value)


def _lasting(value: Any) -> Any:
    """A table without what passes."""
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if not _PASSING.search(k)}
        if isinstance(costs := kept.get("costs"), dict):
            # An edit takes fewer passes where its process kept the source of the edit before.
            kept["costs"] = {k: v for k, v in costs.items() if k != "edit"}
        return {k: _lasting(v) for k, v in kept.items()}
    if isinstance(value, list):
        return [_lasting(v) for v in value]
    # Absolute places differ with the folder of the trial; what lies below them does not.
    return _DATE.sub("-DATE-", Path(value).name) if isinstance(value, str) and value[:1] == "/" else value
