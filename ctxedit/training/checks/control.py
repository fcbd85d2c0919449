"""The check of the ControlNet: whether images generated with the edges of a scene have these edges."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation

from ctxedit.config import load, merge
from ctxedit.editing.reporter import Reporter
from ctxedit.media.edges import canny
from ctxedit.metrics import intervals
from ctxedit.models.control import Control
from ctxedit.stages.generate import generate
from ctxedit.synthetic import scenes
from ctxedit.training.checks.base import Check, CheckConfig, CheckRow

FOLDER = "controlnet"
_SETTINGS = {"edit": {"steps": 25, "guidance": 5.0}, "invert": {"steps": 25}}


def edge_score(image: NDArray[np.uint8], wanted: NDArray[np.uint8]) -> float:
    """F1 of an image's Canny edges against the wanted ones, in [0, 1]; a match is at most a pixel away.

    Args:
        image: RGB uint8 (H, W, 3).
        wanted: edges (H, W, 3) in {0, 255}, as of :func:`ctxedit.media.edges.canny`.
    """
    found, right = canny(image[None])[0, ..., 0] > 0, wanted[..., 0] > 0
    if not (found.any() and right.any()):
        return float(found.any() == right.any())
    around = np.ones((3, 3), bool)
    precision = (found & binary_dilation(right, around)).sum() / found.sum()
    recall = (right & binary_dilation(found, around)).sum() / right.sum()
    return float(2 * precision * recall / max(precision + recall, 1e-9))


def measure(config: CheckConfig, reporter: Reporter) -> Iterator[CheckRow]:
    """Edges of images that were generated with a scene's caption and edges, and with its caption alone."""
    backbone = config.backbone()
    control = Control.load(config.find(FOLDER), 1.0, torch.device("cpu"), torch.float32)
    settings = merge(load(flags=_SETTINGS, environ={}), config.settings)
    scores: list[tuple[float, float]] = []
    with reporter.task("check controlnet", config.count, "image") as progress:
        for i, scene in enumerate(config.held_out()):
            edges = canny(scenes.render(scene, 1)[0])
            shown = torch.from_numpy(edges).permute(0, 3, 1, 2).float() / 255
            caption, seeded = scenes.caption(scene), merge(settings, {"seed": i})
            backbone.control = control
            controlled = generate(backbone, caption, seeded, control=shown)[0]
            backbone.control = None
            plain = generate(backbone, caption, seeded)[0]
            scores.append((edge_score(controlled, edges[0]), edge_score(plain, edges[0])))
            progress(i + 1, f"edges {np.mean([s for s, _ in scores]):.2f}")
    figures = {
        "F1 of edges, within a pixel": ([s for s, _ in scores], 0.8),
        "F1 of edges, over that without a ControlNet": ([s - without for s, without in scores], 0.3),
    }
    for figure, (values, wanted) in figures.items():
        bounds = intervals.of_mean(values)
        yield CheckRow(FOLDER, figure, float(np.mean(values)), wanted, len(values), bounds)


CHECK = Check(FOLDER, ("vae", "text_encoder", "unet", FOLDER), measure)
