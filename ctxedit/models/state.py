"""The state of an unfinished optimisation: saved whole, with a checksum, and read only if it is unchanged.

The checksum is of the values, not of the file: torch's zip container is not checked when it is read, and a
changed byte would become another weight without a word.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ctxedit.media.temporary import atomic

_CHECKSUM = "checksum"


class BrokenState(Exception):
    """A state that is empty, cut off or changed. The message says which of it, in a few words."""


def save_state(file: Path, state: Mapping[str, Any]) -> None:
    """Write a state of nested dicts, lists, tensors and plain values; the one before stays until it is done.

    Raises:
        OutputError: the place cannot be written, or the disk is full.
    """
    whole = {**state, _CHECKSUM: checksum(state)}
    # Opened here: torch's own writer hides what the system says when the disk is full.
    with atomic(file, True) as temporary, temporary.open("wb") as stream:
        torch.save(whole, stream)


def load_state(file: Path, unchecked: bool = False) -> dict[str, Any] | None:
    """Read a state onto the CPU; None where there is none.

    Args:
        file: what :func:`save_state` wrote.
        unchecked: also take a state without a checksum, as ctxedit 0.1 wrote them.

    Raises:
        BrokenState: it is not what was written.
    """
    if not file.exists():
        return None
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # torch raises nearly anything here, by where the damage is
        raise BrokenState("cannot be read") from error
    if not isinstance(state, dict):
        raise BrokenState("is no state")
    noted = state.pop(_CHECKSUM, None)
    if noted is None and unchecked:
        return state
    if noted != checksum(state):
        raise BrokenState("has no checksum" if noted is None else "has changed since it was saved")
    return state


def checksum(value: Any) -> str:
    """A hash of nested dicts, lists and tuples of tensors and plain values; the order of keys is left out."""
    found = hashlib.blake2b(digest_size=16)
    _feed(found, value)
    return found.hexdigest()


def _feed(found: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        plain = value.detach().cpu().contiguous()
        found.update(f"tensor {plain.dtype} {tuple(plain.shape)};".encode())
        if plain.numel():
            found.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(value, Mapping):
        found.update(f"dict {len(value)};".encode())
        for key in sorted(value, key=repr):
            found.update(f"{key!r}:".encode("utf-8", "backslashreplace"))
            _feed(found, value[key])
    elif isinstance(value, (list, tuple)):
        found.update(f"list {len(value)};".encode())
        for one in value:
            _feed(found, one)
    else:
        found.update(f"{value!r};".encode("utf-8", "backslashreplace"))
