"""Frames that every window of a long clip attends to: the clip's first, and the first of the window before.

Their keys and values are kept as their own windows computed them in the same denoising step, so seeing them
costs attention, but no pass of the network over them.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

#: Frame indices that each frame attends to; see :mod:`ctxedit.patterns`.
Attended = tuple[tuple[int, ...], ...]


class Anchors:
    """Keys and values of the anchor frames in every self-attention layer, over one step of one clip.

    Windows are worked in order, each with the same calls of the network; :meth:`enter` begins one.
    """

    def __init__(self) -> None:
        self._window = -1
        self._calls: dict[int, int] = {}
        self._kept: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)

    def enter(self) -> None:
        """Begin the next window."""
        self._window += 1
        self._calls = {}

    def extend(
        self, layer: object, k: Tensor, v: Tensor, attended: Attended
    ) -> tuple[Tensor, Tensor, Attended]:
        """Put the anchors' keys and values behind the window's own, for all frames to see.

        Args:
            layer: whose keys and values these are.
            k, v: (branches·frames, heads, tokens, dim).
            attended: the frames that each of the window's frames attends to within the window.

        Returns:
            k and v (branches·(frames + anchors), heads, tokens, dim), and ``attended`` with the anchors. All
            as they were in the first window, and where every frame attends to itself alone.
        """
        frames = len(attended)
        if all(own == (i,) for i, own in enumerate(attended)):
            return k, v, attended
        call = self._calls[id(layer)] = self._calls.get(id(layer), -1) + 1
        kept = self._kept[id(layer), call]
        branches = [x.unflatten(0, (-1, frames)) for x in (k, v)]
        first_k, first_v = (x[:, :1].clone() for x in branches)
        # Of the second window, the clip's first frame is the first of the window before as well.
        anchors = kept[: min(2, self._window)]
        kept[:] = [*kept[:1], (first_k, first_v)]
        if not anchors:
            return k, v, attended
        long_k, long_v = (
            torch.cat([own, *(pair[i] for pair in anchors)], 1).flatten(0, 1)
            for i, own in enumerate(branches)
        )
        places = tuple(range(frames, frames + len(anchors)))
        return long_k, long_v, tuple((*own, *places) for own in attended)
