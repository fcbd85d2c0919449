"""The record next to trained weights, ``training.json``: how they were made.

It has the recipe's text and hash, the hash of every weight file, and the hashes of the components that the
model was trained on, so that it can be verified that the recipe made these weights. Weights that were trained
further keep the earlier record inside theirs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ctxedit.errors import InputError
from ctxedit.media.temporary import atomic
from ctxedit.runs import versions
from ctxedit.training.components import find_component, hashes
from ctxedit.training.recipe import Recipe

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE = "training.json"
#: Next to a training's state: its settings and the hashes of the weights it started from, and their record.
STARTED, PREVIOUS = "begun.toml", "before.json"


@dataclass(frozen=True)
class Facts:
    """Totals of a training: steps and seconds in total (None if unknown), bad samples, and where it ran."""

    steps: int
    seconds: float | None
    bad: int
    device: str
    processes: int = 1


@dataclass(frozen=True)
class InitialWeights:
    """The weights that a training started from: their hashes and, if they had one, their record."""

    files: Mapping[str, str] = field(default_factory=dict)
    record: Mapping[str, Any] | None = None


def write(recipe: Recipe, facts: Facts, weights: Path, initial: InitialWeights | None = None) -> Path:
    """Write the record of the weights in ``weights/<folder>``; returns its path.

    Args:
        recipe: that made them.
        facts: of the training.
        weights: folder of models.
        initial: the weights that the training started from, if any.

    Raises:
        InputError: there are no weights.
    """
    folder, initial = weights / recipe.folder, initial or InitialWeights()
    files = hashes(folder)
    if not files:
        raise InputError(f"no weights in {folder}", f"train them first: ctxedit train {recipe.name}")
    table = {
        "part": recipe.part,
        "about": recipe.about,
        "licence": recipe.licence,
        "data": describe_data(recipe),
        "steps": facts.steps,
        "of": recipe.schedule.steps,
        "images": facts.steps * recipe.schedule.images,
        "bad": facts.bad,
        "seconds": None if facts.seconds is None else round(facts.seconds, 1),
        "device": facts.device,
        "processes": facts.processes,
        "precision": recipe.schedule.precision,
        "versions": versions(),
        "files": files,
        "built_on": {name: hashes(find_component(weights, name)) for name in recipe.task_type.requires},
        "began_with": dict(initial.files),
        "recipe_sha256": recipe.sha256,
        "recipe": recipe.text,
    }
    if initial.record is not None and initial.record.get("files") == table["began_with"]:
        table["before"] = initial.record
    path = folder / FILE
    with atomic(path, True) as temporary:
        temporary.write_text(json.dumps(table, indent=2, ensure_ascii=False) + "\n")
    return path


def describe_data(recipe: Recipe) -> str:
    """A recipe's data in a few words, with the last component of its path."""
    data = recipe.data
    if data.source == "scenes":
        share = f", {data.compositions:.0%} compositions" if data.compositions else ""
        return f"drawn scenes{share}, {data.size} pixels"
    return f"{data.source} {Path(data.path).name or 'named by --data'}, {data.size} pixels"


def read(folder: Path) -> dict[str, Any] | None:
    """The record in a folder, or None if there is none or it cannot be read."""
    return _table(folder / FILE)


def _table(file: Path) -> dict[str, Any] | None:
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return table if isinstance(table, dict) else None


def history(folder: Path) -> list[dict[str, Any]]:
    """The records of weights, newest first: weights that were trained further have several."""
    found, known = [], read(folder)
    while isinstance(known, dict):
        found.append(known)
        known = known.get("before")
    return found


def owner_of(folder: Path) -> str | None:
    """The task that made the weights in a folder, or None if they are not recorded."""
    known = read(folder) or {}
    return known.get("part") if known.get("files") == hashes(folder) else None


def started_from(state: Path) -> InitialWeights:
    """The weights that the training with its state in a folder started from; none if from scratch."""
    files = read_started(state).get("warm", {})
    return InitialWeights(dict(files) if isinstance(files, dict) else {}, _table(state / PREVIOUS))


def read_started(state: Path) -> dict[str, Any]:
    """The settings that the training with its state in a folder was started with.

    Empty if there are none, or if they are damaged: then the state alone says what it belongs to.
    """
    try:
        return tomllib.loads((state / STARTED).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}


def matches(weights: Path, name: str) -> bool | None:
    """Whether the weights in ``weights/<name>`` are those of their record; None if there is no record.

    A component without a record of its own (the text encoder) is looked up in the records of the models that
    were trained with it. One that names these weights is enough: another may have been trained before them.
    """
    now, own = hashes(weights / name), read(weights / name)
    if own is not None:
        return own.get("files") == now
    others = [read(file.parent) or {} for file in sorted(weights.glob(f"*/{FILE}"))]
    known = [other["built_on"][name] for other in others if name in other.get("built_on", {})]
    return any(files == now for files in known) if known else None
