"""Locks between processes: the operating system's, which end with the process, however that ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ctxedit.errors import OutputError
from ctxedit.media.temporary import as_output_error


@contextmanager
def held(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[bool]:
    """Hold the lock file `path`; gives whether this thread held it already (then it holds it on).

    Args:
        path: made if it is missing; its folder must exist.
        waiting: called once if another process has it, before that is waited for.

    Raises:
        OutputError: the folder cannot be written, or its file system knows no locks.
    """
    # One object a path and process: only so may a thread take once more what it holds.
    lock = FileLock(str(path.absolute()), is_singleton=True)
    nested = bool(lock.is_locked)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            waiting()
            lock.acquire()
    except OSError as error:
        raise as_output_error(error, path) or OutputError(
            f"{path.parent} cannot be locked: {error.strerror}", "choose a place on a local disk"
        ) from error
    try:
        yield nested
    finally:
        lock.release()


def is_held(path: Path) -> bool:
    """Whether somebody holds the lock file `path`; does not wait, and makes no file."""
    if not path.is_file():
        return False
    lock = FileLock(str(path.absolute()))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:  # not writable, or no locks here: nobody can hold it
        return False
    lock.release()
    return False
