"""Counts, rather than times, a run's work: operations, network passes, memory held by tensors."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count


@dataclass
class Counts:
    """Counts of one run.

    Attributes:
        flops: floating-point operations, a multiplication and an addition counted as two.
        passes: of the denoiser over the whole clip; two branches of guidance are two passes.
        peak_bytes: peak memory of tensors beyond what was allocated before. On CUDA the allocator's figure;
            on the CPU the sum of live storages, without scratch memory inside a single operator.
    """

    flops: float = 0.0
    passes: float = 0.0
    peak_bytes: int = 0


def _attention(query: Any, key: Any, value: Any, *args: Any, **more: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _attention_backward(grad: Any, query: Any, key: Any, value: Any, *args: Any, **more: Any) -> int:
    return int(sdpa_backward_flop_count(grad, query, key, value))


#: torch's table lacks the CPU's fused attention.
_CPU_ATTENTION: dict[Any, Callable[..., int]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


class LiveTensors(TorchDispatchMode):
    """Sums the storages that operators return while it is active; ``peak`` is the largest sum so far, in
    bytes.

    A storage is subtracted when its last tensor is freed, whether it was held by autograd or a variable.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in tree_leaves((args, kwargs)):  # existing storages are not counted
            if isinstance(leaf, Tensor) and (key := _key(leaf)) not in self._known:
                self._note(leaf, key, 0)
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and (key := _key(leaf)) not in self._known:
                self._note(leaf, key, leaf.untyped_storage().nbytes())
        return out

    def _note(self, tensor: Tensor, key: int, size: int) -> None:
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(tensor.untyped_storage(), self._freed, key, size).atexit = False

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


@contextmanager
def counting(unet: nn.Module, frames: int, device: torch.device) -> Iterator[Counts]:
    """Count the work inside the block; the result is complete when it ends.

    Args:
        unet: the denoiser, whose batches are counted.
        frames: of the clip, so that a batch of ``2 · frames`` is two passes.
        device: where the network is.
    """
    counts = Counts()

    def seen(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        counts.passes += len(args[0]) / frames

    hook = unet.register_forward_hook(seen)
    flops = FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION)
    live, before = LiveTensors(), 0
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    try:
        with flops:
            if device.type == "cuda":
                yield counts
                torch.cuda.synchronize(device)
                counts.peak_bytes = torch.cuda.max_memory_allocated(device) - before
            else:
                with live:
                    yield counts
                counts.peak_bytes = live.peak
        counts.flops = float(flops.get_total_flops())
    finally:
        hook.remove()
