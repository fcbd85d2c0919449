"""What a metric sees: an edit with all that it can be compared with, and the networks that look at it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ctxedit.errors import CtxeditError
from ctxedit.metrics.registry import Metric, metrics

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ctxedit.models.clip import ClipScorer
    from ctxedit.synthetic.compositions import Composition

T = TypeVar("T")


class Networks:
    """The networks that metrics share; each is loaded once, when it is first asked for.

    Args:
        clip: the CLIP of the CLIP metrics; None where none of them is computed.
        device: where further networks run; None is CLIP's.
        offline: fetch nothing from the hub.
        weights: where the weights of a metric's own network are, by its key: a path or a hub id.
    """

    def __init__(
        self,
        clip: ClipScorer | None,
        device: torch.device | str | None = None,
        offline: bool = False,
        weights: Mapping[str, str] | None = None,
    ) -> None:
        self._weights = dict(weights or {})
        self._clip, self.offline = clip, offline
        self.device = device or (clip.device if clip else "cpu")
        self._loaded: dict[str, Any] = {}

    def with_clip(self, clip: ClipScorer) -> Networks:
        """The same networks with this CLIP; what one of both loads, the other has."""
        made = Networks(clip, self.device, self.offline, self._weights)
        made._loaded = self._loaded
        return made

    @property
    def clip(self) -> ClipScorer:
        """The CLIP of the CLIP metrics."""
        if self._clip is None:
            raise ValueError("a CLIP metric is computed, and no CLIP was given")
        return self._clip

    def weights_of(self, key: str, default: str) -> str:
        """Where a metric's weights are: what was given for it, or ``default``."""
        return self._weights.get(key, default)

    def once(self, name: str, load: Callable[[], T]) -> T:
        """What ``load`` gave when it was first called under this name."""
        if name not in self._loaded:
            self._loaded[name] = load()
        return self._loaded[name]


@dataclass(eq=False)
class Edit:
    """An edit to score. Whatever is None is not known, and metrics that need it do not apply.

    Attributes:
        frames: RGB uint8 (F, H, W, 3).
        networks: shared by all edits that are scored together.
        target: what the edit should show.
        source: the clip it was made from, of the same shape.
        source_prompt: what the source shows.
        mask: (F, H, W) in [0, 1], above 0.5 where change was allowed.
        reference: the true edit, of the same shape.
        expected: answers that the judge of the drawn world should give, by question.
        kind: what sort of edit it is: ``object``, ``background``, ``style``, ``colour`` or another word.
        composition: objects that the edit should show, for the composition judge; None for an edit without.
        changed: index of the group of ``composition`` that is edited; None where it is their relation.
    """

    frames: NDArray[np.uint8]
    networks: Networks
    target: str | None = None
    source: NDArray[np.uint8] | None = None
    source_prompt: str | None = None
    mask: NDArray[np.float32] | None = None
    reference: NDArray[np.uint8] | None = None
    expected: Mapping[str, str] | None = None
    kind: str = "other"
    composition: Composition | None = None
    changed: int | None = None
    _values: dict[str, float | None] = field(default_factory=dict, repr=False)
    _shared: dict[str, Any] = field(default_factory=dict, repr=False)

    def has(self, need: str) -> bool:
        """Whether something that a metric needs is known, and fits the edit."""
        value = getattr(self, need)
        if need in ("source", "reference") and value is not None:
            return bool(value.shape == self.frames.shape)
        if need == "source_prompt":
            return value is not None and value != self.target
        if need == "expected":
            return bool(value) or self.composition is not None
        return value is not None

    def score(self, metric: Metric) -> float | None:
        """A metric's value, computed once; None where it does not apply.

        Raises:
            CtxeditError: a plugin's metric failed.
        """
        if metric.key not in self._values:
            applies = all(self.has(need) for need in metric.needs)
            self._values[metric.key] = self._compute(metric) if applies else None
        return self._values[metric.key]

    def _compute(self, metric: Metric) -> float | None:
        try:
            return metric.score(self)
        except Exception as error:
            if metric.builtin or isinstance(error, CtxeditError):
                raise
            raise CtxeditError(
                f"the metric {metric.key} failed: {type(error).__name__}: {error}",
                f"it is defined in {metric.source}, which is no part of ctxedit",
            ) from error

    def value(self, key: str) -> float | None:
        """Another metric's value, by its key."""
        return self.score(next(one for one in metrics() if one.key == key))

    def once(self, name: str, compute: Callable[[], T]) -> T:
        """A value that several metrics share, computed when it is first asked for."""
        if name not in self._shared:
            self._shared[name] = compute()
        return self._shared[name]

    @cached_property
    def image_embeddings(self) -> Tensor:
        """CLIP's embeddings (F, D) of the frames, each of length 1."""
        return self.networks.clip.embed_images(self.frames)

    def text_embedding(self, text: str) -> Tensor:
        """CLIP's embedding (1, D) of a text, of length 1."""
        return self.once(f"text {text}", lambda: self.networks.clip.embed_texts([text]))

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the frames."""
        return self.frames.shape[2], self.frames.shape[1]

    @property
    def unchanged(self) -> NDArray[np.bool_] | None:
        """Where nothing may change, (F, H, W); None without a mask."""
        return None if self.mask is None else self.mask <= 0.5
