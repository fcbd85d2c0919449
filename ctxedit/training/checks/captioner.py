"""The check of the captioner."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ctxedit.editing.reporter import Reporter
from ctxedit.models.captioner import Blip2Captioner
from ctxedit.models.clip import ClipScorer
from ctxedit.stages.caption import caption
from ctxedit.synthetic import scenes
from ctxedit.synthetic.judge import ANSWERS
from ctxedit.training.checks.base import Check, CheckConfig, CheckRow


def measure(config: CheckConfig, reporter: Reporter) -> Iterator[CheckRow]:
    """Share of clips whose caption has object, background and style right."""
    model, scorer = Blip2Captioner(config.find("captioner")), ClipScorer(config.find("clip"))
    correct: list[bool] = []
    with reporter.task("check captioner", config.count) as progress:
        for scene in config.held_out():
            text = caption(scenes.render(scene, 8)[0], model, scorer)
            correct.append(_without_colour(text) == _without_colour(scenes.caption(scene)))
            progress(len(correct), "")
    share = float(np.mean(correct))
    yield CheckRow("captioner", "object, background, style all right", share, 0.90, config.count)


def _without_colour(text: str) -> str:
    words = [w for w in text.replace(" ,", ",").split() if w not in ANSWERS["colour"]]
    return " ".join("a" if w == "an" else w for w in words)


CHECK = Check("captioner", ("captioner", "clip"), measure)
