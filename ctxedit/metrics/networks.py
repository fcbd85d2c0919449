"""The networks that metrics share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

    from ctxedit.models.clip import ClipScorer

T = TypeVar("T")


class Networks:
    """The networks that metrics share; each is loaded once, when it is first needed.

    Args:
        clip: the CLIP of the CLIP metrics; None where none of them is computed.
        device: where further networks run; None is CLIP's.
        offline: download nothing.
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
        """The same networks with this CLIP; networks loaded by one are shared with the other."""
        made = Networks(clip, self.device, self.offline, self._weights)
        made._loaded = self._loaded
        return made

    @property
    def clip(self) -> ClipScorer:
        """The CLIP of the CLIP metrics."""
        if self._clip is None:
            raise ValueError("a CLIP metric needs a CLIP, and none was given")
        return self._clip

    def weights_of(self, key: str, default: str) -> str:
        """Path or hub id of a metric's weights: the one given for it, or ``default``."""
        return self._weights.get(key, default)

    def once(self, name: str, load: Callable[[], T]) -> T:
        """The result of ``load``, which is called once for each name."""
        if name not in self._loaded:
            self._loaded[name] = load()
        return self._loaded[name]
