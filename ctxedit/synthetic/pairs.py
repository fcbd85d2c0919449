"""Pairs of a clip and a target, for the comparison of presets and the check of edits.

The clip's combination is held out from the training of the built-in models. The target differs in one
attribute and may have been trained on: only 123 of the 486 held-out combinations have a held-out neighbour of
every kind. The target scene can be rendered, which gives the ideal edit.
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
#: Samples before giving up on finding enough held-out combinations.
_DRAWS = 3000


@dataclass(frozen=True)
class Pair:
    """A clip and a target.

    Attributes:
        clip: name of the clip, which several pairs share; a file name without suffix.
        kind: the attribute that changes: ``object``, ``background``, ``style`` or ``colour``.
        source, target: the scenes, which differ in that attribute only.
        source_prompt, target_prompt: their canonical captions.
    """

    clip: str
    kind: str
    source: Scene
    target: Scene
    source_prompt: str
    target_prompt: str


def draw_pairs(per_kind: int, seed: int = 0, colours: int = 0) -> list[Pair]:
    """Sample ``per_kind`` clips of one object, each with a target of every kind in ``KINDS``.

    Args:
        per_kind: clips, and so pairs of each kind.
        seed: the pairs are a function of it and of the other arguments.
        colours: number of clips, at most ``per_kind``, with a coloured object and an additional target of
            another colour. They come first.

    Returns:
        ``3 · per_kind + colours`` pairs, grouped by clip. All clips have different combinations.

    Raises:
        ValueError: there are not enough held-out combinations.
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
