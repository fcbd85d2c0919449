"""The harder split of the drawn world: counts, relations, sizes, and several objects each with its colour.

A :class:`Composition` is the content of a caption: groups of objects and their spatial relation. It is drawn
as a :class:`~ctxedit.synthetic.scenes.Scene` of up to four actors, so frames, clips, styles and motions
are those of the easy split. Motions are slower than there, so that no object leaves the frame and no relation
changes.

Held out are combinations of groups and relation, with any background: "a blue car to the left of a cat"
is either trained on everywhere or nowhere.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctxedit.synthetic import scenes
from ctxedit.synthetic.scenes import MOTIONS, Actor, Scene
from ctxedit.synthetic.vocabulary import BACKGROUNDS, BY_NAME, COLOURS, GROUNDLESS, THINGS

#: Position of the first group relative to the second. Append-only, like the vocabulary.
RELATIONS = ("left of", "right of", "above", "below", "behind", "in front of")
SIZES = ("tiny", "huge")
#: What a composition tests; sampled with equal probability.
KINDS = ("count", "relation", "colours", "mixed", "size")
MAX_COUNT = 4
#: The styles of the easy split in which colours and small objects remain visible.
STYLES = ("plain", "watercolor")
#: Scale (the side of an object's square, in frame sizes) below which an object is tiny, above which huge.
TINY, HUGE = 0.34, 0.56
#: An object of which others occlude more than this share counts as covered.
COVERED = 0.04
_HELD_OUT_SHARE = 0.08
_PLAIN_SHARE = 0.85
_COLOURED_SHARE = 0.45
_JITTER = 0.03


@dataclass(frozen=True)
class Group:
    """A group of identical objects in a caption.

    Attributes:
        name: a key of ``BY_NAME``.
        colour: a key of ``COLOURS``; None if the object cannot be coloured.
        count: 1 to 4.
        size: of ``SIZES``; None if the caption does not mention it.
    """

    name: str
    colour: str | None = None
    count: int = 1
    size: str | None = None


@dataclass(frozen=True)
class Composition:
    """What a caption says.

    Attributes:
        groups: one to three.
        relation: of ``RELATIONS``, of the first of two groups to the second; None if the caption has none.
        kind: of ``KINDS``; what was drawn, not part of the identity of a combination.
    """

    groups: tuple[Group, ...]
    relation: str | None = None
    kind: str = "count"

    @property
    def key(self) -> str:
        """The combination that may be held out of training; the order of unrelated groups does not matter."""
        groups = self.groups if self.relation else tuple(sorted(self.groups, key=repr))
        return repr([(g.name, g.colour, g.count, g.size) for g in groups] + [self.relation])

    @property
    def normalized(self) -> Composition:
        """The same content in the one form that stands for all equivalent ones.

        Unrelated groups are sorted, and the relation is left of, above or behind.
        """
        groups, relation = self.groups, self.relation
        if relation is None:
            return replace(
                self, groups=tuple(sorted(groups, key=lambda g: (g.name, g.colour or "", g.count)))
            )
        if (at := RELATIONS.index(relation)) % 2:
            return replace(self, groups=groups[::-1], relation=RELATIONS[at - 1])
        return self

    @property
    def members(self) -> list[Group]:
        """One entry per object, each group repeated ``count`` times."""
        return [group for group in self.groups for _ in range(group.count)]

    def to_table(self) -> dict[str, Any]:
        """Plain values for TOML; :meth:`from_table` reads them."""
        groups = [
            {k: v for k, v in vars(group).items() if v is not None and (k, v) != ("count", 1)}
            for group in self.groups
        ]
        return {"groups": groups, **({"relation": self.relation} if self.relation else {})}

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> Composition:
        """The inverse of :meth:`to_table`; raises ValueError, with the reason, for any other table."""
        if unknown := sorted(set(table) - {"groups", "relation"}):
            raise ValueError(f"unknown key {unknown[0]}")
        entries = table.get("groups")
        if not isinstance(entries, list) or not 1 <= len(entries) <= 3:
            raise ValueError("groups is a list of one to three tables")
        groups = tuple(_group(entry) for entry in entries)
        relation = table.get("relation")
        if relation is not None and (relation not in RELATIONS or len(groups) != 2):
            raise ValueError(f"relation = {relation!r}: of two groups, one of {', '.join(RELATIONS)}")
        return cls(groups, relation)


def _group(entry: Any) -> Group:
    if not isinstance(entry, Mapping):
        raise ValueError(f"a group is a table, not {entry!r}")
    if unknown := sorted(set(entry) - {"name", "colour", "count", "size"}):
        raise ValueError(f"unknown key {unknown[0]} in a group")
    name, colour, size = entry.get("name"), entry.get("colour"), entry.get("size")
    count = entry.get("count", 1)
    if name not in BY_NAME:
        raise ValueError(f"name = {name!r}: one of {', '.join(BY_NAME)}")
    if colour is not None and (colour not in COLOURS or not BY_NAME[name].colourable):
        raise ValueError(f"colour = {colour!r} of a {name}")
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MAX_COUNT:
        raise ValueError(f"count = {count!r}: 1 to {MAX_COUNT}")
    if size is not None and size not in SIZES:
        raise ValueError(f"size = {size!r}: one of {', '.join(SIZES)}")
    return Group(name, colour, count, size)


@dataclass(frozen=True)
class Composed:
    """A composition and how it is drawn: its ``members[i]`` is actor ``order[i]`` of the scene."""

    composition: Composition
    scene: Scene
    order: tuple[int, ...]


def held_out(composition: Composition) -> bool:
    """Whether the combination is kept for testing: about 8 % of all, fixed forever."""
    return zlib.crc32(composition.key.encode()) % 1000 < 1000 * _HELD_OUT_SHARE


def draw(rng: np.random.Generator, *, test: bool = False, kind: str | None = None) -> Composed:
    """Draw a composition and its scene from the training combinations, or with ``test`` from the held-out
    ones.

    Args:
        rng: numpy generator; the result is a function of its state alone.
        test: which side of :func:`held_out` to draw from.
        kind: of ``KINDS``; None takes each equally often.
    """
    while True:
        background = list(BACKGROUNDS)[rng.integers(len(BACKGROUNDS))]
        chosen = kind or KINDS[rng.integers(len(KINDS))]
        composition = _DRAWERS[chosen](rng, background)
        if held_out(composition) == test:
            return compose(composition, background, rng)


def compose(composition: Composition, background: str, rng: np.random.Generator) -> Composed:
    """Place a composition's objects on a background, with a newly sampled style, motion and variation."""
    places = _places(composition, rng)
    # nearer objects are lower in the frame and drawn later
    order = sorted(range(len(places)), key=lambda i: places[i][1])
    actors = []
    for i in order:
        group, (x, y, scale) = composition.members[i], places[i]
        actors.append(Actor(group.name, group.colour, float(x), float(y), float(scale)))
    style = STYLES[0] if rng.random() < _PLAIN_SHARE else STYLES[1 + rng.integers(len(STYLES) - 1)]
    scene = Scene(
        tuple(actors),
        background,
        style,
        MOTIONS[rng.integers(len(MOTIONS))],
        int(rng.choice([-1, 1])),
        float(rng.uniform(0.2, 0.45)),
        tuple(float(x) for x in rng.random(8)),
    )
    back = tuple(order.index(i) for i in range(len(order)))
    return Composed(composition, scene, back)


# -- what is said --------------------------------------------------------------------------------------------


def _thing(rng: np.random.Generator, *others: Group) -> Group:
    """One object whose name differs from the others', or whose colour does if the name is the same."""
    if others and others[0].colour is not None and rng.random() < 0.25:
        taken = {o.colour for o in others if o.name == others[0].name}
        return Group(others[0].name, _pick(rng, [c for c in COLOURS if c not in taken]))
    coloured = rng.random() < _COLOURED_SHARE
    names = [t.name for t in THINGS if t.colourable == coloured and t.name not in {o.name for o in others}]
    return Group(_pick(rng, names), _pick(rng, list(COLOURS)) if coloured else None)


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _count(rng: np.random.Generator, background: str) -> Composition:
    return Composition((replace(_thing(rng), count=int(rng.integers(2, MAX_COUNT + 1))),), None, "count")


def _relation(rng: np.random.Generator, background: str) -> Composition:
    """Above and below only if one of the objects can be off the ground."""
    first = _thing(rng)
    second = _thing(rng, first)
    while True:
        relation = _pick(rng, RELATIONS)
        upper = {"above": first, "below": second}.get(relation)
        if upper is None or background in GROUNDLESS or BY_NAME[upper.name].floats:
            return Composition((first, second), relation, "relation")


def _colours(rng: np.random.Generator, background: str) -> Composition:
    """Two or three objects, at least one of which shows a colour."""
    first = Group(_pick(rng, [t.name for t in THINGS if t.colourable]), _pick(rng, list(COLOURS)))
    groups = [first, _thing(rng, first)]
    if rng.random() < 0.5:
        groups.append(_thing(rng, *groups))
    return Composition(tuple(groups[i] for i in rng.permutation(len(groups))), None, "colours")


def _mixed(rng: np.random.Generator, background: str) -> Composition:
    """Several objects of one kind and one of another, three or four in total."""
    first = _thing(rng)
    groups = (replace(first, count=int(rng.integers(2, MAX_COUNT))), _thing(rng, first))
    return Composition(groups if rng.random() < 0.5 else groups[::-1], None, "mixed")


def _size(rng: np.random.Generator, background: str) -> Composition:
    """One object that is tiny or huge, or one of each."""
    first = replace(_thing(rng), size=_pick(rng, SIZES))
    if rng.random() < 0.5:
        return Composition((first,), None, "size")
    other = SIZES[1 - SIZES.index(str(first.size))]
    return Composition((first, replace(_thing(rng, first), size=other)), None, "size")


_DRAWERS: dict[str, Callable[[np.random.Generator, str], Composition]] = {
    "count": _count,
    "relation": _relation,
    "colours": _colours,
    "mixed": _mixed,
    "size": _size,
}

# -- where it stands -----------------------------------------------------------------------------------------

#: Centre x and feet y of up to four objects that do not overlap, in two rows.
_ROWS: dict[int, tuple[tuple[tuple[float, float], ...], ...]] = {
    1: (((0.5, 0.88),),),
    2: (((0.27, 0.86), (0.73, 0.86)),),
    3: (((0.27, 0.54), (0.73, 0.54), (0.50, 0.94)), ((0.50, 0.54), (0.27, 0.94), (0.73, 0.94))),
    4: (((0.27, 0.54), (0.73, 0.54), (0.27, 0.94), (0.73, 0.94)),),
}
_SCALES = {1: (0.46, 0.58), 2: (0.38, 0.46), 3: (0.34, 0.40), 4: (0.34, 0.38)}

Place = tuple[float, float, float]


def _places(composition: Composition, rng: np.random.Generator) -> list[Place]:
    """Centre x, feet y and scale of each member, in the caption's order."""
    relation = composition.relation
    if relation in ("right of", "below", "in front of"):
        second, first = _related(RELATIONS[RELATIONS.index(relation) - 1], rng)
        return [first, second]
    if relation is not None:
        return list(_related(relation, rng))
    sizes = [g.size for g in composition.members]
    if any(sizes):
        return _sized(sizes, rng)
    count = len(sizes)
    rows = _ROWS[count][rng.integers(len(_ROWS[count]))]
    low, high = _SCALES[count]
    places = []
    for i in rng.permutation(count):
        x, y = rows[i]
        x, y = x + rng.uniform(-_JITTER, _JITTER), y + rng.uniform(-_JITTER, _JITTER)
        places.append((x, y, rng.uniform(low, high)))
    return places


def _related(relation: str, rng: np.random.Generator) -> tuple[Place, Place]:
    """Places of two objects of which the first is left of, above or behind the second."""

    def near(value: float, spread: float = _JITTER) -> float:
        return float(value + rng.uniform(-spread, spread))

    if relation == "left of":
        scales = rng.uniform(0.38, 0.46, 2)
        return (near(0.27), near(0.84, 0.07), scales[0]), (near(0.73), near(0.84, 0.07), scales[1])
    if relation == "above":
        scales = rng.uniform(0.37, 0.42, 2)
        return (near(0.5, 0.12), near(0.46), scales[0]), (near(0.5, 0.12), near(0.94), scales[1])
    x, side = near(0.5, 0.06), rng.choice([-1, 1]) * rng.uniform(0.14, 0.20)
    behind = (x - side / 2, near(0.78, 0.02), rng.uniform(0.48, 0.56))
    return behind, (x + side / 2, near(0.95, 0.02), rng.uniform(0.40, 0.46))


def _sized(sizes: Sequence[str | None], rng: np.random.Generator) -> list[Place]:
    """One object, or a tiny one next to a huge one."""
    if len(sizes) == 1:
        x, y = rng.uniform(0.34, 0.66), rng.uniform(0.74, 0.94)
        if sizes[0] == "tiny":
            return [(x, y, rng.uniform(0.23, 0.29))]
        return [(0.5 + (x - 0.5) * 0.4, rng.uniform(0.93, 0.98), rng.uniform(0.74, 0.86))]
    left = rng.random() < 0.5
    tiny = (rng.uniform(0.14, 0.18), rng.uniform(0.70, 0.94), rng.uniform(0.23, 0.28))
    huge = (rng.uniform(0.62, 0.66), rng.uniform(0.92, 0.97), rng.uniform(0.65, 0.71))
    places = {"tiny": tiny, "huge": huge}
    found = [places[str(size)] for size in sizes]
    return found if left else [(1 - x, y, scale) for x, y, scale in found]


# -- rendering -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class VisibleObject:
    """One object in a frame.

    Attributes:
        actor: what it is.
        x, y, scale: centre and side of its square, in frame sizes.
        box: left, top, right, bottom of the whole object, including covered parts, in pixels; right and
            bottom exclusive.
        mask: (size, size) in [0, 1], its visible part.
        covered: share of it that other objects occlude, in [0, 1].
    """

    actor: Actor
    x: float
    y: float
    scale: float
    box: tuple[int, int, int, int]
    mask: NDArray[np.float32]
    covered: float


def render_objects(scene: Scene, t: float, size: int = 64) -> tuple[NDArray[np.uint8], list[VisibleObject]]:
    """Draw one frame: RGB uint8 (size, size, 3), and every actor's exact place, in drawing order."""
    frame, layers = scenes.render_layers(scene, t, size)
    found, open_ = [], np.ones((size, size), np.float32)
    for actor, alpha in zip(reversed(scene.actors), reversed(layers), strict=True):
        x, y, scale, _ = scenes.pose(scene, actor, t)
        rows, columns = np.flatnonzero((alpha > 0.5).any(1)), np.flatnonzero((alpha > 0.5).any(0))
        box = (0, 0, 0, 0)
        if len(rows):
            box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
        mask = alpha * open_
        covered = 1 - float(mask.sum()) / max(float(alpha.sum()), 1e-6)
        found.append(VisibleObject(actor, x, y - scale / 2, scale, box, mask, covered))
        open_ = open_ * (1 - alpha)
    return frame, found[::-1]
