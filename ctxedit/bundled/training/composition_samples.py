"""Compositions as training samples, among the easy scenes: one sample is one or the other by its index."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ctxedit.bundled.world import composition_changes, compositions, scenes
from ctxedit.bundled.world.composition_captions import caption, word
from ctxedit.bundled.world.compositions import Composed, Composition


def composition_of(
    seed: int, index: int, share: float, test: bool = False
) -> tuple[Composed, np.random.Generator] | None:
    """The composition that sample ``index`` shows, and what draws the rest of it; None for an easy scene."""
    if not share:
        return None
    rng = np.random.default_rng((seed, index, int(test), 13))
    if rng.random() >= share:
        return None
    return compositions.draw(rng, test=test), rng


def composition_item(
    composed: Composed, rng: np.random.Generator, size: int, wrong: bool = False
) -> dict[str, Any]:
    """``image``, ``mask``, ``caption``; with ``wrong`` also a caption that is wrong in one thing."""
    frame, mask = scenes.render_frame(composed.scene, float(rng.random()), size)
    item: dict[str, Any] = {"image": to_tensor(frame), "mask": torch.from_numpy(mask)}
    changed = _wrong(composed.composition, rng) if wrong else None
    # The same draws for both wordings, so that nothing but the change tells them apart.
    state = rng.bit_generator.state
    item["caption"] = caption(composed, rng)
    if changed is not None:
        rng.bit_generator.state = state
        scene = composed.scene
        item["wrong"] = word(changed, scene.background, scene.style, rng)
    return item


def _wrong(composition: Composition, rng: np.random.Generator) -> Composition:
    """A composition that differs in one thing; of two groups in two colours often the colours' exchange."""
    first, last = composition.groups[0], composition.groups[-1]
    differ = first.colour and last.colour and first.colour != last.colour and first.name != last.name
    if differ and rng.random() < 0.5:
        ends = replace(first, colour=last.colour), replace(last, colour=first.colour)
        return replace(composition, groups=(ends[0], *composition.groups[1:-1], ends[1]))
    parts = composition_changes.parts_of(composition)
    return composition_changes.change(composition, rng, parts[rng.integers(len(parts))])[0]


def to_tensor(frame: np.ndarray) -> Tensor:
    """uint8 RGB (H, W, 3) to float32 (3, H, W) in [−1, 1]."""
    return torch.from_numpy(frame).permute(2, 0, 1).float() / 127.5 - 1
