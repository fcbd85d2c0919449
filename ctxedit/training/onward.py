"""Parts that go on from the weights that another part made, in their place: the decoder from its autoencoder.

What such a training begins with is copied beside its state: soon its own weights lie where that was, and a
training that is begun anew shall not begin with them.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from ctxedit.errors import ConfigError
from ctxedit.media.temporary import atomic
from ctxedit.training import record
from ctxedit.training.parts import find

#: Each part, and the one whose weights it goes on from.
PARTS = {"decoder": "autoencoder"}


def kept(place: Path) -> Path:
    """Where the beginning of the training with its state in ``place`` is kept."""
    return place.with_name(f"{place.name}-origin")


def origin(part: str, place: Path, weights: Path, folder: str, anew: bool = False) -> Path:
    """What a training of ``part`` goes on from: what it began with, or what is there.

    Args:
        part: one of ``PARTS``.
        place: folder of its state, which may be none yet.
        weights: folder of all parts; the built-in ones stand in for what it lacks.
        folder: the part's own within it.
        anew: whether the state there is does not count.
    """
    there, copy = find(weights, folder), kept(place)
    if not copy.is_dir():
        return there
    begun = _begun(place) and not anew
    kin = record.hashes(there) == record.hashes(copy) or _made_of(part, there, record.hashes(copy))
    return copy if begun or kin else there


def begin(part: str, place: Path, weights: Path, folder: str) -> Path:
    """:func:`origin`, copied if the training begins with it."""
    found, copy = origin(part, place, weights, folder), kept(place)
    if found == copy or _begun(place):
        return found
    with atomic(copy, True) as temporary:
        shutil.copytree(found, temporary)
    return copy


def is_stale(part: str, place: Path, folder: Path) -> bool:
    """Whether the weights in ``folder`` are neither what the training in ``place`` began with nor its own.

    Weights that are not those of their record do not count: a training is killed before it writes that.
    """
    if part not in PARTS or not _begun(place) or record.owner_of(folder) is None:
        return False
    began = record.started_from(place).files
    return record.hashes(folder) != began and not _made_of(part, folder, began)


def check(part: str, place: Path, folder: Path) -> None:
    """Raise ConfigError for a training that :func:`is_stale`."""
    if is_stale(part, place, folder):
        raise ConfigError(
            f"{folder} is not what the training in {place} began with",
            "pass -y to begin anew with what is there, or give another --state",
        )


def is_lacking(part: str, folder: Path, steps: int) -> bool:
    """Whether the weights that ``part`` came to after so many steps are not in ``folder``.

    They are there, too, where another part went on from them, and where they have come further.
    """
    known = record.read(folder) or {}
    if PARTS.get(known.get("part", "")) == part:
        known = next((s for s in record.sittings(folder) if s.get("part") == part), {})
    elif known.get("files") != record.hashes(folder):
        return True
    return known.get("part") != part or known.get("steps", 0) < steps


def owner(part: str, folder: Path, state: Path) -> str | None:
    """Who made the weights in ``part``'s folder: as their record says, or one that went on from them.

    None where nobody knows; ``state`` is the folder of all parts' states.
    """
    if (recorded := record.owner_of(folder)) is not None:
        return recorded
    now, heirs = record.hashes(folder), [heir for heir, base in PARTS.items() if base == part]
    return next((h for h in heirs if _begun(state / h) and now != record.started_from(state / h).files), None)


def _begun(place: Path) -> bool:
    return (place / "state.pt").exists()


def _made_of(part: str, folder: Path, beginning: Mapping[str, str]) -> bool:
    known = record.read(folder) or {}
    return (known.get("part"), known.get("began_with")) == (part, dict(beginning))
