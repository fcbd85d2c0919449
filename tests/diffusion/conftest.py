"""Random latents and levels for the diffusion tests; everything in float64 and from one seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ctxedit.diffusion.schedule import Levels, alphas_cumprod, levels


@pytest.fixture
def randn() -> Callable[..., Tensor]:
    """Standard normal draws of a shape, latents (2, 4, 3, 5) unless told; a new stream for each test."""
    generator = torch.Generator().manual_seed(20240501)

    def draw(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.randn(shape or (2, 4, 3, 5), generator=generator, dtype=dtype)

    return draw


@pytest.fixture(scope="session")
def in_double() -> Callable[[Any], Any]:
    """Have a diffusers scheduler count in float64, so that it can be compared to rounding."""

    def convert(scheduler: Any) -> Any:
        for name in ("alphas_cumprod", "final_alpha_cumprod", "initial_alpha_cumprod", "alphas", "betas"):
            if hasattr(scheduler, name):
                setattr(scheduler, name, getattr(scheduler, name).double())
        return scheduler

    return convert


@pytest.fixture(scope="session")
def sd_levels() -> Levels:
    """Twenty levels of Stable Diffusion's schedule."""
    return levels(alphas_cumprod(), 20)
