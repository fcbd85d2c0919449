"""Queries and keys of the source's attention layers, kept so that the source's branch need not run again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from ctxedit.models.sites import AttentionSite


class Layer(Protocol):
    """An attention layer's processor, with its kernel."""

    site: AttentionSite
    kernel: Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass
class SourceLayers:
    """What the steps at one noise level take from the source's branch.

    Attributes:
        self_from: self-attention layers with at least so many halvings are kept; None keeps none.
        cross_from: the same for cross-attention layers.
        masks: cross-attention layers with exactly so many halvings are kept, for masks; None keeps none.
        complete: whether a pass of the source has filled them.
    """

    self_from: int | None = None
    cross_from: int | None = None
    masks: int | None = None
    complete: bool = False
    _kept: dict[Layer, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def wants(self, site: AttentionSite) -> bool:
        """Whether a layer at this site is kept."""
        least = self.self_from if site.kind == "self" else self.cross_from
        from_here = least is not None and site.halvings >= least
        return from_here or (site.kind == "cross" and site.halvings == self.masks)

    def add(self, layer: Layer, q: Tensor, k: Tensor, frames: int) -> None:
        """Keep a layer's queries and keys of the first branch of a pass, if they are wanted.

        Args:
            layer: whose queries and keys these are.
            q, k: (branches·frames, heads, tokens, dim).
            frames: of a branch.
        """
        if self.wants(layer.site):
            # A slice would keep the other branches in memory as well.
            self._kept[layer] = (q, k) if len(q) == frames else (q[:frames].clone(), k[:frames].clone())

    def of(self, layer: Layer) -> tuple[Tensor, Tensor]:
        """Queries and keys (frames, heads, tokens, dim) of the source in a layer."""
        return self._kept[layer]

    def of_masks(self) -> Iterator[tuple[Layer, Tensor, Tensor]]:
        """The cross-attention layers that masks are made from, in the order in which they run."""
        for layer, (q, k) in self._kept.items():
            if layer.site.kind == "cross" and layer.site.halvings == self.masks:
                yield layer, q, k

    @property
    def bytes(self) -> int:
        """Bytes of all tensors that are kept."""
        return sum(x.numel() * x.element_size() for pair in self._kept.values() for x in pair)
