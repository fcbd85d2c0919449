"""Noise from the training step's generator, sampled on the device that needs it."""

from __future__ import annotations

import torch
from torch import Tensor


def noise_like(x: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal float32 noise of ``x``'s shape, on its device.

    On CUDA the CPU ``generator`` only seeds a generator on the device: sampling a million numbers per step
    on the CPU takes ten milliseconds.
    """
    if x.device.type != "cuda":
        return torch.randn(x.shape, generator=generator).to(x.device)
    seed = int(torch.randint(1 << 62, (1,), generator=generator))
    own = torch.Generator(x.device).manual_seed(seed)
    return torch.randn(x.shape, generator=own, device=x.device)
