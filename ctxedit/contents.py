"""What files hold, known by a hash of all of it.

Small files are hashed each time. Of large ones the hash is remembered in the user's cache, with sizes, times
and inodes: while those are the same, the file is not read again. As in git, a file that changed less than
moments before it was hashed is not remembered: it could change once more within one tick of its clock.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

from ctxedit.cache import cache_entry, cached_table
from ctxedit.errors import InputError

#: Below this, reading is as cheap as remembering.
_LARGE = 16 << 20
#: Seconds. The coarsest clock of a file system in use (FAT) ticks every two.
_RACY = 3.0
_NAME = "contents.json"
_BLOCK = 1 << 20
#: Resolved path to stamp and hash: what this process has hashed, in case the cache cannot be written.
_SEEN: dict[str, tuple[str, str]] = {}

#: Name within the folder ("" for a file itself), size, times of data and of inode in ns, inode, device.
_Stamp = tuple[str, int, int, int, int, int]


def fingerprint(path: Path, skip: tuple[str, ...] = ()) -> str:
    """A hash of all that a file holds, or of the names and contents of all files below a folder.

    Neither its own name nor its times count: a copy has the same fingerprint. Of a folder, hidden files
    (those that a file manager leaves) do not count: nothing here reads them.

    Args:
        path: the file or folder.
        skip: suffixes of files below a folder that do not count either.

    Raises:
        InputError: nothing there, or it cannot be read.
    """
    try:
        if not path.exists():
            raise InputError(f"no file {path}")
        if not path.is_file() and not path.is_dir():
            raise InputError(f"{path} is neither a file nor a folder", "name a file or a folder")
        files = [file for file in _files(path) if file == path or file.suffix not in skip]
        stamps = [_stamp(path, file) for file in files]
        large = sum(stamp[1] for stamp in stamps) >= _LARGE
        if large and (known := _remembered(path, stamps)):
            return known
        began = time.time()
        found = _hash_all(path, files)
        unchanged = stamps == [_stamp(path, file) for file in files]
        if large and unchanged and began - max(max(s[2], s[3]) for s in stamps) / 1e9 > _RACY:
            _remember(path, stamps, found)
        return found
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise InputError(f"{path} cannot be read: {reason}", "check the file and its permissions") from error


def _hash_all(path: Path, files: list[Path]) -> str:
    if not path.is_dir():
        return _hash_file(path)
    whole = hashlib.blake2b(digest_size=16)
    for file in files:
        name = str(file.relative_to(path)).encode("utf-8", "surrogateescape")
        whole.update(len(name).to_bytes(4, "big") + name + bytes.fromhex(_hash_file(file)))
    return whole.hexdigest()


def _hash_file(file: Path) -> str:
    found = hashlib.blake2b(digest_size=16)
    with file.open("rb", buffering=0) as stream:
        while block := stream.read(_BLOCK):
            found.update(block)
    return found.hexdigest()


def _files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    for root, folders, names in os.walk(path):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        here = (Path(root, name) for name in sorted(names) if not name.startswith("."))
        yield from (file for file in here if file.is_file())


def _stamp(path: Path, file: Path) -> _Stamp:
    seen = file.stat()
    name = "" if file == path else str(file.relative_to(path))
    return (name, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns, seen.st_ino, seen.st_dev)


def _remembered(path: Path, stamps: list[_Stamp]) -> str | None:
    name, stamp = str(path.resolve()), _short(stamps)
    if (seen := _SEEN.get(name)) is not None and seen[0] == stamp:
        return seen[1]
    entry = cached_table(_NAME).get(name)
    if isinstance(entry, dict) and entry.get("stamp") == stamp:
        return str(entry.get("hash"))
    return None


def _remember(path: Path, stamps: list[_Stamp], found: str) -> None:
    """Store a hash; without a writable cache it is only computed again."""
    name, stamp = str(path.resolve()), _short(stamps)
    _SEEN[name] = (stamp, found)
    cache_entry(_NAME, name, {"stamp": stamp, "hash": found})


def _short(stamps: list[_Stamp]) -> str:
    return hashlib.blake2b(json.dumps(stamps).encode(), digest_size=16).hexdigest()
