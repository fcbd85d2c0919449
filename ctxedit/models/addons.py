"""Small files that extend a checkpoint (LoRAs, embeddings): locating them, and which the settings name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ctxedit.errors import WeightsError
from ctxedit.files import check_file, expanded
from ctxedit.models import hub, layout


def locate_file(name: str, what: str, known: Sequence[str], offline: bool = False) -> Path:
    """One safetensors file by a path, a folder, a hub id, or a file of a repository (``owner/name/file``).

    Args:
        name: what a person calls it.
        what: for errors.
        known: names that the file may have in a folder or repository with several.
        offline: look into the hub's cache only.

    Raises:
        WeightsError: nothing there, a pickle, a folder of several; or the hub's errors.
    """
    path = expanded(name)
    layout.refuse_other_formats(name, path)
    if os.path.isdir(path):
        return path / layout.one_file(name, known)([file.name for file in path.iterdir()], False)[0]
    # A folder that is there is meant, rather than an owner of the same name.
    if os.path.isdir(path.parent) and path.suffix == ".safetensors":
        check_file(path, what, error=WeightsError)
        return path
    if os.path.exists(path) or (found := hub_file(name)) is None:
        check_file(path, what, error=WeightsError)
        return path
    hub_id, inside = found
    select = layout.one_file(hub_id, known, inside)
    folder = hub.cached(hub_id, select)
    if folder is None:
        if hub.is_offline(offline):
            raise hub.offline_error(hub_id)
        there = hub.listing(hub_id)
        folder = hub.fetch(there, select(there.names, False))
    names = [file.relative_to(folder).as_posix() for file in folder.rglob("*.safetensors")]
    return folder / select(names, False)[0]


def hub_file(name: str) -> tuple[str, str | None] | None:
    """The repository that a name means, and the file in it if one is named; None for a path."""
    if os.path.exists(expanded(name)) or name.startswith((".", "/", "~")) or "\\" in name:
        return None
    parts = name.split("/")
    if len(parts) == 2 and not name.endswith(".safetensors"):
        return name, None
    if len(parts) > 2 and name.endswith(".safetensors"):
        return "/".join(parts[:2]), "/".join(parts[2:])
    return None
