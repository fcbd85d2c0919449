"""Outputs that a command has written, known again when the same command is repeated.

Results of run folders are kept there. For a single file without one, such as a generated image, a note in
the user's cache says which request it answers and what it holds. The note is written before the file gets its
name: however the process ends, a file that is there was noted.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from ctxedit.contents import cache_folder, fingerprint
from ctxedit.errors import InputError

_NAME = "finished.json"
_MOST = 1000


def note(output: Path, key: str, written: Path) -> None:
    """Note what ``output`` will hold; a cache that cannot be written costs this knowledge and nothing else.

    Args:
        output: the name that it will have.
        key: of the request.
        written: the complete file, or folder, under its temporary name.
    """
    from ctxedit.media.temporary import atomic

    table = _notes()
    name = str(output.absolute())
    table.pop(name, None)
    table[name] = {"key": key, "hash": fingerprint(written)}
    while len(table) > _MOST:
        del table[next(iter(table))]
    with suppress(Exception), atomic(cache_folder() / _NAME, True, durable=False) as temporary:
        temporary.write_text(json.dumps(table))


def is_finished(output: Path, key: str) -> bool:
    """Whether ``output`` is there, as the request of this key left it."""
    entry = _notes().get(str(output.absolute()))
    if not isinstance(entry, dict) or entry.get("key") != key:
        return False
    with suppress(InputError):
        return entry.get("hash") == fingerprint(output)
    return False


def _notes() -> dict[str, Any]:
    try:
        table = json.loads((cache_folder() / _NAME).read_bytes())
    except (OSError, ValueError, RuntimeError):  # RuntimeError: no home folder, or nested too deeply
        return {}
    return table if isinstance(table, dict) else {}
