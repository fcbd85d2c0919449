"""Training data of the composition judge: drawn frames with the exact position of every object."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from ctxedit.synthetic import compositions, scenes
from ctxedit.synthetic.composition_judge import GRID, HUES, NAMES, PLACES, SIDE
from ctxedit.synthetic.compositions import COVERED, VisibleObject
from ctxedit.synthetic.scenes import Actor, Scene
from ctxedit.synthetic.tensors import to_tensor
from ctxedit.synthetic.vocabulary import BY_NAME, COLOURS, GREY_STYLES, THINGS
from ctxedit.training.augmentation import degrade

#: Maximum number of objects in a frame of scattered objects.
MOST = 6
_EASY, _SCATTERED = 0.15, 0.25
#: Share of overlapping pairs drawn in the wrong order, so that occlusion is informative beyond height.
_REVERSED = 0.15


class Frames(Dataset[dict[str, Any]]):
    """Compositions of the training combinations; some easy scenes, and some of objects scattered anywhere.

    A denoiser's output follows no fixed layout: scattered scenes cover more objects than any caption names,
    none at all, and overlaps of every kind. Frames are blurred and noised to resemble decoded images.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __len__(self) -> int:
        return 1 << 40

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng((self.seed, index, 11))
        scene = _scene(rng)
        frame, visible = compositions.render_objects(scene, float(rng.random()), SIDE)
        return {"image": degrade(to_tensor(frame), rng, 0.08), **targets(visible, scene)}


def _scene(rng: np.random.Generator) -> Scene:
    chance = rng.random()
    if chance < _EASY:
        return scenes.draw_scene(rng)
    if chance < _EASY + _SCATTERED:
        return _scatter(rng)
    composed = compositions.draw(rng)
    scene = composed.scene
    if composed.composition.relation in ("behind", "in front of") and rng.random() < _REVERSED:
        scene = replace(scene, actors=scene.actors[::-1])
    return scene


def _scatter(rng: np.random.Generator) -> Scene:
    """Up to ``MOST`` objects anywhere within the frame, no two centres closer than three cells."""
    actors: list[Actor] = []
    for _ in range(int(rng.integers(0, MOST + 1))):
        thing = THINGS[rng.integers(len(THINGS))]
        if actors and rng.random() < 0.3:
            thing = BY_NAME[actors[-1].name]
        colour = list(COLOURS)[rng.integers(len(COLOURS))] if thing.colourable else None
        scale = rng.uniform(0.22, 0.5) if len(actors) or rng.random() < 0.7 else rng.uniform(0.5, 0.86)
        half = scale / 2
        x, y = rng.uniform(half * 0.9, 1 - half * 0.9), rng.uniform(half * 0.9, 1 - half * 0.9) + half
        middles = [(a.x, a.y - a.scale / 2) for a in actors]
        if all(np.hypot(x - u, y - half - v) > 3 / GRID for u, v in middles):
            actors.append(Actor(thing.name, colour, float(x), float(y), float(scale)))
    still = compositions.draw(rng).scene  # its background, style and motion
    return replace(still, actors=tuple(actors))


def targets(visible: list[VisibleObject], scene: Scene) -> dict[str, Any]:
    """Targets of up to ``MOST`` objects: those whose centre is in the frame.

    Returns:
        ``name``, ``colour`` (MOST,) long, ``place`` (MOST, 3): x, y and side in frame sizes; ``covered`` and
        ``valid`` (MOST,) float; ``background`` a number.
    """
    names, colours = torch.zeros(MOST, dtype=torch.long), torch.zeros(MOST, dtype=torch.long)
    place, covered, valid = torch.full((MOST, 3), 0.5), torch.zeros(MOST), torch.zeros(MOST)
    grey = scene.style in GREY_STYLES
    inside = [s for s in visible if 0 < s.x < 1 and 0 < s.y < 1]
    for i, one in enumerate(inside[:MOST]):
        names[i] = NAMES.index(one.actor.name)
        colours[i] = HUES.index("none" if grey else one.actor.colour or "none")
        place[i] = torch.tensor([one.x, one.y, one.scale])
        covered[i], valid[i] = float(one.covered > COVERED), 1.0
    background = PLACES.index(scene.background)
    return {"name": names, "colour": colours, "place": place, "covered": covered, "valid": valid,
            "background": background}  # fmt: skip
