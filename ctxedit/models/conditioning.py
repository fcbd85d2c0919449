"""Conditions of a denoiser: text; labels and layouts give tokens as well.

A condition has one row for each branch of classifier-free guidance: unconditional, conditional, the source's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Condition:
    """Rows of a condition.

    Attributes:
        tokens: (N, L, D), what cross-attention and the context adapter attend to.
        pooled: (N, P), one vector for each row, for networks that add it to their time embedding (Stable
            Diffusion XL); None for those that take none.
    """

    tokens: Tensor
    pooled: Tensor | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: slice) -> Condition:
        return Condition(self.tokens[rows], None if self.pooled is None else self.pooled[rows])

    def for_frames(self, frames: int) -> Condition:
        """Each row once for each of so many frames: (N·frames, …), a row's frames side by side."""
        pooled = None if self.pooled is None else self.pooled.repeat_interleave(frames, dim=0)
        return Condition(self.tokens.repeat_interleave(frames, dim=0), pooled)

    def to(self, dtype: torch.dtype) -> Condition:
        """The same in another precision."""
        return Condition(self.tokens.to(dtype), None if self.pooled is None else self.pooled.to(dtype))

    @staticmethod
    def of(rows: Condition | Tensor) -> Condition:
        """The condition itself; tokens alone are a condition without pooled vectors."""
        return rows if isinstance(rows, Condition) else Condition(rows)

    @staticmethod
    def stack(parts: Sequence[Condition]) -> Condition:
        """The rows of several conditions of one kind, after one another."""
        pooled = [part.pooled for part in parts if part.pooled is not None]
        tokens = torch.cat([part.tokens for part in parts])
        return Condition(tokens, torch.cat(pooled) if pooled else None)
