"""Noise schedules: the cumulative alphas a model was trained with, and the levels of them that are used."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

ScheduleKind = Literal["scaled_linear", "linear", "cosine"]
Spacing = Literal["leading", "trailing", "linspace"]


@dataclass(frozen=True, eq=False)
class Levels:
    """The used noise levels, from clean data (level 0) to the noisiest (level S).

    Two orders meet here. Levels count *up* with the noise: ``alpha[i]`` and ``sigma[i]`` belong to level
    ``i``. ``timesteps`` counts *down*, in the order a sampler visits them, as in diffusers: level ``i >= 1``
    is the i-th least noisy used timestep, ``timesteps[S - i]``. Ask ``timestep(i)`` and never index
    ``timesteps`` by level.

    Attributes:
        timesteps: (S,) int64, or floating point (flow models), strictly descending; the network's input.
        alpha: (S+1,) in [0, 1], descending: ``sqrt(alpha_bar)``. ``alpha[0]`` is 1 for clean data.
        sigma: (S+1,) in [0, 1], ascending: ``sqrt(1 - alpha_bar)``. ``sigma[0]`` is 0 for clean data.
    """

    timesteps: Tensor
    alpha: Tensor
    sigma: Tensor

    def __post_init__(self) -> None:
        size = self.timesteps.numel() + 1
        if self.alpha.shape != (size,) or self.sigma.shape != (size,):
            raise ValueError(f"{size - 1} timesteps need {size} levels, level 0 included")
        if bool((self.timesteps.diff() >= 0).any()):
            raise ValueError("timesteps must descend")
        if bool((self.sigma.diff() < 0).any()):
            raise ValueError("sigma must ascend with the level")

    @property
    def steps(self) -> int:
        """S, the number of steps between clean data and the noisiest level."""
        return self.timesteps.numel()

    def timestep(self, level: int) -> int | float:
        """The network's timestep at a level in 1..S. Clean data, level 0, has none.

        Raises:
            IndexError: outside 1..S.
        """
        if not 1 <= level <= self.steps:
            raise IndexError(f"level {level} has no timestep: levels with one are 1..{self.steps}")
        found: int | float = self.timesteps[self.steps - level].item()
        return found

    def at(self, level: int) -> tuple[Tensor, Tensor]:
        """``(alpha, sigma)`` of a level in 0..S, each 0-d.

        Raises:
            IndexError: outside 0..S.
        """
        if not 0 <= level <= self.steps:
            raise IndexError(f"level {level} is not in 0..{self.steps}")
        return self.alpha[level], self.sigma[level]

    def down(self) -> Iterator[tuple[int, int]]:
        """Steps of a sampler, as pairs of levels (from, to): (S, S-1), ..., (1, 0)."""
        return ((level, level - 1) for level in range(self.steps, 0, -1))

    def up(self) -> Iterator[tuple[int, int]]:
        """Steps of an inversion, as pairs of levels (from, to): (0, 1), ..., (S-1, S)."""
        return ((level - 1, level) for level in range(1, self.steps + 1))


def alphas_cumprod(
    num_train: int = 1000,
    beta_start: float = 0.00085,
    beta_end: float = 0.012,
    kind: ScheduleKind = "scaled_linear",
    zero_terminal_snr: bool = False,
) -> Tensor:
    """The cumulative product of alphas a model was trained with. The defaults are Stable Diffusion's.

    Args:
        num_train: number of training timesteps.
        beta_start: first beta, in (0, 1); "cosine" does not use it.
        beta_end: last beta, in (0, 1); "cosine" does not use it.
        kind: "scaled_linear" is linear in sqrt(beta), which is what the paper calls linear; "linear" is
            linear in beta; "cosine" is Nichol and Dhariwal's (diffusers' ``squaredcos_cap_v2``, betas at most
            0.999).
        zero_terminal_snr: rescale so that the last value is exactly 0 (Lin et al., arXiv 2305.08891, alg. 1).

    Returns:
        (num_train,) float64 in [0, 1), descending.
    """
    if kind == "scaled_linear":
        betas = torch.linspace(beta_start**0.5, beta_end**0.5, num_train, dtype=torch.float64) ** 2
    elif kind == "linear":
        betas = torch.linspace(beta_start, beta_end, num_train, dtype=torch.float64)
    elif kind == "cosine":
        time = torch.arange(num_train + 1, dtype=torch.float64) / num_train
        bar = torch.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = (1 - bar[1:] / bar[:-1]).clamp(max=0.999)
    else:
        raise ValueError(f"no schedule named {kind!r}")
    cumulative = torch.cumprod(1 - betas, dim=0)
    if zero_terminal_snr:
        root = cumulative.sqrt()
        cumulative = ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2
    return cumulative


def levels(
    alphas_cumprod: Tensor,
    steps: int,
    spacing: Spacing = "leading",
    steps_offset: int = 1,
    final_alpha: float | None = None,
) -> Levels:
    """Choose ``steps`` of the training timesteps, as diffusers' ``DDIMScheduler.set_timesteps`` does.

    A level's neighbour is the next *used* timestep. Diffusers' DDIM steps by ``num_train // steps`` instead;
    the two agree for "leading", and for "trailing" where ``steps`` divides ``num_train``.

    Args:
        alphas_cumprod: (num_train,) descending.
        steps: S, in 1..num_train.
        spacing: table 2 of arXiv 2305.08891.
        steps_offset: added to "leading" timesteps only; 1 for Stable Diffusion.
        final_alpha: alpha_bar of level 0; None is 1, clean data (diffusers' ``set_alpha_to_one=True``). Give
            ``alphas_cumprod[0]`` for ``set_alpha_to_one=False``.

    Returns:
        Levels, float64.

    Raises:
        ValueError: if the timesteps do not fit the schedule.
    """
    total = alphas_cumprod.numel()
    if not 1 <= steps <= total:
        raise ValueError(f"{steps} steps of a schedule of {total}")
    index = torch.arange(steps, dtype=torch.int64)
    if spacing == "leading":
        ascending = index * (total // steps) + steps_offset
    elif spacing == "trailing":
        # numpy's arange takes its stride from its first two values; with it, ties round as in diffusers
        stride = total - total / steps - total
        ascending = (total + index.double() * stride).round().long().flip(0) - 1
    elif spacing == "linspace":
        ascending = (index.double() * ((total - 1) / max(steps - 1, 1))).round().long()
    else:
        raise ValueError(f"no spacing named {spacing!r}")
    if int(ascending[-1]) >= total or int(ascending[0]) < 0:
        raise ValueError(f"{steps} {spacing} steps with offset {steps_offset} leave a schedule of {total}")
    clean = torch.tensor([1.0 if final_alpha is None else float(final_alpha)], dtype=torch.float64)
    bar = torch.cat([clean, alphas_cumprod.double().cpu()[ascending]])
    return Levels(timesteps=ascending.flip(0), alpha=bar.sqrt(), sigma=(1 - bar).sqrt())
