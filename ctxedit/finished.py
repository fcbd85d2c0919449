"""Outputs that a command has written, known again when the same command is repeated.

Results of run folders are kept there. For a single file without one, such as a generated image, a note in
the user's cache says which request it answers and what it holds. The note is written before the file gets its
name: however the process ends, a file that is there was noted.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ctxedit.cache import cache_entry, cached_table
from ctxedit.contents import fingerprint
from ctxedit.errors import InputError

_NAME = "finished.json"


def note(output: Path, key: str, written: Path, facts: Mapping[str, Any] | None = None) -> None:
    """Note what ``output`` will hold; a cache that cannot be written costs this knowledge and nothing else.

    Args:
        output: the name that it will have.
        key: of the request.
        written: the complete file, or folder, under its temporary name.
        facts: of the result, in JSON's types, for when the command is repeated.
    """
    entry = {"key": key, "hash": fingerprint(written), "facts": dict(facts or {})}
    cache_entry(_NAME, str(output.absolute()), entry)


def finished(output: Path, key: str) -> dict[str, Any] | None:
    """The noted facts if ``output`` is as the request of this key left it, else None."""
    entry = cached_table(_NAME).get(str(output.absolute()))
    if not isinstance(entry, dict) or entry.get("key") != key:
        return None
    with suppress(InputError):
        if entry.get("hash") == fingerprint(output):
            facts = entry.get("facts")
            return facts if isinstance(facts, dict) else {}
    return None
