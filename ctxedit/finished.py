"""Outputs that a command has written, known again when the same command is repeated.

Results of run folders are kept there. For a single file without one, such as a generated image, a note in
the user's cache says which request it answers and what it holds. The note is written before the file gets its
name: however the process ends, a file that is there was noted.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from ctxedit.cache import cache_entry, cache_folder, cached_table
from ctxedit.contents import fingerprint
from ctxedit.errors import InputError, OutputError
from ctxedit.locks import held

_NAME = "finished.json"
#: Folder of the lock files, and the seconds after which an unused one is deleted.
_LOCKS, _UNUSED = "writing", 7 * 86400.0


@contextmanager
def writing(output: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold an output, so that of two equal commands the second finds what the first has written.

    Lock files are in the user's cache, because an output's folder is the user's. Where the cache cannot be
    written nothing is held: the second command then fails because the output exists.

    Args:
        output: a file or folder that may not exist yet.
        waiting: called once if another process holds it, before that is waited for.
    """
    name = hashlib.blake2b(os.fsencode(os.path.realpath(output)), digest_size=16).hexdigest()
    with ExitStack() as stack:
        with suppress(OutputError, OSError, RuntimeError):  # RuntimeError: no home folder
            folder = cache_folder() / _LOCKS
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(held(folder / f"{name}.lock", waiting))
            os.utime(folder / f"{name}.lock")
            _drop_unused(folder)
        yield


def _drop_unused(folder: Path) -> None:
    for lock in folder.glob("*.lock"):
        with suppress(OSError):
            if lock.stat().st_mtime < time.time() - _UNUSED:
                lock.unlink()


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
