"""Writing so that a place holds either the whole result or what was there before."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ctxedit.errors import OutputError
from ctxedit.files import cut

_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG}


@contextmanager
def atomic(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary path beside `path`, of the same suffix; rename it to `path` when the body is done.

    The body makes a file or a folder there. Whatever ends the body early (Ctrl-C too), the temporary thing
    is deleted and `path` is as before. Missing parent folders are made.

    Raises:
        OutputError: `path` exists and not `overwrite`; the place cannot be written; the disk is full.
    """
    path = Path(path)
    check_writable(path, overwrite)
    temporary = path.with_name(f".{cut(path.stem, 100)}.{uuid.uuid4().hex[:8]}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if not temporary.exists():
            raise OutputError(f"nothing was written for {path}")
        _refuse_existing(path, overwrite)
        _replace(temporary, path)
    except OSError as error:
        known = as_output_error(error, path)
        if known is None:
            raise
        raise known from error
    finally:
        remove(temporary)


def check_writable(path: str | Path, overwrite: bool = False) -> None:
    """See beforehand that `path` may be written; leaves nothing behind.

    Raises:
        OutputError: it exists and not `overwrite`, or its folder cannot be written.
    """
    path = Path(path)
    _refuse_existing(path, overwrite)
    parent = path.absolute().parent
    while not os.path.lexists(parent) and parent != parent.parent:
        parent = parent.parent
    try:
        # Trying is the only test that holds for read-only disks and for root alike.
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise as_output_error(error, path) or _refused(error, path) from error


def as_output_error(error: OSError, path: Path) -> OutputError | None:
    """The OutputError that says why `path` could not be written; None where `error` says no such thing."""
    if error.errno in _FULL:
        return OutputError(
            f"the disk is full: {path} is not written", "free some disk space, or write to another disk"
        )
    if error.errno in _REFUSED:
        return _refused(error, path)
    return None


def _refused(error: OSError, path: Path) -> OutputError:
    reason = (error.strerror or "refused").lower()
    return OutputError(f"cannot write {path}: {reason}", "choose a folder that you may write to")


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there; never fails."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _refuse_existing(path: Path, overwrite: bool) -> None:
    # An empty folder holds nothing to lose.
    if overwrite or not os.path.lexists(path) or (path.is_dir() and not any(path.iterdir())):
        return
    raise OutputError(f"{path} exists already", "choose another name, or pass -y to replace it")


def _replace(temporary: Path, path: Path) -> None:
    """``os.replace``, also where a folder takes the place of a folder that holds something."""
    if not path.is_dir() or path.is_symlink():
        os.replace(temporary, path)
        return
    if not temporary.is_dir():
        raise OutputError(f"{path} is a folder", "choose another name")
    aside = path.with_name(f".{cut(path.name, 100)}.{uuid.uuid4().hex[:8]}.old")
    os.replace(path, aside)
    try:
        os.replace(temporary, path)
    except BaseException:
        os.replace(aside, path)
        raise
    remove(aside)
