"""The check of CLIP: retrieval of captions, and sensitivity to one wrong attribute."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from ctxedit.editing.reporter import Reporter
from ctxedit.models.clip import ClipScorer
from ctxedit.synthetic import composition_changes, compositions, scenes
from ctxedit.synthetic.composition_captions import caption, word
from ctxedit.synthetic.tensors import to_frame
from ctxedit.synthetic.vocabulary import GREY_STYLES
from ctxedit.training.checks.base import Check, CheckConfig, CheckRow
from ctxedit.training.data import Scenes

#: A scene, its caption and a wrong one.
_Captioned = tuple[scenes.Scene, list[str]]
_Draw = Callable[[np.random.Generator], _Captioned | None]
_ATTRIBUTES = ("object", "background", "style", "colour")


def measure(config: CheckConfig, reporter: Reporter) -> Iterator[CheckRow]:
    """Share of images that retrieve their caption; share whose score falls with a wrong attribute."""
    scorer = ClipScorer(config.find("clip"))
    yield _retrieval(config, scorer)
    for attribute in _ATTRIBUTES:
        share = _falls(config, reporter, scorer, partial(_easy, attribute))
        yield CheckRow("clip", f"falls when the {attribute} is wrong", share, 0.95, config.count)
    for part in composition_changes.PARTS:
        share = _falls(config, reporter, scorer, partial(_composed, part))
        yield CheckRow("clip", f"falls when a composition's {part} is wrong", share, 0.90, config.count)


def _falls(config: CheckConfig, reporter: Reporter, scorer: ClipScorer, draw: _Draw) -> float:
    """Share of images whose score is lower with the wrong caption than with the right one."""
    rng = np.random.default_rng(config.seed)
    falls: list[bool] = []
    with reporter.task("check clip", config.count, "image") as progress:
        while len(falls) < config.count:
            if (drawn := draw(rng)) is None:
                continue
            scene, texts = drawn
            image = scorer.embed_images(scenes.render_frame(scene, float(rng.random()))[0][None])
            score = (image @ scorer.embed_texts(texts).T)[0]
            falls.append(bool(score[0] > score[1]))
            progress(len(falls), "")
    return float(np.mean(falls))


def _easy(attribute: str, rng: np.random.Generator) -> _Captioned | None:
    """A held-out scene, its caption and one that is wrong in the attribute; None if it lacks that."""
    scene = scenes.draw_scene(rng, test=True, pairs=0.0)
    if attribute == "colour" and (scene.actors[0].colour is None or scene.style in GREY_STYLES):
        return None
    return scene, [scenes.caption(scene), scenes.caption(scenes.change(scene, rng, attribute))]


def _composed(part: str, rng: np.random.Generator) -> _Captioned | None:
    """The same for a composition and one of the parts that can be changed."""
    composed = compositions.draw(rng, test=True)
    if part not in composition_changes.parts_of(composed.composition):
        return None
    scene, (changed, _) = composed.scene, composition_changes.change(composed.composition, rng, part)
    return scene, [caption(composed), word(changed, scene.background, scene.style)]


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
