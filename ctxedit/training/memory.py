"""Whether a network and its training fit into memory, known before anything is allocated."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from ctxedit.editing.machine import GIB, memory_available
from ctxedit.errors import ResourceError

_M = TypeVar("_M", bound=nn.Module)
#: Of a float32 parameter.
_BYTES = 4
#: A trained parameter has its value, its average (EMA), its gradient and AdamW's two moments.
_COPIES = 5
_HINT = "choose smaller sizes in [task], or a smaller batch"


def build_network(make: Callable[[], _M]) -> _M:
    """The network that ``make`` creates, unless its weights exceed main memory.

    It is created on the meta device first, which allocates nothing and draws no random numbers.

    Raises:
        ResourceError: it does not fit.
    """
    try:
        with torch.device("meta"):
            parameters = sum(p.numel() for p in make().parameters())
    except RuntimeError as error:  # more bytes than 64 bits count
        if "overflow" not in str(error):
            raise
        raise ResourceError("the network has more parameters than can be counted", _HINT) from error
    _check("the network", parameters * _BYTES, torch.device("cpu"))
    return make()


def check_training(model: nn.Module, batch: int, step: int, device: torch.device) -> None:
    """Raise ResourceError for a training that certainly does not fit into memory.

    Counts parameters, what the optimiser keeps of them, and images; not the activations, which depend on the
    network.

    Args:
        model: what is trained.
        batch: numbers (float32) in the images of one forward pass, which are on the device.
        step: those of an optimiser step, which are in main memory.
        device: that it is trained on.
    """
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    _check("this training", (trained * _COPIES + batch) * _BYTES, device)
    _check("an optimiser step", step * _BYTES, torch.device("cpu"))


def _check(what: str, needed: int, device: torch.device) -> None:
    available = memory_available(device)
    if needed > available:
        sizes = f"{needed / GIB:.1f} GiB of memory, {available / GIB:.1f} GiB are available"
        raise ResourceError(f"{what} needs at least {sizes}", _HINT)
