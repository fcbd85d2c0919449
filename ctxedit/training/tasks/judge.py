"""The judge: a classifier of drawn frames, used to check the other models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from ctxedit.models.tensors import save_tensors
from ctxedit.synthetic import scenes
from ctxedit.synthetic.judge import ANSWERS, FILE, Judge, truth
from ctxedit.synthetic.tensors import to_tensor
from ctxedit.training.augmentation import degrade
from ctxedit.training.components import Components
from ctxedit.training.data import Data, DataConfig
from ctxedit.training.memory import build_network
from ctxedit.training.settings import Channels8
from ctxedit.training.tasks.base import Task, register, require_drawn


class LabelledFrames(Dataset[dict[str, Any]]):
    """One-object frames with their labels, randomly blurred and noised to resemble decoded images."""

    def __init__(self, seed: int, size: int = 64) -> None:
        self.seed, self.size = seed, size

    def __len__(self) -> int:
        return 1 << 40

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng((self.seed, index, 7))
        # Held-out combinations included: the judge is not itself tested for generalisation.
        scene = scenes.draw_scene(rng, pairs=0.0, test=bool(rng.random() < 0.08))
        image = to_tensor(scenes.render_frame(scene, float(rng.random()), self.size)[0])
        labels = truth(scene)
        return {
            "image": degrade(image, rng, 0.1),
            **{k: classes.index(labels[k]) for k, classes in ANSWERS.items()},
        }


@register("judge")
class JudgeTask(Task):
    """Sum of the cross-entropies of the four attributes.

    Raises:
        ConfigError: data other than drawn scenes of 64 pixels: only those have labels.
    """

    folder = "judge"
    drawn_only = True

    def __init__(self, components: Components, data: DataConfig, *, width: Channels8) -> None:
        require_drawn(data, "judge", 64)
        self.data = Data(data, LabelledFrames)
        self.width = width
        self.model: Any = build_network(lambda: Judge(width))

    def loss(self, model: Any, batch: Any, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        logits = model(batch["image"])
        loss = torch.stack([F.cross_entropy(logits[k], batch[k]) for k in ANSWERS]).sum()
        accuracy = {k: (logits[k].argmax(1) == batch[k]).float().mean().item() for k in ANSWERS}
        return loss, {"loss": loss.item(), **accuracy}

    def export(self, model: Any, folder: Path) -> None:
        tensors = {k: v.half() for k, v in model.state_dict().items()}
        save_tensors(folder / FILE, tensors, {"width": json.dumps(self.width)})
