"""Tensors as one safetensors file."""

from __future__ import annotations

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
    and has its own exception for a full disk. So it only makes the bytes here.

    Raises:
        OutputError: the place cannot be written, or the disk is full.
    """
    blob = save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, dict(metadata or {}))
    with atomic(path, True) as temporary:
        temporary.write_bytes(blob)
