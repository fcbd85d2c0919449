"""Small JSON tables in the user's cache: what is quicker to look up than to find out again.

Losing one costs time and nothing else, so that neither a damaged table nor a folder that cannot be written is
an error.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ctxedit.media.temporary import atomic

#: Of a table; the oldest are dropped.
_MOST_ENTRIES = 1000
#: Seconds to wait for another process that changes the same table.
_PATIENCE = 5.0


def cache_folder() -> Path:
    """The user's cache folder for ctxedit."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "ctxedit"


def cached_table(file: str) -> dict[str, Any]:
    """A table that :func:`change_table` wrote; empty where there is none or it is damaged."""
    try:
        table = json.loads((cache_folder() / file).read_bytes())
    except (OSError, ValueError, RuntimeError):  # RuntimeError: no home folder, or nested too deeply
        return {}
    return table if isinstance(table, dict) else {}


def change_table(file: str, change: Callable[[dict[str, Any]], None]) -> None:
    """Read a table, change it and write it back, one process at a time."""
    with suppress(Exception), _alone(file):
        table = cached_table(file)
        change(table)
        for key in list(table)[:-_MOST_ENTRIES]:
            del table[key]
        with atomic(cache_folder() / file, True, durable=False) as temporary:
            temporary.write_text(json.dumps(table))


def cache_entry(file: str, key: str, entry: Any) -> None:
    """Add an entry to a table, as its newest."""

    def change(table: dict[str, Any]) -> None:
        table.pop(key, None)
        table[key] = entry

    change_table(file, change)


@contextmanager
def _alone(file: str) -> Iterator[None]:
    """Hold a table's lock. Where that is not possible, an entry may get lost, but one is written."""
    from filelock import FileLock

    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(str(folder / f".{file}.lock"), timeout=_PATIENCE)
    with suppress(Exception):
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
