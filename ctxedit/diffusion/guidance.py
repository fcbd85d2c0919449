"""Classifier-free guidance."""

from __future__ import annotations

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


def rescale(guided: Tensor, cond: Tensor, phi: float) -> Tensor:
    """Give a guided output back the spread it had before guidance (Lin et al., arXiv 2305.08891, sec. 3.4).

    Args:
        guided, cond: (B, ...) with at least two elements a sample, ``guided`` not constant.
        phi: in [0, 1]; 0 changes nothing, 1 gives each sample the standard deviation of ``cond``.

    Returns:
        (B, ...).
    """
    dims = tuple(range(1, guided.ndim))
    ratio = cond.std(dim=dims, keepdim=True) / guided.std(dim=dims, keepdim=True)
    return guided * (phi * ratio + (1 - phi))
