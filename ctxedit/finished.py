"""Outputs that a command has written, known again when the same command is repeated.

Results of run folders are kept there. For a single file without one, such as a generated image, a note in
the user's cache says which request it answers and what it holds. The note is written before the file gets its
name: however the process ends, a file that is there was noted.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from ctxedit.contents import cache_entry, cached_table, fingerprint
from ctxedit.errors import InputError

_NAME = "finished.json"


def note(output: Path, key: str, written: Path) -> None:
    """Note what ``output`` will hold; a cache that cannot be written costs this knowledge and nothing else.

    Args:
        output: the name that it will have.
        key: of the request.
        written: the complete file, or folder, under its temporary name.
    """
    cache_entry(_NAME, str(output.absolute()), {"key": key, "hash": fingerprint(written)})


def is_finished(output: Path, key: str) -> bool:
    """Whether ``output`` is there, as the request of this key left it."""
    entry = cached_table(_NAME).get(str(output.absolute()))
    if not isinstance(entry, dict) or entry.get("key") != key:
        return False
    with suppress(InputError):
        return entry.get("hash") == fingerprint(output)
    return False
