"""Compositions as training samples among the easy scenes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ctxedit.synthetic import composition_changes, compositions, scenes
from ctxedit.synthetic.composition_captions import caption, word
from ctxedit.synthetic.compositions import Composed, Composition
from ctxedit.synthetic.tensors import to_tensor


def draw(
    seed: int, index: int, share: float, test: bool = False
) -> tuple[Composed, np.random.Generator] | None:
    """The composition of sample ``index`` and the generator for the rest of it; None for an easy scene."""
    if not share:
        return None
    rng = np.random.default_rng((seed, index, int(test), 13))
    if rng.random() >= share:
        return None
    return compositions.draw(rng, test=test), rng


def item(composed: Composed, rng: np.random.Generator, size: int, wrong: bool = False) -> dict[str, Any]:
    """``image``, ``mask`` and ``caption``; with ``wrong`` also a caption with one wrong detail."""
    frame, mask = scenes.render_frame(composed.scene, float(rng.random()), size)
    sample: dict[str, Any] = {"image": to_tensor(frame), "mask": torch.from_numpy(mask)}
    changed = _wrong(composed.composition, rng) if wrong else None
    # The same random state for both captions, so that they differ in the change only.
    state = rng.bit_generator.state
    sample["caption"] = caption(composed, rng)
    if changed is not None:
        rng.bit_generator.state = state
        scene = composed.scene
        sample["wrong"] = word(changed, scene.background, scene.style, rng)
    return sample


def _wrong(composition: Composition, rng: np.random.Generator) -> Composition:
    """A composition that differs in one detail; for two groups in two colours, often with the colours
    swapped."""
    first, last = composition.groups[0], composition.groups[-1]
    differ = first.colour and last.colour and first.colour != last.colour and first.name != last.name
    if differ and rng.random() < 0.5:
        ends = replace(first, colour=last.colour), replace(last, colour=first.colour)
        return replace(composition, groups=(ends[0], *composition.groups[1:-1], ends[1]))
    parts = composition_changes.parts_of(composition)
    return composition_changes.change(composition, rng, parts[rng.integers(len(parts))])[0]
