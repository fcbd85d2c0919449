"""Changes of a composition: one thing becomes another, and everything else stays where it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ctxedit.synthetic.compositions import MAX_COUNT, RELATIONS, SIZES, Composed, Composition, Group
from ctxedit.synthetic.vocabulary import COLOURS, THINGS

#: The parts of a composition that can be changed.
PARTS = ("object", "colour", "count", "size", "relation")


def parts_of(composition: Composition) -> list[str]:
    """Those of ``PARTS`` that this composition has."""
    groups = composition.groups
    found = {
        "object": True,
        "colour": any(g.colour for g in groups),
        "count": any(g.count > 1 for g in groups),
        "size": len(groups) == 1 and groups[0].size is not None,
        "relation": composition.relation is not None,
    }
    return [part for part in PARTS if found[part]]


def change(
    composition: Composition, rng: np.random.Generator, part: str, at: int | None = None
) -> tuple[Composition, int]:
    """The composition with one part resampled to a different value, and its group: ``at``, or any.

    An object is replaced by another, with a colour if it can have one; a count changes by one; a size or a
    relation becomes its opposite.

    Raises:
        ValueError: it has no such part, or the group has none.
    """
    if part not in parts_of(composition):
        raise ValueError(f"nothing to change: {part} of {composition}")
    groups = list(composition.groups)
    able = {"colour": [bool(g.colour) for g in groups], "count": [g.count > 1 for g in groups]}
    which = [i for i, has in enumerate(able.get(part, [True] * len(groups))) if has]
    at = which[int(rng.integers(len(which)))] if at is None else at
    if at not in which:
        raise ValueError(f"nothing to change: {part} of group {at} of {composition}")
    if part == "relation":
        other = RELATIONS[RELATIONS.index(str(composition.relation)) ^ 1]
        return replace(composition, relation=other), 0
    groups[at] = _changed(groups[at], [g for g in groups if g is not groups[at]], rng, part)
    return replace(composition, groups=tuple(groups)), at


def _changed(group: Group, others: Sequence[Group], rng: np.random.Generator, part: str) -> Group:
    if part == "colour":
        taken = {group.colour} | {o.colour for o in others if o.name == group.name}
        return replace(group, colour=_one(rng, [c for c in COLOURS if c not in taken]))
    if part == "count":
        # Three become two or four; two of a thing with two others beside it can only become one or three.
        room = MAX_COUNT - sum(o.count for o in others)
        options = [n for n in (group.count - 1, group.count + 1) if 1 <= n <= room]
        return replace(group, count=options[int(rng.integers(len(options)))])
    if part == "size":
        return replace(group, size=SIZES[1 - SIZES.index(str(group.size))])
    coloured = group.colour is not None
    names_taken = {group.name} | {o.name for o in others}
    names = [t.name for t in THINGS if t.colourable == coloured and t.name not in names_taken]
    return replace(group, name=_one(rng, names))


def redraw(composed: Composed, changed: Composition) -> Composed:
    """The same scene with another composition of the same number of objects, each in its predecessor's place.

    Groups keep their places. If the relation differs, the objects of the two groups swap places; if a size
    differs, the object is scaled and its feet stay where they are.

    Raises:
        ValueError: the number of objects differs.
    """
    before, members = composed.composition, changed.members
    if len(members) != len(composed.order):
        raise ValueError(f"{len(members)} objects in the place of {len(composed.order)}")
    swap = before.relation != changed.relation
    actors = list(composed.scene.actors)
    for i, group in enumerate(members):
        place = composed.scene.actors[composed.order[1 - i if swap else i]]
        scale = place.scale
        if group.size != before.members[i].size:
            scale = 0.26 if group.size == "tiny" else 0.80
        actors[composed.order[1 - i if swap else i]] = replace(
            place, name=group.name, colour=group.colour, scale=scale
        )
    order = composed.order[::-1] if swap else composed.order
    return Composed(changed, replace(composed.scene, actors=tuple(actors)), order)


def without(composed: Composed, at: int) -> Composed:
    """The same scene with one object fewer in group ``at``, which has at least two; the others stay."""
    groups = list(composed.composition.groups)
    groups[at] = replace(groups[at], count=groups[at].count - 1)
    member = sum(g.count for g in composed.composition.groups[: at + 1]) - 1
    gone = composed.order[member]
    actors = tuple(a for i, a in enumerate(composed.scene.actors) if i != gone)
    order = tuple(o - (o > gone) for i, o in enumerate(composed.order) if i != member)
    composition = replace(composed.composition, groups=tuple(groups))
    return Composed(composition, replace(composed.scene, actors=actors), order)


def _one(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]
