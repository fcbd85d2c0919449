"""The check of CLIP: retrieval of captions, and sensitivity to one wrong attribute."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ctxedit.editing.reporter import Reporter
from ctxedit.models.clip import ClipScorer
from ctxedit.synthetic import scenes
from ctxedit.synthetic.tensors import to_frame
from ctxedit.synthetic.vocabulary import GREY_STYLES
from ctxedit.training.checks.base import Check, CheckConfig, CheckRow
from ctxedit.training.data import Scenes

_ATTRIBUTES = ("object", "background", "style", "colour")


def measure(config: CheckConfig, reporter: Reporter) -> Iterator[CheckRow]:
    """Share of images that retrieve their caption; share whose score falls with a wrong attribute."""
    scorer = ClipScorer(config.find("clip"))
    yield _retrieval(config, scorer)
    rng = np.random.default_rng(config.seed)
    with reporter.task("check clip", len(_ATTRIBUTES) * config.count) as progress:
        for number, attribute in enumerate(_ATTRIBUTES):
            falls: list[bool] = []
            while len(falls) < config.count:
                scene = scenes.draw_scene(rng, test=True, pairs=0.0)
                if attribute == "colour" and (scene.actors[0].colour is None or scene.style in GREY_STYLES):
                    continue
                image = scorer.embed_images(scenes.render_frame(scene, float(rng.random()))[0][None])
                both = scorer.embed_texts(
                    [scenes.caption(s) for s in (scene, scenes.change(scene, rng, attribute))]
                )
                score = (image @ both.T)[0]
                falls.append(bool(score[0] > score[1]))
                progress(number * config.count + len(falls), "")
            share = float(np.mean(falls))
            yield CheckRow("clip", f"falls when the {attribute} is wrong", share, 0.95, config.count)


def _retrieval(config: CheckConfig, scorer: ClipScorer) -> CheckRow:
    count, data = config.count, Scenes(config.seed, test=True)
    items = [data[i] for i in range(count)]
    frames = np.stack([to_frame(item["image"]) for item in items])
    images, texts = scorer.embed_images(frames), scorer.embed_texts([item["caption"] for item in items])
    nearest = (images @ texts.T).argmax(1)
    # Two images may show the same in different wordings: every wording of the right content counts.
    content = [scenes.caption(data.scene(i)[0]) for i in range(count)]
    correct = [content[int(j)] == content[i] for i, j in enumerate(nearest)]
    return CheckRow("clip", f"right caption of {count}", float(np.mean(correct)), 0.90, count)


CHECK = Check("clip", ("clip",), measure)
