"""The check of the denoiser: images generated from captions, classified by the judge."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ctxedit.config import load, merge
from ctxedit.editing.reporter import Reporter
from ctxedit.stages.generate import generate
from ctxedit.synthetic import scenes
from ctxedit.synthetic.judge import ANSWERS, classify, load_judge, truth
from ctxedit.training.checks.base import Check, CheckConfig, CheckRow

_GOALS = {"object": 0.90, "background": 0.95, "style": 0.95, "colour": 0.85}


def measure(config: CheckConfig, reporter: Reporter) -> Iterator[CheckRow]:
    """The judge's accuracy for each attribute."""
    judge, backbone = load_judge(config.find("judge")), config.backbone()
    settings = load(
        "contextdiff", flags={"edit": {"steps": 25, "guidance": 5.0}, "invert": {"steps": 25}}, environ={}
    )
    settings = merge(settings, config.settings)
    hits: dict[str, list[bool]] = {k: [] for k in ANSWERS}
    with reporter.task("check text-to-image", config.count, "image") as progress:
        for i, scene in enumerate(config.held_out()):
            image = generate(backbone, scenes.caption(scene), merge(settings, {"seed": i}))
            predicted, actual = classify(judge, image)[0], truth(scene)
            for k in ANSWERS:
                if k != "colour" or actual[k] != "none":
                    hits[k].append(predicted[k] == actual[k])
            progress(i + 1, "")
    for k, goal in _GOALS.items():
        if hits[k]:  # a few scenes may show no colour at all
            share = float(np.mean(hits[k]))
            yield CheckRow("text-to-image", f"{k} right, by the judge", share, goal, len(hits[k]))


CHECK = Check("text-to-image", ("vae", "text_encoder", "unet"), measure)
