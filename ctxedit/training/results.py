"""The results of a check, kept as ``check.json`` next to the weights so that they can be shown later."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctxedit.errors import WeightsError
from ctxedit.media.temporary import atomic
from ctxedit.training.components import find_component, hashes
from ctxedit.training.tasks import base as tasks

if TYPE_CHECKING:
    from ctxedit.training.checks.base import CheckConfig, CheckRow

FILE = "check.json"


def save(rows: Sequence[CheckRow], config: CheckConfig) -> Path:
    """Write the rows with the hashes of the weights that they were measured on; returns the file.

    Rows of parts that were not checked this time are kept.
    """
    path = config.weights / FILE
    measured = {row.part for row in rows}
    kept = [row for row in load(config.weights) if row["part"] not in measured]
    files = {part: weights_of(part, config.weights) for part in measured}
    new = [{**asdict(row), "seed": config.seed, "files": files[row.part]} for row in rows]
    order = list(tasks.all_checks())
    table = sorted([*kept, *new], key=lambda row: order.index(row["part"]) if row["part"] in order else 99)
    with atomic(path, True) as temporary:
        temporary.write_text(json.dumps({"rows": table}, indent=2, ensure_ascii=False) + "\n")
    return path


def weights_of(part: str, weights: Path) -> dict[str, str]:
    """Hashes of the weights that a part's figures depend on, by ``folder/file``."""
    return _hashes(tasks.all_checks()[part].components, weights)


def is_current(row: Mapping[str, Any], weights: Path) -> bool:
    """Whether a saved row was measured on the present weights."""
    files = row.get("files")
    if not isinstance(files, dict) or not files:
        return False
    try:
        return files == _hashes(sorted({file.split("/")[0] for file in files}), weights)
    except WeightsError:
        return False


def _hashes(components: Iterable[str], weights: Path) -> dict[str, str]:
    found = {name: hashes(find_component(weights, name)) for name in components}
    return {f"{name}/{file}": value for name, files in found.items() for file, value in files.items()}


def load(weights: Path) -> list[dict[str, Any]]:
    """The saved rows: as in :class:`Row`, with ``seed`` and ``files``."""
    try:
        rows = json.loads((weights / FILE).read_text())["rows"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [row for row in rows if isinstance(row, dict) and "part" in row]
