"""Arrays on disk, for clips that memory need not hold."""

from __future__ import annotations

import errno
import mmap
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from ctxedit.errors import OutputError
from ctxedit.media.temporary import as_output_error

_BLOCK = 1 << 20
#: What file systems answer that cannot reserve room.
_UNABLE = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)


def scratch(folder: Path, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """A memory-mapped array in a nameless file in ``folder``; the file goes when the array does.

    Raises:
        OutputError: the folder cannot be written, or the disk is full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            reserve(file, 0, int(np.prod(shape)) * np.dtype(dtype).itemsize)
            return np.memmap(file, dtype, "r+", shape=shape)
    except OSError as error:
        known = as_output_error(error, folder)
        raise known or OutputError(f"{folder} cannot be written: {error}") from error


def reserve(file: Any, start: int, size: int) -> None:
    """Take room on the disk for ``size`` bytes of a file from ``start`` on.

    A disk that fills up while a mapped file is written kills the process; here it is an error.

    Raises:
        OSError: there is no room.
    """
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), start, max(1, size))
            return
        except OSError as error:
            if error.errno not in _UNABLE:
                raise
    file.seek(start)
    for done in range(0, max(1, size), _BLOCK):
        file.write(bytes(min(_BLOCK, max(1, size) - done)))
    file.flush()


def release(*arrays: np.ndarray) -> None:
    """Give back the memory that mapped arrays, or views of them, occupy; their contents stay on disk."""
    for array in arrays:
        base: Any = array
        while isinstance(base, np.ndarray):
            base = base.base
        if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            base.madvise(mmap.MADV_DONTNEED)
