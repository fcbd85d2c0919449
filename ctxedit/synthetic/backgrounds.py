"""Procedural backgrounds as functions of world coordinates, so that the camera can pan and zoom.

Each takes the horizontal and vertical positions ``u, v`` (H, W), in frame heights, where ``v`` runs from 0
(top) to 1 (bottom) for a camera at rest, and a random vector ``p`` in [0, 1]⁸ that varies the background. It
returns RGB (H, W, 3) in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Positions and colours; float32, or float64 where numpy promotes.
Array = NDArray[np.floating[Any]]


def _mix(a: Array | tuple[float, ...], b: Array | tuple[float, ...], w: Array) -> Array:
    w = np.clip(w, 0, 1)[..., None]
    return (np.asarray(a, np.float32) * (1 - w) + np.asarray(b, np.float32) * w).astype(np.float32)


def _edge(v: Array, at: Array | float, soft: float = 0.02) -> Array:
    """0 above the line ``at`` and 1 below it, with a transition of width ``soft``."""
    below: Array = np.clip((v - at) / soft + 0.5, 0, 1)
    return below


def _hash(n: Array, salt: float) -> Array:
    """A deterministic pseudo-random number in [0, 1) for each integer."""
    x = np.sin(n * 12.9898 + salt * 78.233) * 43758.5453
    fraction: Array = x - np.floor(x)
    return fraction


def _disc(u: Array, v: Array, x: float, y: float, r: float) -> Array:
    inside: Array = np.clip((r - np.hypot(u - x, v - y)) / 0.02 + 0.5, 0, 1)
    return inside


def _beach(u: Array, v: Array, p: Array) -> Array:
    sky = _mix((0.45, 0.75, 0.98), (0.80, 0.93, 1.0), v * 2)
    horizon = 0.36 + 0.08 * p[0]
    sea = _mix((0.10, 0.45, 0.75), (0.25, 0.70, 0.85), (v - horizon) * 4)
    shore = 0.58 + 0.06 * p[1] + 0.02 * np.sin(u * 7 + 6 * p[2])
    out = _mix(sky, sea, _edge(v, horizon))
    out = _mix(out, (0.97, 0.97, 0.95), _edge(v, shore - 0.03))
    return _mix(out, _mix((0.93, 0.83, 0.60), (0.85, 0.72, 0.48), v * 2 - 1), _edge(v, shore))


def _forest(u: Array, v: Array, p: Array) -> Array:
    out = _mix((0.16, 0.38, 0.20), (0.30, 0.52, 0.28), v * 1.4)
    cell = u * 3.2 + 5 * p[0]
    n = np.floor(cell)
    trunk = np.abs(cell - n - 0.5 - 0.3 * (_hash(n, p[1]) - 0.5)) < 0.09 + 0.08 * _hash(n, p[2])
    out = _mix(out, (0.33, 0.22, 0.14), trunk * _edge(-v, -0.74))
    leaves = 0.22 + 0.06 * np.sin(u * 9 + 6 * p[3]) + 0.04 * np.sin(u * 19 + 6 * p[4])
    out = _mix(out, (0.08, 0.30, 0.12), _edge(-v, -leaves, 0.03))
    return _mix(out, (0.20, 0.30, 0.13), _edge(v, 0.72 + 0.02 * np.sin(u * 6 + 6 * p[5]), 0.04))


def _snow(u: Array, v: Array, p: Array) -> Array:
    sky = _mix((0.62, 0.74, 0.88), (0.86, 0.91, 0.97), v * 2)
    far = 0.38 + 0.10 * np.sin(u * 2.6 + 6 * p[0]) + 0.05 * p[1]
    near = 0.58 + 0.05 * np.sin(u * 3.6 + 6 * p[2])
    out = _mix(sky, (0.76, 0.83, 0.92), _edge(v, far))
    return _mix(out, _mix((0.97, 0.98, 1.0), (0.86, 0.90, 0.97), v * 2 - 1), _edge(v, near))


def _desert(u: Array, v: Array, p: Array) -> Array:
    sky = _mix((0.98, 0.72, 0.42), (1.0, 0.88, 0.62), v * 2)
    out = _mix(sky, (1.0, 0.97, 0.75), _disc(u, v, 0.2 + 0.6 * p[0], 0.2, 0.09))
    far = 0.48 + 0.07 * np.sin(u * 3 + 6 * p[1])
    near = 0.66 + 0.05 * np.sin(u * 4.2 + 6 * p[2])
    out = _mix(out, (0.85, 0.56, 0.28), _edge(v, far))
    return _mix(out, _mix((0.93, 0.68, 0.36), (0.80, 0.50, 0.22), v * 2 - 1), _edge(v, near))


def _city(u: Array, v: Array, p: Array) -> Array:
    out = _mix((0.03, 0.04, 0.14), (0.14, 0.12, 0.32), v * 1.5)
    cell = u * 4.0 + 5 * p[0]
    n = np.floor(cell)
    roof = 0.20 + 0.34 * _hash(n, p[1])
    tower = _edge(v, roof, 0.015)
    shade = 0.7 + 0.6 * _hash(n, p[2])
    out = _mix(out, np.stack([0.13 * shade, 0.14 * shade, 0.22 * shade], -1).astype(np.float32), tower)
    x, y = (cell - n) * 4, v * 14
    lit = (_hash(np.floor(x) + 7 * n + 31 * np.floor(y), p[3]) > 0.45) & (x % 1 > 0.3) & (y % 1 > 0.4)
    lit &= (x > 0.6) & (v > roof + 0.04)
    out = _mix(out, (0.98, 0.83, 0.42), lit.astype(np.float32) * 0.85)
    return _mix(out, (0.17, 0.17, 0.20), _edge(v, 0.74))


def _meadow(u: Array, v: Array, p: Array) -> Array:
    sky = _mix((0.42, 0.70, 0.98), (0.78, 0.90, 1.0), v * 2)
    for i in range(2):
        sky = _mix(
            sky, (1.0, 1.0, 1.0), 0.9 * _disc(u, (v - 0.16) * 2 + 0.16, p[i], 0.1 + 0.2 * p[i + 2], 0.14)
        )
    far = 0.48 + 0.05 * np.sin(u * 3 + 6 * p[4])
    out = _mix(sky, (0.45, 0.72, 0.32), _edge(v, far))
    near = 0.64 + 0.03 * np.sin(u * 5 + 6 * p[5])
    return _mix(out, _mix((0.42, 0.76, 0.26), (0.26, 0.58, 0.18), v * 2 - 1), _edge(v, near))


def _sea(u: Array, v: Array, p: Array) -> Array:
    out = _mix((0.20, 0.68, 0.82), (0.02, 0.20, 0.45), v * 1.2)
    ray = np.clip(np.sin((u + 0.35 * v) * (7 + 3 * p[0]) + 6 * p[1]), 0, 1) * np.clip(1 - v * 1.2, 0, 1)
    out = _mix(out, (0.70, 0.95, 0.98), 0.45 * ray)
    floor = 0.84 + 0.03 * np.sin(u * 6 + 6 * p[2])
    return _mix(out, (0.45, 0.50, 0.40), _edge(v, floor, 0.04))


def _space(u: Array, v: Array, p: Array) -> Array:
    out = _mix((0.02, 0.01, 0.07), (0.12, 0.04, 0.22), v)
    cu, cv = u * 7 + 3 * p[0], v * 7
    n = np.floor(cu) + 53 * np.floor(cv)
    x, y = 0.2 + 0.6 * _hash(n, p[1]), 0.2 + 0.6 * _hash(n, p[2])
    near = np.hypot(cu - np.floor(cu) - x, cv - np.floor(cv) - y)
    star = np.clip(1.4 - near / 0.13, 0, 1) * (_hash(n, p[3]) > 0.55)
    out = _mix(out, (1.0, 1.0, 0.92), star)
    px, py, r = 0.15 + 0.7 * p[4], 0.15 + 0.15 * p[5], 0.10 + 0.06 * p[6]
    planet = _mix((0.85, 0.55, 0.35), (0.45, 0.20, 0.30), (u - px) / r * 0.5 + 0.5)
    return _mix(out, planet, _disc(u, v, px, py, r))


def _mountains(u: Array, v: Array, p: Array) -> Array:
    out = _mix((0.30, 0.52, 0.86), (0.70, 0.84, 0.97), v * 2)
    for depth, (rock, scale) in enumerate((((0.52, 0.56, 0.70), 1.7), ((0.36, 0.38, 0.48), 2.3))):
        # Peaks are the tips of a triangle wave, covered by snow near the tip.
        cell = u * scale + 3 * p[depth]
        n = np.floor(cell)
        peak = 0.16 + 0.12 * depth + 0.14 * _hash(n, p[2 + depth])
        slope = np.abs(cell - n - 0.5) * (1.0 / scale) * 1.5
        out = _mix(out, rock, _edge(v, peak + slope))
        snow = peak + 0.10 + 0.03 * np.sin(u * 40)
        out = _mix(out, (0.96, 0.97, 1.0), _edge(v, peak + slope) * _edge(-v, -snow))
    ground = 0.66 + 0.03 * np.sin(u * 4 + 6 * p[4])
    return _mix(out, _mix((0.40, 0.50, 0.34), (0.26, 0.36, 0.24), v * 2 - 1), _edge(v, ground))


def _room(u: Array, v: Array, p: Array) -> Array:
    wall = np.array([0.90, 0.80 - 0.10 * p[0], 0.66 + 0.12 * p[1]], np.float32)
    stripe = (np.abs((u * 6) % 1 - 0.5) < 0.08).astype(np.float32)
    out = _mix(np.broadcast_to(wall, (*u.shape, 3)), wall * 0.86, stripe)
    x, y = 0.22 + 0.56 * p[2], 0.24
    across, down = np.abs(u - x), np.abs(v - y)
    out = _mix(out, (0.55, 0.36, 0.22), ((across < 0.17) & (down < 0.15)).astype(np.float32))
    pane = (across < 0.145) & (down < 0.125) & (across > 0.012) & (down > 0.012)
    out = _mix(out, (0.62, 0.82, 0.96), pane.astype(np.float32))
    out = _mix(out, (0.98, 0.96, 0.92), _edge(v, 0.62))
    boards = _mix((0.66, 0.42, 0.24), (0.52, 0.31, 0.17), v * 3 - 2)
    seams = (np.abs(((u - 0.5) / (v + 0.15) * 5 + 3 * p[3]) % 1 - 0.5) < 0.06).astype(np.float32)
    return _mix(out, _mix(boards, (0.42, 0.25, 0.14), seams), _edge(v, 0.65))


def _sky(u: Array, v: Array, p: Array) -> Array:
    out = _mix((0.20, 0.48, 0.92), (0.72, 0.87, 1.0), v * 1.2)
    out = _mix(out, (1.0, 0.95, 0.70), _disc(u, v, 0.15 + 0.7 * p[0], 0.16, 0.08))
    for i in range(3):
        y = 0.30 + 0.16 * i
        out = _mix(out, (0.97, 0.98, 1.0), 0.85 * _disc(u, (v - y) * 2.6 + y, p[1 + i] * 1.2 - 0.1, y, 0.17))
    puff = 0.78 + 0.05 * np.abs(np.sin(u * 8 + 6 * p[4])) + 0.03 * np.abs(np.sin(u * 17 + 6 * p[5]))
    return _mix(out, _mix((1.0, 1.0, 1.0), (0.80, 0.87, 0.96), v * 5 - 4), _edge(v, puff, 0.03))


def _volcano(u: Array, v: Array, p: Array) -> Array:
    out = _mix((0.22, 0.08, 0.10), (0.85, 0.34, 0.14), v * 1.7)
    x = 0.25 + 0.5 * p[0]
    cone = 0.24 + 0.03 * p[1] + np.maximum(np.abs(u - x) - 0.09, 0) * 0.95
    out = _mix(out, (0.62, 0.58, 0.56), 0.7 * _disc(u, (v - 0.10) * 1.6 + 0.10, x + 0.06, 0.10, 0.15))
    out = _mix(out, (0.20, 0.13, 0.13), _edge(v, cone))
    flow = np.abs(u - x - 0.05 * np.sin(v * 16 + 6 * p[2])) < 0.015 + 0.05 * (v - 0.2)
    out = _mix(out, (1.0, 0.55, 0.10), flow * _edge(v, cone))
    ground = 0.68 + 0.02 * np.sin(u * 6 + 6 * p[3])
    out = _mix(out, (0.12, 0.10, 0.11), _edge(v, ground))
    crack = np.abs(v - 0.84 - 0.05 * np.sin(u * 9 + 6 * p[4]) - 0.02 * np.sin(u * 23 + 6 * p[5])) < 0.014
    return _mix(out, (1.0, 0.42, 0.08), crack.astype(np.float32))


PAINTERS: dict[str, Callable[[Array, Array, Array], Array]] = {
    "beach": _beach,
    "forest": _forest,
    "snow": _snow,
    "desert": _desert,
    "city": _city,
    "meadow": _meadow,
    "sea": _sea,
    "space": _space,
    "mountains": _mountains,
    "room": _room,
    "sky": _sky,
    "volcano": _volcano,
}


def paint(name: str, variation: Array, size: int, *, pan: float = 0.0, zoom: float = 1.0) -> Array:
    """Render a background.

    Args:
        name: a key of :data:`PAINTERS`.
        variation: (8,) in [0, 1], selects one of many variants of the background.
        size: pixels, the frame is square.
        pan: how far the camera has moved to the right, in frame heights.
        zoom: 1 at rest, larger values show less of the scene.

    Returns:
        RGB (size, size, 3) float32 in [0, 1].
    """
    line = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    u = np.broadcast_to(line[None] / zoom + 0.5 + pan, (size, size))
    v = np.broadcast_to(line[:, None] / zoom + 0.5, (size, size))
    return PAINTERS[name](u, v, variation)
