"""Drawn scenes as a data set: sample ``i`` is a function of the seed and ``i`` alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ctxedit.bundled.world import scenes
from ctxedit.bundled.world.vocabulary import GREY_STYLES


class Scenes(Dataset[dict[str, Any]]):
    """Frames of drawn scenes with captions and the objects' masks; on request captions wrong in one word.

    Args:
        seed: of the whole set.
        size: side in pixels.
        wrong: also give ``wrong``, the caption of the scene with one part changed.
        test: draw held-out combinations.
    """

    def __init__(self, seed: int, size: int = 64, *, wrong: bool = False, test: bool = False) -> None:
        self.seed, self.size, self.wrong, self.test = seed, size, wrong, test

    def __len__(self) -> int:
        return 1 << 40

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng((self.seed, index, int(self.test)))
        scene = scenes.draw_scene(rng, test=self.test)
        frame, mask = scenes.render_frame(scene, float(rng.random()), self.size)
        item: dict[str, Any] = {
            "image": to_tensor(frame),
            "mask": torch.from_numpy(mask),
            "caption": scenes.caption(scene, rng),
        }
        if self.wrong:
            state = rng.bit_generator.state
            part = one_part(scene, rng)
            changed = scenes.change(scene, rng, part)
            # The same draws for both wordings, so that nothing but the part tells them apart.
            rng.bit_generator.state = state
            item["caption"] = scenes.caption(scene, rng)
            rng.bit_generator.state = state
            item["wrong"] = scenes.caption(changed, rng)
        return item


def one_part(scene: scenes.Scene, rng: np.random.Generator) -> str:
    """A part of the scene that its caption names: object, background, style or colour."""
    parts = ["object", "object", "background", "style"]
    if scene.actors[0].colour is not None and scene.style not in GREY_STYLES:
        parts.append("colour")
        parts.append("colour")
    return parts[rng.integers(len(parts))]


def to_tensor(frame: np.ndarray) -> Tensor:
    """uint8 RGB (H, W, 3) to float32 (3, H, W) in [−1, 1]."""
    return torch.from_numpy(frame).permute(2, 0, 1).float() / 127.5 - 1
