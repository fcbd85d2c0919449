"""Noise from the step's generator, made where it is needed."""

from __future__ import annotations

import torch
from torch import Tensor


def noise_like(x: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal noise of the shape and on the device of ``x``, in float32 whatever that is in.

    On a GPU the step's CPU generator seeds one of the GPU's own: a million numbers a step take the CPU
    ten milliseconds.
    """
    if x.device.type != "cuda":
        return torch.randn(x.shape, generator=generator).to(x.device)
    seed = int(torch.randint(1 << 62, (1,), generator=generator))
    own = torch.Generator(x.device).manual_seed(seed)
    return torch.randn(x.shape, generator=own, device=x.device)
