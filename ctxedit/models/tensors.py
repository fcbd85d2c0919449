"""Tensors as one safetensors file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from ctxedit.media.temporary import atomic


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors and text about them; what lay there stays until it is done.

    safetensors' own ``save_file`` makes a temporary file of a name of its own, readable by the owner alone,
    and has its own exception for a full disk. So it only makes the bytes here. The same content gives the
    same bytes, which safetensors does not promise: it writes metadata in an order of chance.

    Raises:
        OutputError: the place cannot be written, or the disk is full.
    """
    blob = save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, dict(metadata or {}))
    start = 8 + int.from_bytes(blob[:8], "little")
    header = json.dumps(json.loads(blob[8:start]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the format aligns the tensors
    with atomic(path, True) as temporary, open(temporary, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.write(memoryview(blob)[start:])
