"""Saving and reading tensors as one safetensors file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors.torch import save
from torch import Tensor

from ctxedit.media.scratch import reserve
from ctxedit.media.temporary import atomic

#: safetensors' names of the types that are written and read in parts.
_TYPES: Mapping[str, np.dtype[Any]] = {"F32": np.dtype("float32"), "U8": np.dtype("uint8")}


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors and text about them; an existing file stays until it is done.

    safetensors' own ``save_file`` makes a temporary file of a name of its own, readable by the owner alone,
    and has its own exception for a full disk. So it only makes the bytes here. The same content gives the
    same bytes, which safetensors does not promise: it writes metadata in an order of chance.

    Raises:
        OutputError: the place cannot be written, or the disk is full.
    """
    blob = save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, dict(metadata or {}))
    start = 8 + int.from_bytes(blob[:8], "little")
    header = _header(json.loads(blob[8:start]))
    with atomic(path, True) as temporary, open(temporary, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.write(memoryview(blob)[start:])


@contextmanager
def tensors_in_parts(
    path: Path, shapes: Mapping[str, tuple[tuple[int, ...], str]]
) -> Iterator[dict[str, np.ndarray]]:
    """Write tensors that memory need not hold: mapped arrays to be filled, a file once the block is done.

    Args:
        path: of the file; an existing one stays until it is done.
        shapes: shape and type (``float32`` or ``uint8``) of each tensor.

    Raises:
        OutputError: the place cannot be written, or the disk is full.
    """
    names = {dtype: name for name, dtype in _TYPES.items()}
    table: dict[str, Any] = {}
    # safetensors wants no gaps, and tensors aligned: the widest type comes first.
    end = 0
    for name, (shape, kind) in sorted(
        shapes.items(), key=lambda item: (-np.dtype(item[1][1]).itemsize, item)
    ):
        size = int(np.prod(shape)) * np.dtype(kind).itemsize
        table[name] = {
            "dtype": names[np.dtype(kind)],
            "shape": list(shape),
            "data_offsets": [end, end + size],
        }
        end += size
    header = _header({"__metadata__": {}, **table})  # as safetensors does without any
    with atomic(path, True) as temporary:
        with open(temporary, "wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.flush()
            reserve(file, 8 + len(header), end)
        arrays: dict[str, np.ndarray] = {
            name: _mapped(temporary, table[name], 8 + len(header), "r+") for name in table
        }
        yield arrays
        for array in arrays.values():
            if isinstance(array, np.memmap):
                array.flush()


def mapped_tensor(path: Path, name: str) -> np.ndarray | None:
    """A tensor of a safetensors file as a memory-mapped array, read on access.

    None where the file has no tensor of that name. The file is trusted: run folders check their hashes.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        table = json.loads(file.read(length))
    return _mapped(path, table[name], 8 + length, "c") if name in table else None


def _mapped(path: Path, entry: Mapping[str, Any], start: int, mode: Literal["r+", "c"]) -> np.ndarray:
    offset, shape = start + entry["data_offsets"][0], tuple(entry["shape"])
    return np.memmap(path, dtype=_TYPES[entry["dtype"]], mode=mode, offset=offset, shape=shape)


def _header(table: Mapping[str, Any]) -> bytes:
    """The same table in the same bytes, padded as the format aligns the tensors."""
    header = json.dumps(table, sort_keys=True, separators=(",", ":")).encode()
    return header + b" " * (-len(header) % 8)
