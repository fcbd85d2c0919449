"""The drawn clips in ``samples/``, with their prompts and targets.

``python -m ctxedit.synthetic.samples [FOLDER]`` renders them again.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import tomli_w

from ctxedit.media.write import write_clip
from ctxedit.synthetic import scenes
from ctxedit.synthetic.scenes import Actor, Scene
from ctxedit.synthetic.vocabulary import BY_NAME, GROUNDLESS

SIZE, FRAMES, FPS = 128, 24, Fraction(8)


@dataclass(frozen=True)
class Sample:
    """A clip with target prompts by kind of edit."""

    name: str
    scene: Scene
    targets: dict[str, str]


def _scene(
    name: str, background: str, motion: str, style: str = "plain", colour: str | None = None, seed: int = 0
) -> Scene:
    """One object, placed as in training scenes; ``seed`` determines the background's variation."""
    rng = np.random.default_rng(seed)
    free = background in GROUNDLESS or BY_NAME[name].floats
    actor = Actor(name, colour, 0.5, 0.78 if free else 0.86, 0.56)
    return Scene((actor,), background, style, motion, -1, 1.0, tuple(float(x) for x in rng.random(8)))


SAMPLES: tuple[Sample, ...] = (
    Sample(
        "tiger-beach",
        _scene("tiger", "beach", "walk", seed=1),
        {
            "object": "a panda walking on the beach",
            "background": "a tiger walking in the snow",
            "style": "a tiger walking on the beach, watercolor style",
        },
    ),
    Sample(
        "car-desert",
        _scene("car", "desert", "walk", colour="red", seed=2),
        {
            "object": "a red bus driving in the desert",
            "background": "a red car driving in the city at night",
            "colour": "a blue car driving in the desert",
            "style": "a red car driving in the desert, pixel art",
        },
    ),
    Sample(
        "rabbit-meadow",
        _scene("rabbit", "meadow", "bounce", seed=3),
        {"object": "a cat walking in a meadow", "background": "a rabbit walking in the forest"},
    ),
    Sample(
        "penguin-snow",
        _scene("penguin", "snow", "turn", seed=4),
        {"object": "a robot walking in the snow", "style": "a penguin walking in the snow, pencil sketch"},
    ),
    Sample(
        "balloon-city",
        _scene("balloon", "city", "grow", colour="yellow", seed=5),
        {
            "background": "a yellow balloon floating in a meadow",
            "colour": "a purple balloon floating in the city at night",
        },
    ),
    Sample(
        "rocket-space",
        _scene("rocket", "space", "zoom", seed=6),
        {"object": "a turtle flying in space", "background": "a rocket flying under the sea"},
    ),
    Sample(
        "dog-forest",
        _scene("dog", "forest", "pan", seed=7),
        {"object": "a lion walking in the forest", "background": "a dog walking in the desert"},
    ),
    Sample(
        "boat-sea",
        _scene("boat", "sea", "bounce", style="watercolor", seed=8),
        {"object": "a duck sailing under the sea, watercolor style"},
    ),
    Sample(
        "elephant-watercolor",
        _scene("elephant", "meadow", "walk", style="watercolor", seed=9),
        {"background": "an elephant walking on the beach, watercolor style"},
    ),
    Sample(
        "frog-pixel",
        _scene("frog", "beach", "bounce", style="pixel art", seed=10),
        {"object": "a pumpkin walking on the beach, pixel art"},
    ),
    Sample(
        "dancer-room",
        _scene("dancer", "room", "turn", seed=11),
        {
            "object": "a ghost dancing in a living room",
            "background": "a dancer dancing near a volcano",
            "style": "a dancer dancing in a living room, neon lights",
        },
    ),
    Sample(
        "helicopter-mountains",
        _scene("helicopter", "mountains", "pan", colour="red", seed=12),
        {
            "background": "a red helicopter flying above the clouds",
            "colour": "a blue helicopter flying in the mountains",
            "style": "a red helicopter flying in the mountains, sepia",
        },
    ),
)


def write(folder: Path) -> None:
    """Render every sample as MP4, and write ``prompts.toml`` with captions and targets."""
    table = {}
    for sample in SAMPLES:
        frames, _ = scenes.render(sample.scene, FRAMES, SIZE)
        write_clip(folder / f"{sample.name}.mp4", frames, FPS, overwrite=True)
        table[sample.name] = {"prompt": scenes.caption(sample.scene), "targets": sample.targets}
    (folder / "prompts.toml").write_text(tomli_w.dumps(table))


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("samples"))
