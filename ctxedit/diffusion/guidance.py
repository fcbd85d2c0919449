"""Classifier-free guidance."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ctxedit.diffusion.broadcast import Level, per_sample


def guide(uncond: Tensor, cond: Tensor, scale: Level) -> Tensor:
    """``uncond + scale (cond - uncond)`` (Ho and Salimans, arXiv 2207.12598, as diffusers writes it).

    Args:
        uncond, cond: two outputs of the network, or two ``x_0`` at one level, (B, ...): the map between them
            is affine, so guiding either is the same.
        scale: guidance scale; 1 is the conditional output, 0 the unconditional one; float, 0-d or (B,).

    Returns:
        The guided output, (B, ...).
    """
    return uncond + per_sample(scale, uncond) * (cond - uncond)


def guide_by_all(
    uncond: Tensor, conds: Sequence[Tensor], scale: Level, weights: Sequence[float] = (1.0,)
) -> Tensor:
    """``uncond + scale Σ w_i (cond_i - uncond)``: several conditions at once (Liu et al. 2022, Eq 11).

    A negative weight leads away from its condition. One condition of weight 1 is :func:`guide`.

    Args:
        uncond: as for :func:`guide`.
        conds: outputs under each of the conditions, one or more.
        scale: guidance scale of all of them.
        weights: of each condition.

    Returns:
        The guided output, (B, ...).

    Raises:
        ValueError: not as many weights as conditions.
    """
    first, *rest = (weight * (cond - uncond) for cond, weight in zip(conds, weights, strict=True))
    return uncond + per_sample(scale, uncond) * sum(rest, first)
