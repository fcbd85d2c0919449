"""The judge: a small classifier of drawn scenes, trained apart from the models, only to check them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import Dataset

from ctxedit.errors import ConfigError, WeightsError
from ctxedit.synthetic import scenes
from ctxedit.synthetic.vocabulary import BACKGROUNDS, BY_NAME, COLOURS, GREY_STYLES, STYLES
from ctxedit.training.data import DataConfig, to_tensor

#: What is judged, and the answers; ``none`` is a colour that cannot be seen.
ANSWERS: dict[str, list[str]] = {
    "object": list(BY_NAME),
    "background": list(BACKGROUNDS),
    "style": list(STYLES),
    "colour": ["none", *COLOURS],
}


class Judge(nn.Module):
    """Five strided convolutions, a mean over positions, one linear head a question."""

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
        """RGB (B, 3, 64, 64) in [−1, 1] to logits by question."""
        features = self.trunk(image).flatten(1)
        return {k: head(features) for k, head in self.heads.items()}


class Answers(Dataset[dict[str, Any]]):
    """One-object frames and the right answers, softened and noised as decoded pictures are."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __len__(self) -> int:
        return 1 << 40

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng((self.seed, index, 7))
        # Every combination: the judge is no part of what is tested for generalising.
        scene = scenes.draw_scene(rng, pairs=0.0, test=bool(rng.random() < 0.08))
        image = to_tensor(scenes.render_frame(scene, float(rng.random()))[0])
        if rng.random() < 0.5:
            soft = F.avg_pool2d(F.pad(image[None], (1, 1, 1, 1), mode="replicate"), 3, 1)[0]
            image = torch.lerp(image, soft, float(rng.random()))
        noise = torch.from_numpy(rng.standard_normal(image.shape, np.float32))
        image = image + 0.1 * float(rng.random()) * noise
        return {"image": image, **{k: answers.index(truth(scene)[k]) for k, answers in ANSWERS.items()}}


def truth(scene: scenes.Scene) -> dict[str, str]:
    """The right answers for a scene's first object."""
    first = scene.actors[0]
    seen = first.colour if first.colour and scene.style not in GREY_STYLES else "none"
    return {"object": first.name, "background": scene.background, "style": scene.style, "colour": seen}


class JudgeTask:
    """Cross-entropy over the four questions; only drawn scenes come with answers.

    Raises:
        ConfigError: other data.
    """

    def __init__(self, width: int, data: DataConfig | None = None) -> None:
        if data is not None and (data.source != "scenes" or data.size != 64):
            raise ConfigError(
                "the judge learns from drawn scenes of 64 pixels alone: pictures have no labels",
                'leave [data] out of the recipe, or data.source = "scenes"',
            )
        self.width = width
        self.model: nn.Module = Judge(width)

    def dataset(self, seed: int) -> Dataset[Any]:
        return Answers(seed)

    def loss(
        self, model: nn.Module, batch: Any, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        logits = model(batch["image"])
        loss = torch.stack([F.cross_entropy(logits[k], batch[k]) for k in ANSWERS]).sum()
        right = {k: (logits[k].argmax(1) == batch[k]).float().mean().item() for k in ANSWERS}
        return loss, {"loss": loss.item(), **right}

    def export(self, model: nn.Module, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {k: v.half().contiguous() for k, v in model.state_dict().items()}
        save_file(tensors, folder / "judge.safetensors", {"width": json.dumps(self.width)})


def load_judge(folder: Path) -> Judge:
    """The trained judge, in eval mode; raises WeightsError for one that knows another world."""
    try:
        with safe_open(folder / "judge.safetensors", "pt") as file:
            judge = Judge(json.loads(file.metadata()["width"]))
            judge.load_state_dict({k: file.get_tensor(k).float() for k in file.keys()})  # noqa: SIM118
    except (OSError, SafetensorError, TypeError, KeyError, RuntimeError) as error:
        raise WeightsError(
            f"{folder} holds no judge of this world", "train it: ctxedit train judge"
        ) from error
    return judge.eval()


@torch.no_grad()
def ask(judge: Judge, frames: NDArray[np.uint8]) -> list[dict[str, str]]:
    """The judge's answers for RGB uint8 frames (F, 64, 64, 3)."""
    logits = judge(torch.stack([to_tensor(frame) for frame in frames]))
    return [{k: ANSWERS[k][int(logits[k][i].argmax())] for k in ANSWERS} for i in range(len(frames))]
