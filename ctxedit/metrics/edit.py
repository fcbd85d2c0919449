"""A metric, and the edit that it scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from ctxedit.errors import CtxeditError
from ctxedit.metrics.networks import Networks

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from ctxedit.synthetic.compositions import Composition

T = TypeVar("T")
#: What a metric can need besides the edit's frames; each is an attribute of an ``Edit``.
NEEDS = ("target", "source", "source_prompt", "mask", "reference", "expected", "composition")
#: Where a metric can be computed by default: ``run`` and ``eval`` of a run's edits; ``eval`` of
#: any video; ``bench``.
PLACES = ("run", "eval", "bench")
Place = Literal["run", "eval", "bench"]
Score = Callable[["Edit"], "float | None"]


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        key: its name in JSON and in ``--metrics``: lower-case letters, digits and underscores.
        title: its column heading.
        better: which direction is better.
        digits: decimals in tables.
        about: what it measures, in a phrase.
        needs: of :data:`NEEDS`, those without which it does not apply.
        score: its value for an edit; None where it does not apply.
        where: of :data:`PLACES`, those where it is computed by default; empty for one that only
            ``--metrics`` adds.
        order: columns are sorted by it.
        prepare: loads or fetches the networks it needs, so that a missing one stops the work before it
            starts; raises WeightsError.
        version: raise it when the same edit gets another value; results of another version are not reused.
        source: the module that defines it.
        infinite: the value that stands for infinity in means and files; None where there is none.
    """

    key: str
    title: str
    better: Literal["higher", "lower"]
    digits: int
    about: str
    needs: tuple[str, ...] = ()
    score: Score = field(default=lambda edit: None, repr=False, compare=False)
    where: tuple[str, ...] = PLACES
    order: int = 1000
    prepare: Callable[[Networks], object] | None = field(default=None, repr=False, compare=False)
    version: int = 1
    source: str = ""
    infinite: float | None = None

    def table(self) -> dict[str, Any]:
        """What a reader needs to know of it, as a plain table."""
        return {k: getattr(self, k) for k in ("key", "title", "better", "digits", "about", "infinite")}

    def shown(self, value: float, sign: str = "") -> str:
        """A value in a table; ``inf`` for what stands for infinity. ``sign`` as in a format specification."""
        return (
            "inf"
            if self.infinite is not None and value >= self.infinite
            else f"{value:{sign}.{self.digits}f}"
        )

    @property
    def builtin(self) -> bool:
        """Whether it comes with ctxedit."""
        return self.source.startswith("ctxedit.metrics.")


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
                f"it is defined in {metric.source}, which is not part of ctxedit",
            ) from error

    def once(self, name: str, compute: Callable[[], T]) -> T:
        """A value that several metrics share, computed when it is first needed."""
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
