"""The record beside the weights, ``training.json``: which recipe made them, of what, in how long.

So it can be seen that the recipe made the weights: the recipe's text and hash, each weight file's hash, and
the hashes of the parts that it was trained on. Weights that were trained further keep the record of before
within theirs, so that it can be seen of every sitting.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctxedit.bundled.training.parts import find
from ctxedit.errors import InputError
from ctxedit.media.temporary import atomic
from ctxedit.runs import versions

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from ctxedit.bundled.training.recipe import Recipe

FILE = "training.json"
#: Beside a training's state: its settings with the hashes of the weights it began with, and their record.
BEGUN, BEFORE = "begun.toml", "before.json"
#: What each part is trained on.
_BUILT_ON = {
    "captioner": ("clip",),
    "denoiser": ("vae", "text_encoder"),
    "control": ("vae", "text_encoder", "unet"),
    "adapter": ("vae", "text_encoder", "unet"),
}


@dataclass(frozen=True)
class Facts:
    """What a training was: steps and seconds in all, bad input left out, where it ran.

    ``seconds`` is None where it is not known.
    """

    steps: int
    seconds: float | None
    bad: int
    device: str
    processes: int = 1


@dataclass(frozen=True)
class Beginning:
    """The weights that a warm training began with: their hashes and their record, where they had one."""

    files: Mapping[str, str] = field(default_factory=dict)
    record: Mapping[str, Any] | None = None


def hashes(folder: Path) -> dict[str, str]:
    """sha256 of each weight file in a folder, by name."""
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(folder.glob("*.safetensors"))}


def write(recipe: Recipe, facts: Facts, weights: Path, beginning: Beginning | None = None) -> Path:
    """Write the record of the weights in ``weights/<folder>``; returns its path.

    Args:
        recipe: what they were made by.
        facts: of the training.
        weights: the folder of all parts.
        beginning: the weights that it began with, where it did.

    Raises:
        InputError: no weights there.
    """
    folder, beginning = weights / recipe.folder, beginning or Beginning()
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
        "built_on": {name: hashes(find(weights, name)) for name in _BUILT_ON.get(recipe.part, ())},
        "began_with": dict(beginning.files),
        "recipe_sha256": recipe.sha256,
        "recipe": recipe.text,
    }
    if beginning.record is not None and beginning.record.get("files") == table["began_with"]:
        table["before"] = beginning.record
    path = folder / FILE
    with atomic(path, True) as temporary:
        temporary.write_text(json.dumps(table, indent=2, ensure_ascii=False) + "\n")
    return path


def describe_data(recipe: Recipe) -> str:
    """What a recipe trains on, in a few words; of a path only its last name is said."""
    data = recipe.data
    if data.source == "scenes":
        share = f", {data.compositions:.0%} compositions" if data.compositions else ""
        return f"drawn scenes{share}, {data.size} pixels"
    return f"{data.source} {Path(data.path).name}, {data.size} pixels"


def read(folder: Path) -> dict[str, Any] | None:
    """A part's record, or None where there is none or it is broken."""
    try:
        table = json.loads((folder / FILE).read_text())
    except (OSError, ValueError):
        return None
    return table if isinstance(table, dict) else None


def sittings(folder: Path) -> list[dict[str, Any]]:
    """The records of all that made a part's weights, the last first: those trained further have several."""
    found, known = [], read(folder)
    while isinstance(known, dict):
        found.append(known)
        known = known.get("before")
    return found


def owner_of(folder: Path) -> str | None:
    """The part that made the weights in a folder, where their record says so."""
    known = read(folder) or {}
    return known.get("part") if known.get("files") == hashes(folder) else None


def started_from(place: Path) -> Beginning:
    """What the training with its state in ``place`` began with; one from nothing began with no weights."""
    file, before = place / BEGUN, place / BEFORE
    warm = dict(tomllib.loads(file.read_text()).get("warm", {})) if file.is_file() else {}
    return Beginning(warm, json.loads(before.read_text()) if before.is_file() else None)


def matches(weights: Path, name: str) -> bool | None:
    """Whether the weights in ``weights/<name>`` are those of their record; None where nothing is recorded.

    A part without a record of its own (the text encoder, a copy of CLIP's text side) may be in the record of
    one that was trained on it.
    """
    now, own = hashes(weights / name), read(weights / name)
    if own is not None:
        return own.get("files") == now
    others = [read(file.parent) or {} for file in sorted(weights.glob(f"*/{FILE}"))]
    known = [other["built_on"][name] for other in others if name in other.get("built_on", {})]
    return all(files == now for files in known) if known else None


def of_existing(recipe: Recipe, state: Path, weights: Path) -> Path:
    """Write the record for weights that were trained without one, from the state that they came from.

    Raises:
        InputError: no state, so nobody knows what was done; or the weights are known to be another part's.
    """
    from ctxedit.bundled.training import onward
    from ctxedit.bundled.training.loop import read_state
    from ctxedit.bundled.training.meter import read_metrics, seconds_of

    place, folder = state / recipe.part, weights / recipe.folder
    if (owner := onward.owner(recipe.part, folder, state)) not in (None, recipe.part):
        raise InputError(f"{folder} holds the {owner}'s weights", f"ask for the {owner}'s --record")
    blob = read_state(place / "state.pt")
    if blob is None:
        raise InputError(f"no state in {place}", "name the --state that the weights were trained with")
    steps = int(blob["step"])
    seconds = blob.get("seconds") or seconds_of(read_metrics(place), steps, recipe.schedule.images)
    # The first states did not say where: they are of this project's CPU.
    facts = Facts(steps, seconds, len(blob.get("bad", {})), blob.get("device", "cpu"))
    return write(recipe, facts, weights, started_from(place))
