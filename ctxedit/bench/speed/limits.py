"""This machine's limits: matrix products and convolutions in the network's own shapes, in isolation."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Shapes of each kind that are measured, the ones with the most operations.
_SHAPES = 8
#: Seconds for which one shape is measured, and the minimum number of repetitions.
_SECONDS, _TIMES = 0.15, 5
#: Seconds of work that CUDA's queue gets at once, and the maximum number of calls. The queue is full long
#: before the first of so many calls is done, so that the GPU does not wait for launches.
_QUEUED_SECONDS, _QUEUED_CALLS = 0.005, 500


@dataclass(frozen=True)
class Limits:
    """Operations per second, each measured in isolation, in the network's precision.

    Attributes:
        product: matrix products of the shapes of the network's linear layers, weighted as they occur.
        convolution: its convolutions, likewise.
        square: one large square matrix product: called the machine's peak here.
        mixed: of the network as a whole, if every layer ran as fast as it does alone.
    """

    product: float
    convolution: float
    square: float
    mixed: float


@dataclass(frozen=True)
class _Product:
    rows: int
    into: int
    out: int

    @property
    def flops(self) -> float:
        return 2.0 * self.rows * self.into * self.out

    def prepare(self, make: Callable[..., Tensor]) -> Callable[[], Tensor]:
        x, weight = make(self.rows, self.into), make(self.out, self.into)
        return lambda: F.linear(x, weight)


@dataclass(frozen=True)
class _Convolution:
    shape: tuple[int, ...]
    out: int
    kernel: int
    stride: int
    side: tuple[int, int]

    @property
    def flops(self) -> float:
        height, width = self.side
        return 2.0 * self.shape[0] * self.shape[1] * self.out * self.kernel**2 * height * width

    def prepare(self, make: Callable[..., Tensor]) -> Callable[[], Tensor]:
        x = make(*self.shape).to(memory_format=torch.channels_last)
        weight = make(self.out, self.shape[1], self.kernel, self.kernel)
        weight = weight.to(memory_format=torch.channels_last)
        return lambda: F.conv2d(x, weight, stride=self.stride, padding=self.kernel // 2)


def shapes_of(net: nn.Module, call: Callable[[], object]) -> tuple[Counter[Any], Counter[Any]]:
    """The shapes of linear layers and convolutions that run during ``call``, with how often each occurs."""
    products: Counter[Any] = Counter()
    convolutions: Counter[Any] = Counter()

    def seen(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        x = args[0]
        if isinstance(module, nn.Linear):
            products[_Product(x.numel() // x.shape[-1], x.shape[-1], out.shape[-1])] += 1
        elif isinstance(module, nn.Conv2d) and module.groups == 1:
            height, width = out.shape[-2:]
            found = _Convolution(
                tuple(x.shape), out.shape[1], module.kernel_size[0], module.stride[0], (height, width)
            )
            convolutions[found] += 1

    hooks = [m.register_forward_hook(seen) for m in net.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    try:
        call()
    finally:
        for hook in hooks:
            hook.remove()
    return products, convolutions


@torch.no_grad()
def measure(
    net: nn.Module, call: Callable[[], object], device: torch.device, dtype: torch.dtype, square: int = 0
) -> Limits:
    """Measure the machine on the shapes of one pass.

    Args:
        net: the denoiser.
        call: makes one pass.
        device, dtype: of the network.
        square: side of the square product; 0 is 1024 on a CPU and 8192 on a GPU.
    """
    generator = torch.Generator().manual_seed(0)

    def make(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    products, convolutions = shapes_of(net, call)
    side = square or (8192 if device.type == "cuda" else 1024)
    product, product_share = _rate(products, make, device)
    convolution, convolution_share = _rate(convolutions, make, device)
    whole = product_share + convolution_share
    mixed = whole / (product_share / product + convolution_share / convolution)
    (one,) = (_Product(side, side, side),)
    return Limits(product, convolution, one.flops / _seconds(one.prepare(make), device), mixed)


def _rate(shapes: Counter[Any], make: Callable[..., Tensor], device: torch.device) -> tuple[float, float]:
    """Operations per second over the heaviest shapes, and the operations of all shapes."""
    total = sum(shape.flops * count for shape, count in shapes.items())
    heaviest = sorted(shapes.items(), key=lambda item: -item[0].flops * item[1])[:_SHAPES]
    work = sum(shape.flops * count for shape, count in heaviest)
    seconds = sum(_seconds(shape.prepare(make), device) * count for shape, count in heaviest)
    return work / seconds, total


def _seconds(call: Callable[[], Tensor], device: torch.device) -> float:
    """The minimum seconds of one call, because a limit is what the undisturbed machine can do."""
    call()
    calls = 1
    if device.type == "cuda":
        calls = max(1, min(_QUEUED_CALLS, int(_QUEUED_SECONDS / max(timed(call, device), 1e-6))))
    times: list[float] = []
    ends = time.perf_counter() + _SECONDS
    while len(times) < _TIMES or time.perf_counter() < ends:
        times.append(timed(call, device, calls))
    return min(times)


def timed(call: Callable[[], object], device: torch.device, calls: int = 1) -> float:
    """Seconds of one of several calls in a row; on CUDA between two events of the device's stream."""
    synchronize(device)
    if device.type == "cuda":
        stream = torch.cuda.current_stream(device)  # an event records on the current device otherwise
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record(stream)
        for _ in range(calls):
            call()
        end.record(stream)
        synchronize(device)
        return float(begin.elapsed_time(end)) / 1000 / calls
    began = time.perf_counter()
    for _ in range(calls):
        call()
    synchronize(device)
    return (time.perf_counter() - began) / calls


def synchronize(device: torch.device) -> None:
    """Wait until the device has done everything that it was given; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
