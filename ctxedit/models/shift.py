"""The shift b_t = k_t · r_φ(x_0, c, t) of one clip and one prompt, ready for any level."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ctxedit.diffusion.schedule import Levels
from ctxedit.models.adapter import ContextAdapter


@dataclass(frozen=True)
class ContextShift:
    """An adapter bound to a prompt.

    Attributes:
        adapter: r_φ.
        context: (clips, L, D) embedding of the prompt, one for each clip.
        frames: F, of each clip.
        image_tokens: latents (F, C, h, w) to image tokens, for an adapter that sees through CLIP; else None.
    """

    adapter: ContextAdapter
    context: Tensor
    frames: int
    image_tokens: Callable[[Tensor], Tensor] | None = None

    def __call__(self, x0: Tensor, timestep: int | float | Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """b_t, the shape of x0 (F, C, h, w)."""
        tokens = self.image_tokens(x0) if self.image_tokens is not None else None
        r = self.adapter(x0, self.context, timestep, self.frames, tokens)
        return self.adapter.shift(r, x0, alpha, sigma).to(x0.dtype)

    def at(self, x0: Tensor, levels: Levels, level: int) -> Tensor | None:
        """b at a level; None at level 0, where k is 0."""
        if level == 0:
            return None
        return self(x0, levels.timestep(level), *levels.at(level))
