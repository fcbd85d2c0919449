"""Attention of frames to the keys and values of several frames."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

#: ``kernel(q, k, v)`` on (B, heads, tokens, dim): softmax(q kᵀ / √dim) v.
Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]


def across_frames(
    q: Tensor, k: Tensor, v: Tensor, attended: tuple[tuple[int, ...], ...], kernel: Kernel
) -> Tensor:
    """Attention in which frame i's keys and values are those of the frames ``attended[i]``.

    Frames that see equally many are one kernel call, so no mask is needed and no key counts twice.

    Args:
        q: (branches·frames, heads, tokens, dim).
        k, v: the same, or of more frames: frames beyond the queries' are attended to only.
        attended: for each frame the frames it attends to.
        kernel: fused attention.
    """
    n = len(attended)
    if all(s == (i,) for i, s in enumerate(attended)):
        return kernel(q, k, v)
    branches = q.shape[0] // n
    q, k, v = (x.unflatten(0, (branches, -1)) for x in (q, k, v))
    groups: dict[int, list[int]] = defaultdict(list)
    for i, s in enumerate(attended):
        groups[len(s)].append(i)
    out = torch.empty(*q.shape[:-1], v.shape[-1], dtype=v.dtype, device=v.device)
    for members in groups.values():
        ks, vs = (_attended(x, [attended[i] for i in members]) for x in (k, v))
        part = kernel(q[:, members].flatten(0, 1), ks, vs)
        out[:, members] = part.unflatten(0, (branches, len(members)))
    return out.flatten(0, 1)


def _attended(x: Tensor, attended: Sequence[tuple[int, ...]]) -> Tensor:
    """Keys or values of the frames that some frames attend to, equally many for each.

    Args:
        x: (branches, frames, heads, tokens, dim).
        attended: for each of these frames the ones it attends to.

    Returns:
        (branches·len(attended), heads, attended·tokens, dim), contiguous.
    """
    if torch.is_grad_enabled() and x.requires_grad:
        # The gradients of slices would be added up in another order.
        index = torch.tensor(attended, device=x.device)
        # (branches, members, attended, heads, tokens, dim) → attended·tokens in one axis
        return x[:, index].transpose(2, 3).flatten(3, 4).flatten(0, 1)
    return torch.cat([_frames(x, column) for column in zip(*attended, strict=True)], 3).flatten(0, 1)


def _frames(x: Tensor, frames: tuple[int, ...]) -> Tensor:
    """Some frames of (branches, frames, …); a view, where they are neighbours or one and the same."""
    first, count = frames[0], len(frames)
    if frames == tuple(range(first, first + count)):
        return x[:, first : first + count]
    if frames == (first,) * count:
        return x[:, first : first + 1].expand(-1, count, -1, -1, -1)
    return x[:, list(frames)]
