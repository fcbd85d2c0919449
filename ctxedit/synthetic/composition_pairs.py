"""Clip–target pairs of held-out compositions: one thing changes, and everything else stays where it is.

"The cat on the left becomes a dog", "the red car becomes blue and the blue one stays", "one more balloon",
the huge one becomes tiny, the two change places. The target is drawn as well: it is the ideal edit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ctxedit.synthetic import composition_changes, compositions
from ctxedit.synthetic.composition_captions import caption
from ctxedit.synthetic.compositions import KINDS, Composed
from ctxedit.synthetic.scenes import Scene
from ctxedit.synthetic.vocabulary import GROUNDLESS

#: The targets of a clip, by its kind: the part that changes, and in which group; None is any that has it.
_TARGETS: dict[str, tuple[tuple[str, int | None], ...]] = {
    "count": (("object", None), ("colour", None), ("count", None)),
    "relation": (("object", 0), ("colour", None), ("relation", None), ("object", 1)),
    "colours": (("object", 0), ("colour", None), ("object", 1)),
    "mixed": (("object", 0), ("colour", None), ("count", None)),
    "size": (("object", None), ("colour", None), ("size", None)),
}
#: An additional target for some clips, by the clip's number, which brings the default list to 46.
_EXTRA: dict[int, tuple[tuple[str, int | None], ...]] = {3: (("object", 1),)}
#: Clips of two objects that differ only in colour: "the red one becomes blue and the yellow one stays".
_TWINS = (2, 6)
_DRAWS = 20_000


@dataclass(frozen=True)
class CompositionPair:
    """A clip and what to make of it.

    Attributes:
        clip: a name, the same for all pairs of one clip; a file name without suffix.
        kind: the part that changes, of :data:`~ctxedit.synthetic.composition_changes.PARTS`.
        before, after: what is drawn; ``source`` and ``target`` are their scenes.
        changed: the group that changes; None if the relation does.
        number: the target's number among those of this kind for the clip, from 1.
    """

    clip: str
    kind: str
    before: Composed
    after: Composed
    changed: int | None
    number: int = 1

    @property
    def source(self) -> Scene:
        return self.before.scene

    @property
    def target(self) -> Scene:
        return self.after.scene

    @property
    def source_prompt(self) -> str:
        return caption(self.before)

    @property
    def target_prompt(self) -> str:
        return caption(self.after)

    def mask(self, frames: int, size: int) -> NDArray[np.float32]:
        """Where the edit may change the picture: the changed objects, old and new; (F, size, size)."""
        times = [0.5] if frames == 1 else [i / (frames - 1) for i in range(frames)]
        masks = []
        for t in times:
            both = [(c, compositions.render_objects(c.scene, t, size)[1]) for c in (self.before, self.after)]
            masks.append(np.max(np.stack([mask for of in both for mask in self._of_changed(*of)]), 0))
        return np.stack(masks)

    def _of_changed(
        self, composed: Composed, visible: list[compositions.VisibleObject]
    ) -> Iterator[NDArray[np.float32]]:
        groups = [i for i, g in enumerate(composed.composition.groups) for _ in range(g.count)]
        for group, actor in zip(groups, composed.order, strict=True):
            if self.changed is None or group == self.changed:
                yield visible[actor].mask


def draw_pairs(clips: int, seed: int = 0) -> list[CompositionPair]:
    """Draw pairs: ``clips`` clips, cycling through the kinds, each with three or four targets.

    Every clip has the parts that its targets change, in particular a colour; no two clips show the same
    combination.

    Args:
        clips: how many.
        seed: the pairs are a function of it and of ``clips``.

    Raises:
        ValueError: more than the held-out combinations allow.
    """
    rng = np.random.default_rng((seed, 46))
    pairs: list[CompositionPair] = []
    taken: set[str] = set()
    for number in range(clips):
        for _ in range(_DRAWS):
            kind = KINDS[number % len(KINDS)]
            # Half of the counts grow and half shrink.
            source, other, at = _source(rng, kind, more=number // len(KINDS) % 2 == 0)
            if _fits(source, kind, twins=number in _TWINS) and source.composition.key not in taken:
                break
        else:
            raise ValueError(f"the held-out combinations give {number} clips, not {clips}")
        taken.add(source.composition.key)
        first = source.composition.groups[0].name
        name = f"{number + 1:02d}-{kind}-{first}-{source.scene.background}"
        targets = _TARGETS[kind] + _EXTRA.get(number, ())
        pairs += _of_clip(name, targets, source, other, at, rng)
    return pairs


def _fits(source: Composed, kind: str, twins: bool) -> bool:
    """Whether a clip is held out and has the parts that its targets change; for a count, the other scene is
    drawn as well."""
    composition, has = source.composition, set(composition_changes.parts_of(source.composition))
    # No object on the ground may end up above a floating one.
    grounded = composition.relation in ("above", "below") and source.scene.background not in GROUNDLESS
    same = len({g.name for g in composition.groups}) < len(composition.groups)
    able = {part for part, _ in _TARGETS[kind]} - {"count"} <= has
    return able and not grounded and (same or not twins) and compositions.held_out(composition)


def _source(rng: np.random.Generator, kind: str, more: bool) -> tuple[Composed, Composed | None, int]:
    """A clip's scene; if a count changes, also the scene with one object more or fewer, and the group."""
    if "count" not in {part for part, _ in _TARGETS[kind]}:
        return compositions.draw(rng, test=True, kind=kind), None, 0
    full = compositions.draw(rng, test=bool(rng.integers(2)), kind=kind)
    at = next(i for i, g in enumerate(full.composition.groups) if g.count > 1)
    fewer = composition_changes.without(full, at)
    return (fewer, full, at) if more else (full, fewer, at)


def _of_clip(
    name: str,
    targets: Sequence[tuple[str, int | None]],
    source: Composed,
    other: Composed | None,
    at: int,
    rng: np.random.Generator,
) -> Iterator[CompositionPair]:
    numbers: dict[str, int] = {}
    for part, group in targets:
        numbers[part] = numbers.get(part, 0) + 1
        if part == "count":
            assert other is not None
            yield CompositionPair(name, part, source, other, at)
            continue
        said, which = composition_changes.change(source.composition, rng, part, group)
        changed = None if part == "relation" else which
        yield CompositionPair(
            name, part, source, composition_changes.redraw(source, said), changed, numbers[part]
        )
