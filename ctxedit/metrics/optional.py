"""Packages and weights that only some metrics need: found, fetched, or named where they are missing."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ctxedit.errors import WeightsError

_TORCHVISION = ("", ".datasets", ".transforms", ".transforms.functional", ".models")


class _Absent(types.ModuleType):
    """Stands for a torchvision that is not there: any name in it is an empty class."""

    __path__: list[str] = []  # noqa: RUF012

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


@contextmanager
def torchvision_or_none() -> Iterator[None]:
    """Let a package be imported that imports torchvision for parts which are not used here.

    torchvision may be missing, or built for another torch: the wheel on PyPI cannot be imported beside a CPU
    build. What was imported inside keeps working; afterwards torchvision is as absent as before.
    """
    try:
        import torchvision  # noqa: F401
    except Exception:  # a build that does not fit raises RuntimeError or OSError
        for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
            del sys.modules[name]
    else:
        yield
        return
    names = [f"torchvision{part}" for part in _TORCHVISION]
    for name in names:
        sys.modules[name] = _Absent(name)
        parent, _, own = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], own, sys.modules[name])
    try:
        yield
    finally:
        for name in names:
            sys.modules.pop(name, None)


def how_to_install(package: str, extra: str) -> str:
    """The pip command: PyPI's torchvision, which the extra brings along, breaks diffusers on a CPU build."""
    cpu_only = torch.version.cuda is None and torch.version.hip is None
    return f"pip install --no-deps {package}" if cpu_only else f"pip install 'ctxedit[{extra}]'"


def fetched(url: str, what: str, instead: str, offline: bool) -> Path:
    """A file of weights in torch's cache, fetched where it is not there.

    Args:
        url: ends in ``NAME-HASH.pth``; the beginning of the SHA-256 is checked.
        what: whose weights they are.
        instead: what else can be done, for the error's hint.
        offline: fetch nothing.

    Raises:
        WeightsError: not there and offline, or it cannot be fetched.
    """
    from huggingface_hub import is_offline_mode

    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    if path.is_file():
        return path
    if offline or is_offline_mode():
        raise WeightsError(
            f"{what}'s weights are not at {path}, and ctxedit is offline", f"fetch {url}; {instead}"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = path.stem.rpartition("-")[2]
        torch.hub.download_url_to_file(url, str(path), hash_prefix=digest, progress=False)
    except Exception as error:
        raise WeightsError(
            f"{what}'s weights could not be fetched from {url}", f"fetch them elsewhere; {instead}"
        ) from error
    return path


def tensors(path: Path, what: str) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` or ``.pth`` file, read without executing code.

    Raises:
        WeightsError: unreadable, or anything but tensors.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:
        raise WeightsError(f"{path} cannot be read as weights of {what}", "copy or fetch it again") from error
