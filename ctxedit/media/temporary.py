"""Atomic writing: a path holds either the complete result or what was there before.

What is being written has a temporary name that says which process writes it, so that what a killed process
left behind can be told from what a living one still needs, and is deleted (:func:`sweep`).
"""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ctxedit.errors import CtxeditError, OutputError
from ctxedit.files import cut

_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG}
#: ``.STEM.HOST-PID-RANDOM.part.SUFFIX`` is being written, ``….old`` is what it is about to replace.
_OURS = re.compile(r"\.(.+)\.([0-9a-f]{4})-(\d+)-[0-9a-f]{8}\.(part|old)(\.[^.]+)?")
#: How safetensors (Rust) and torch's own writer, neither of which raises OSError, say that a write failed.
_RUST_ERRNO = re.compile(r"os error (\d+)")
_TORCH_WRITER = ("PytorchStreamWriter", "unexpected pos", "file write failed", "fwrite")
#: What this process is writing at the moment, and the folders that it has swept.
_writing: set[str] = set()
_swept: set[Path] = set()


@contextmanager
def atomic(path: str | Path, overwrite: bool = False, durable: bool = True) -> Iterator[Path]:
    """Give a temporary path next to `path`, with the same suffix; rename it to `path` when the body is done.

    The body makes a file or a folder there. Whatever ends the body early (Ctrl-C too), the temporary thing
    is deleted and `path` is as before; what a killed process leaves is deleted by the next one that writes
    into the folder. Missing parent folders are made. The result has the permissions that the umask leaves.

    Args:
        path: the result.
        overwrite: it may replace what is there.
        durable: it is on the disk, not only in the system's cache, before it takes the name.

    Raises:
        OutputError: `path` exists and not `overwrite`; the place cannot be written; the disk is full.
    """
    path = Path(path)
    check_writable(path, overwrite)
    temporary = _beside(path, path.stem, f"part{path.suffix}")
    _writing.add(temporary.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.parent.absolute() not in _swept:
            sweep(path.parent)
        yield temporary
        if not temporary.exists():
            raise OutputError(f"nothing was written to {path}")
        _refuse_existing(path, overwrite)
        if durable:
            synchronize(temporary)
        replace(temporary, path)
        if durable:
            synchronize_one(path.parent)
    except CtxeditError:
        raise
    except Exception as error:
        known = as_output_error(error, path)
        if known is None:
            raise
        raise known from error
    finally:
        remove(temporary)
        _writing.discard(temporary.name)


@contextmanager
def staging(folder: Path, name: str) -> Iterator[Path]:
    """Give an empty temporary folder in `folder`, for files that are to appear together; deleted afterwards.

    Args:
        folder: where the files will be renamed to; made if it is missing.
        name: for what, as part of the temporary name.

    Raises:
        OutputError: the place cannot be written, or the disk is full.
    """
    place = _beside(folder / name, name, "part")
    _writing.add(place.name)
    try:
        place.mkdir(parents=True)
        yield place
    except CtxeditError as error:
        # Whoever wrote there knows only the temporary place; the person knows the other.
        if str(place) not in error.message:
            raise
        raise type(error)(error.message.replace(str(place), str(folder)), error.hint) from error
    except Exception as error:
        known = as_output_error(error, folder / name)
        if known is None:
            raise
        raise known from error
    finally:
        remove(place)
        _writing.discard(place.name)


def sweep(folder: Path) -> None:
    """Delete partly written files of killed processes in `folder`; never fails.

    A folder that was moved aside and not replaced gets its name back. What a living process of this machine
    writes, and what another machine's may be writing, stays.
    """
    _swept.add(folder.absolute())
    try:
        with os.scandir(folder) as entries:
            left = [m for e in entries if (m := _OURS.fullmatch(e.name))]
    except OSError:
        return
    for match in left:
        path = folder / match[0]
        if match[2] != _host() or match[0] in _writing or _alive(int(match[3]), path):
            continue
        if match[4] == "old" and not os.path.lexists(folder / match[1]):
            with suppress(OSError):
                os.replace(path, folder / match[1])
        else:
            remove(path)


def synchronize(path: Path) -> None:
    """Have a file, or all of a folder, on the disk before this returns."""
    if path.is_dir():
        for inner in path.iterdir():
            synchronize(inner)
    synchronize_one(path)


def check_writable(path: str | Path, overwrite: bool = False) -> None:
    """Check in advance that `path` can be written; leaves nothing behind.

    Raises:
        OutputError: it exists and not `overwrite`, or its folder cannot be written.
    """
    path = Path(path)
    _refuse_existing(path, overwrite)
    parent = path.absolute().parent
    while not os.path.lexists(parent) and parent != parent.parent:
        parent = parent.parent
    try:
        # Trying is the only test that holds both on read-only disks and for root.
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise as_output_error(error, path) or _refused(error, path) from error


def as_output_error(error: BaseException, path: Path) -> OutputError | None:
    """The OutputError that says why `path` could not be written; None where `error` says no such thing.

    Also of safetensors' SafetensorError and the RuntimeError of ``torch.save``.
    """
    if isinstance(error, OSError):
        code = error.errno
    elif type(error).__name__ == "SafetensorError" and (found := _RUST_ERRNO.search(str(error))):
        code = int(found[1])
    elif isinstance(error, RuntimeError) and any(words in str(error) for words in _TORCH_WRITER):
        return OutputError(f"{path} cannot be written; it is unchanged", "check the free disk space")
    else:
        return None
    if code in _FULL:
        return OutputError(
            f"the disk is full: {path} was not written", "free some disk space, or write to another disk"
        )
    if code == errno.EIO:
        return OutputError(f"cannot write {path}: the disk reports an error", "write to another disk")
    if code in _REFUSED:
        return _refused(OSError(code, os.strerror(code)), path)
    return None


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there; never fails."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def replace(temporary: Path, path: Path) -> None:
    """``os.replace``, also of a non-empty folder by a folder."""
    if not path.is_dir() or path.is_symlink():
        os.replace(temporary, path)
        return
    if not temporary.is_dir():
        raise OutputError(f"{path} is a folder", "choose another name")
    aside = _beside(path, path.name, "old")
    _writing.add(aside.name)
    try:
        os.replace(path, aside)
        try:
            os.replace(temporary, path)
        except BaseException:
            os.replace(aside, path)
            raise
        remove(aside)
    finally:
        _writing.discard(aside.name)


def _beside(path: Path, stem: str, end: str) -> Path:
    return path.with_name(f".{cut(stem, 150)}.{_host()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.{end}")


def _host() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:4]


def _alive(pid: int, path: Path) -> bool:
    """Whether the process that writes `path` is still there; ids are given again to later processes."""
    if pid == os.getpid():
        return False  # what this process writes is known in `_writing`
    import psutil

    try:
        return bool(psutil.Process(pid).create_time() <= path.lstat().st_mtime + 1)
    except (psutil.Error, OSError):
        return psutil.pid_exists(pid) and os.path.lexists(path)


def synchronize_one(path: Path) -> None:
    """Have a file's bytes, or a folder's names, on the disk before this returns."""
    # Windows opens no folders; some network and FUSE file systems refuse to synchronize them.
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno in _FULL or error.errno == errno.EIO:
            raise
    finally:
        os.close(handle)


def _refused(error: OSError, path: Path) -> OutputError:
    reason = (error.strerror or "refused").lower()
    return OutputError(f"cannot write {path}: {reason}", "choose a folder that you may write to")


def _refuse_existing(path: Path, overwrite: bool) -> None:
    if path.exists() and not (path.is_file() or path.is_dir()):  # renaming would replace /dev/null itself
        raise OutputError(f"{path} is a device, a FIFO or a socket", "write to a regular file or a folder")
    # An empty folder holds nothing to lose.
    if overwrite or not os.path.lexists(path) or (path.is_dir() and not any(path.iterdir())):
        return
    raise OutputError(f"{path} exists already", "choose another name, or pass -y to replace it")
