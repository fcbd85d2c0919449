"""Clip–target pairs of held-out combinations: what the comparison and the check of edits are measured on.

The clip's combination is one that no part of the built-in models was trained on; the target's is any other
in which one part differs (of 486 held-out combinations 123 have held-out neighbours of every kind). The
target is drawn as well: it is the ideal edit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ctxedit.synthetic import scenes
from ctxedit.synthetic.scenes import Scene
from ctxedit.synthetic.vocabulary import GREY_STYLES

#: Every clip has one target of each of these; ``colour`` needs an object that shows one.
KINDS = ("object", "background", "style")
COLOUR = "colour"
#: Draws before it is said that the held-out combinations do not suffice.
_DRAWS = 3000


@dataclass(frozen=True)
class Pair:
    """A clip and what to make of it.

    Attributes:
        clip: a name, the same for all pairs of one clip; a file name without suffix.
        kind: the part that changes: ``object``, ``background``, ``style`` or ``colour``.
        source, target: the scenes; they differ in that part alone.
        source_prompt, target_prompt: their canonical captions.
    """

    clip: str
    kind: str
    source: Scene
    target: Scene
    source_prompt: str
    target_prompt: str


def draw_pairs(per_kind: int, seed: int = 0, colours: int = 0) -> list[Pair]:
    """Draw pairs: ``per_kind`` clips of one object, each with a target of every kind in ``KINDS``.

    Args:
        per_kind: clips, and so pairs of each kind.
        seed: the pairs are a function of it and of the numbers asked for.
        colours: so many of the clips, the first ones, show a coloured object and have a target of another
            colour too; at most ``per_kind``.

    Returns:
        ``3 · per_kind + colours`` pairs, those of a clip after one another; no two clips of one combination.

    Raises:
        ValueError: more than the held-out combinations give.
    """
    if not 0 <= colours <= per_kind:
        raise ValueError(f"colours is 0 to {per_kind}, got {colours}")
    rng = np.random.default_rng((seed, 42))
    sources: list[Scene] = []
    for _ in range(_DRAWS):
        if len(sources) == per_kind:
            break
        scene = scenes.draw_scene(rng, test=True, pairs=0.0)
        wanted = len(sources) >= colours or _shows_colour(scene)
        if wanted and scene.key not in {s.key for s in sources}:
            sources.append(scene)
    else:
        raise ValueError(f"the held-out combinations give {len(sources)} clips, not {per_kind}")
    pairs: list[Pair] = []
    for number, source in enumerate(sources):
        name = f"{number + 1:02d}-{source.actors[0].name}-{source.background}"
        kinds = (*KINDS, COLOUR) if number < colours else KINDS
        pairs += [_pair(name, kind, source, scenes.change(source, rng, kind)) for kind in kinds]
    return pairs


def _shows_colour(scene: Scene) -> bool:
    return scene.actors[0].colour is not None and scene.style not in GREY_STYLES


def _pair(name: str, kind: str, source: Scene, target: Scene) -> Pair:
    return Pair(name, kind, source, target, scenes.caption(source), scenes.caption(target))
