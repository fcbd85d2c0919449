"""The judge: a small classifier of drawn frames, trained separately and used only to score other models."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ctxedit.errors import WeightsError
from ctxedit.synthetic.scenes import Scene
from ctxedit.synthetic.tensors import to_tensor
from ctxedit.synthetic.vocabulary import BACKGROUNDS, BY_NAME, COLOURS, GREY_STYLES, STYLES

#: The attributes that are classified and their classes; ``none`` means that no colour is visible.
ANSWERS: dict[str, list[str]] = {
    "object": list(BY_NAME),
    "background": list(BACKGROUNDS),
    "style": list(STYLES),
    "colour": ["none", *COLOURS],
}
#: Name of the weight file; its metadata holds the width.
FILE = "judge.safetensors"


class Judge(nn.Module):
    """Five strided convolutions, flattened, and one linear classification head for each attribute."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        sizes = [3, width, 2 * width, 3 * width, 4 * width, 4 * width]
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(sizes):
            layers += [nn.Conv2d(a, b, 3, stride=2, padding=1), nn.GroupNorm(8, b), nn.SiLU()]
            layers += [nn.Conv2d(b, b, 3, padding=1, groups=8), nn.SiLU()]
        self.trunk = nn.Sequential(*layers)
        self.heads = nn.ModuleDict({k: nn.Linear(4 * sizes[-1], len(v)) for k, v in ANSWERS.items()})

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Logits by attribute for RGB images (B, 3, 64, 64) in [−1, 1]."""
        features = self.trunk(image).flatten(1)
        return {k: head(features) for k, head in self.heads.items()}


def truth(scene: Scene) -> dict[str, str]:
    """The correct classes for a scene's first object."""
    first = scene.actors[0]
    visible = first.colour if first.colour and scene.style not in GREY_STYLES else "none"
    return {"object": first.name, "background": scene.background, "style": scene.style, "colour": visible}


def load_judge(folder: Path) -> Judge:
    """The trained judge in eval mode; raises WeightsError if its classes are not this vocabulary's."""
    try:
        with safe_open(folder / FILE, "pt") as file:
            judge = Judge(json.loads(file.metadata()["width"]))
            judge.load_state_dict({k: file.get_tensor(k).float() for k in file.keys()})  # noqa: SIM118
    except (OSError, SafetensorError, TypeError, KeyError, RuntimeError) as error:
        raise WeightsError(
            f"{folder} has no judge for this vocabulary", "train one: ctxedit train judge"
        ) from error
    return judge.eval()


@torch.no_grad()
def classify(judge: Judge, frames: NDArray[np.uint8]) -> list[dict[str, str]]:
    """The predicted classes for RGB uint8 frames (F, 64, 64, 3)."""
    logits = judge(torch.stack([to_tensor(frame) for frame in frames]))
    return [{k: ANSWERS[k][int(logits[k][i].argmax())] for k in ANSWERS} for i in range(len(frames))]
