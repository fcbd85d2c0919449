"""Parts that go on from the weights that another part made, in their place: the decoder from its autoencoder.

What such a training begins with is copied beside its state: soon its own weights lie where that was, and a
training that is begun anew shall not begin with them.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from ctxedit.bundled.training import record
from ctxedit.bundled.training.parts import find
from ctxedit.errors import ConfigError
from ctxedit.media.temporary import atomic

#: Each part, and the one whose weights it goes on from.
PARTS = {"decoder": "autoencoder"}


def kept(place: Path) -> Path:
    """Where the beginning of the training with its state in ``place`` is kept."""
    return place.with_name(f"{place.name}-origin")


def origin(part: str, place: Path, weights: Path, folder: str) -> Path:
    """What a training of ``part`` goes on from: what it began with, or where that is none, what is there.

    Args:
        part: one of ``PARTS``.
        place: folder of its state, which may be none yet.
        weights: folder of all parts; the built-in ones stand in for what it lacks.
        folder: the part's own within it.
    """
    there, copy = find(weights, folder), kept(place)
    begun = (place / "state.pt").exists() or record.hashes(there) == record.hashes(copy)
    return copy if copy.is_dir() and (begun or _made_of(part, there, copy)) else there


def begin(part: str, place: Path, weights: Path, folder: str) -> Path:
    """:func:`origin`'s copy, made if there is none of it yet."""
    found, copy = origin(part, place, weights, folder), kept(place)
    if found != copy:
        with atomic(copy, True) as temporary:
            shutil.copytree(found, temporary)
    return copy


def is_stale(part: str, place: Path, folder: Path) -> bool:
    """Whether the weights in ``folder`` are neither what the training in ``place`` began with nor its own.

    Weights that are not those of their record are its own: it was killed before it wrote that.
    """
    if part not in PARTS or not (place / "state.pt").exists() or record.owner_of(folder) is None:
        return False
    return record.hashes(folder) != record.hashes(kept(place)) and not _made_of(part, folder, kept(place))


def check(part: str, place: Path, folder: Path) -> None:
    """Raise ConfigError for a training that :func:`is_stale`."""
    if is_stale(part, place, folder):
        raise ConfigError(
            f"{folder} is not what the training in {place} began with",
            "pass -y to begin anew with what is there, or give another --state",
        )


def is_lacking(part: str, folder: Path) -> bool:
    """Whether ``folder`` holds weights, but of the part that this one goes on from."""
    return part in PARTS and (record.read(folder) or {}).get("part", part) != part


def _made_of(part: str, folder: Path, beginning: Path) -> bool:
    known = record.read(folder) or {}
    return (known.get("part"), known.get("began_with")) == (part, record.hashes(beginning))
