"""Scenes: what a clip shows and how it moves, sampled from a seed; rendering to frames and masks."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ctxedit.synthetic import backgrounds, captions, sprites, styles
from ctxedit.synthetic.vocabulary import BACKGROUNDS, BY_NAME, COLOURS, GROUNDLESS, STYLES, THINGS

MOTIONS = ("walk", "bounce", "grow", "turn", "pan", "zoom")
_HELD_OUT_SHARE = 0.08


@dataclass(frozen=True)
class Actor:
    """An object in a scene: centre ``x``, feet ``y`` and height ``scale``, relative to the frame's side."""

    name: str
    colour: str | None
    x: float
    y: float
    scale: float


@dataclass(frozen=True)
class Scene:
    """The complete content of a clip. ``replace(scene, background="snow")`` renders to its ideal edit."""

    actors: tuple[Actor, ...]
    background: str
    style: str
    motion: str
    direction: int
    speed: float
    variation: tuple[float, ...] = field(repr=False)

    @property
    def key(self) -> tuple[str, str | None, str, str]:
        """The combination (object, colour, background, style) that may be held out of training."""
        first = self.actors[0]
        return first.name, first.colour, self.background, self.style


def held_out(scene: Scene) -> bool:
    """Whether the scene's combination is reserved for testing. About 8 % are, and this must never change."""
    return zlib.crc32(repr(scene.key).encode()) % 1000 < 1000 * _HELD_OUT_SHARE


def draw_scene(rng: np.random.Generator, *, test: bool = False, pairs: float = 0.08) -> Scene:
    """Sample a scene from the training combinations, or with ``test`` from the held-out ones.

    Args:
        rng: the scene is a function of its state.
        test: which side of :func:`held_out` to draw from.
        pairs: share of scenes with two objects.
    """
    while True:
        scene = _draw(rng, pairs)
        if held_out(scene) == test:
            return scene


def _draw(rng: np.random.Generator, pairs: float) -> Scene:
    background = list(BACKGROUNDS)[rng.integers(len(BACKGROUNDS))]
    style = "plain" if rng.random() < 0.5 else list(STYLES)[1 + rng.integers(len(STYLES) - 1)]
    count = 2 if rng.random() < pairs else 1
    names = rng.choice(len(THINGS), count, replace=False)
    actors = []
    for i, n in enumerate(names):
        thing = THINGS[n]
        colour = list(COLOURS)[rng.integers(len(COLOURS))] if thing.colourable else None
        free = background in GROUNDLESS or thing.floats
        low, high = (0.62, 0.92) if free else (0.76, 0.94)
        if count == 1:
            x, scale = rng.uniform(0.34, 0.66), rng.uniform(0.46, 0.66)
        else:
            x, scale = (0.27, 0.73)[i] + rng.uniform(-0.04, 0.04), rng.uniform(0.38, 0.48)
        actors.append(Actor(thing.name, colour, float(x), float(rng.uniform(low, high)), float(scale)))
    return Scene(
        tuple(actors),
        background,
        style,
        MOTIONS[rng.integers(len(MOTIONS))],
        int(rng.choice([-1, 1])),
        float(rng.uniform(0.6, 1.2)),
        tuple(float(x) for x in rng.random(8)),
    )


def pose(scene: Scene, actor: Actor, t: float) -> tuple[float, float, float, float]:
    """Centre x, feet y, scale and tilt in radians of an actor at time ``t`` in [0, 1]."""
    x, y, scale, tilt = actor.x, actor.y, actor.scale, 0.0
    s, centred = scene.speed, t - 0.5
    if scene.motion == "walk":
        x += 0.28 * s * centred * scene.direction
        y -= 0.015 * abs(math.sin(4 * math.pi * t))
    elif scene.motion == "bounce":
        y -= 0.14 * s * abs(math.sin(2 * math.pi * t))
    elif scene.motion == "grow":
        scale *= 1 + 0.32 * s * centred * scene.direction
    elif scene.motion == "turn":
        tilt = 0.30 * s * math.sin(2 * math.pi * t) * scene.direction
    elif scene.motion == "pan":
        x -= 0.06 * s * centred * scene.direction
    elif scene.motion == "zoom":
        scale *= 1 + 0.12 * s * centred * scene.direction
    return x, y, scale, tilt


def render_frame(scene: Scene, t: float, size: int = 64) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Render one frame.

    Args:
        scene: what to render.
        t: time in [0, 1].
        size: side in pixels.

    Returns:
        RGB uint8 (size, size, 3) and the objects' mask float32 (size, size) in [0, 1].
    """
    image, layers = render_layers(scene, t, size)
    mask = np.zeros((size, size), np.float32)
    for alpha in layers:
        mask = np.maximum(mask, alpha)
    return image, mask


def render_layers(
    scene: Scene, t: float, size: int = 64
) -> tuple[NDArray[np.uint8], list[NDArray[np.float32]]]:
    """Draw one frame like :func:`render_frame`, but keep the actors separate.

    Returns:
        RGB uint8 (size, size, 3), and for each actor its opacity (size, size) in [0, 1], in drawing order: a
        later actor covers an earlier one, which its opacity here does not show.
    """
    moves = scene.motion in ("pan", "walk")
    pan = (0.5 if scene.motion == "pan" else 0.0) * scene.speed * (t - 0.5) * scene.direction * moves
    zoom = 1.15 + 0.25 * scene.speed * (t - 0.5) * scene.direction if scene.motion == "zoom" else 1.0
    variation = np.asarray(scene.variation, np.float32)
    image = backgrounds.paint(scene.background, variation, size, pan=pan, zoom=zoom)
    layers = []
    for actor in scene.actors:
        layer = _place(actor, pose(scene, actor, t), size)
        alpha = layer[..., 3:]
        image = image * (1 - alpha) + layer[..., :3]
        layers.append(alpha[..., 0])
    image = styles.FILTERS[scene.style](image)
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8), layers


def _place(actor: Actor, pose: tuple[float, float, float, float], size: int) -> NDArray[np.float32]:
    """The actor alone on a transparent frame, premultiplied RGBA (size, size, 4), at sub-pixel position."""
    x, y, scale, tilt = pose
    side = max(8, round(actor.scale * size))
    # A sprite of nearly the final size: the bicubic warp below would alias if it had to shrink it.
    image = sprites.sprite(actor.name, actor.colour, side)
    k = side / (scale * size)
    cos, sin = math.cos(tilt) * k, math.sin(tilt) * k
    cx, cy = x * size, (y - scale / 2) * size
    matrix = (cos, sin, side / 2 - cos * cx - sin * cy, -sin, cos, side / 2 + sin * cx - cos * cy)
    placed = image.transform((size, size), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
    layer: NDArray[np.float32] = np.asarray(placed, np.float32) / np.float32(255)
    # Bicubic overshoots: no premultiplied colour may exceed its alpha.
    layer[..., :3] = np.minimum(layer[..., :3], layer[..., 3:])
    return layer


def render(scene: Scene, frames: int = 16, size: int = 64) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Render a clip: RGB uint8 (F, size, size, 3) and masks float32 (F, size, size)."""
    times = [0.5] if frames == 1 else [i / (frames - 1) for i in range(frames)]
    pictures, masks = zip(*(render_frame(scene, t, size) for t in times), strict=True)
    return np.stack(pictures), np.stack(masks)


def change(scene: Scene, rng: np.random.Generator, part: str) -> Scene:
    """The scene with another ``object``, ``background``, ``style`` or ``colour``, selected by ``part``.

    Raises ValueError for ``colour`` if the first object has none.
    """
    first = scene.actors[0]
    if part == "background":
        return replace(scene, background=_other(rng, list(BACKGROUNDS), scene.background))
    if part == "style":
        return replace(scene, style=_other(rng, list(STYLES), scene.style))
    if part == "colour":
        if first.colour is None:
            raise ValueError(f"{first.name} has no colour")
        actor = replace(first, colour=_other(rng, list(COLOURS), first.colour))
    else:
        taken = {a.name for a in scene.actors}
        name = _other(
            rng, [t.name for t in THINGS if t.name == first.name or t.name not in taken], first.name
        )
        colour = None
        if BY_NAME[name].colourable:
            colour = first.colour or list(COLOURS)[rng.integers(len(COLOURS))]
        actor = replace(first, name=name, colour=colour)
    return replace(scene, actors=(actor, *scene.actors[1:]))


def _other(rng: np.random.Generator, options: list[str], but: str) -> str:
    left = [o for o in options if o != but]
    return left[rng.integers(len(left))]


def caption(scene: Scene, rng: np.random.Generator | None = None) -> str:
    """A caption of the scene: the canonical one, or with ``rng`` a random wording."""
    actors = [(a.name, a.colour) for a in scene.actors]
    return captions.word(actors, scene.background, scene.style, rng)
