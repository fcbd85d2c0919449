"""The check of the captioner, on easy scenes and on compositions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import permutations

import numpy as np

from ctxedit.editing.reporter import Reporter
from ctxedit.models.captioner import Blip2Captioner
from ctxedit.models.clip import ClipScorer
from ctxedit.stages.caption import caption
from ctxedit.synthetic import composition_verdict, compositions, scenes
from ctxedit.synthetic.composition_captions import word
from ctxedit.synthetic.compositions import RELATIONS, Composed
from ctxedit.synthetic.judge import ANSWERS
from ctxedit.training.checks.base import Check, CheckConfig, CheckRow
from ctxedit.training.checks.compositions import held_out


def measure(config: CheckConfig, reporter: Reporter) -> Iterator[CheckRow]:
    """Share of clips with a right caption: object, background and style; of compositions, every statement."""
    model, scorer = Blip2Captioner(config.find("captioner")), ClipScorer(config.find("clip"))

    def share(clips: Iterable[tuple[scenes.Scene, set[str]]], adapt: Callable[[str], str] = str) -> float:
        """Of the clips, those whose caption is, once adapted, among the right ones."""
        correct: list[bool] = []
        with reporter.task("check captioner", config.count, "image") as progress:
            for scene, right in clips:
                correct.append(adapt(caption(scenes.render(scene, 8)[0], model, scorer)) in right)
                progress(len(correct), "")
        return float(np.mean(correct))

    easy = ((scene, {_without_colour(scenes.caption(scene))}) for scene in config.held_out())
    figure = "object, background, style all right"
    yield CheckRow("captioner", figure, share(easy, _without_colour), 0.90, config.count)
    composed = ((one.scene, true_captions(one)) for one in held_out(config.count, config.seed))
    yield CheckRow("captioner", "compositions: all right", share(composed), 0.80, config.count)


def true_captions(composed: Composed) -> set[str]:
    """The canonical wording of every true statement of a composition.

    Its groups in any order, with no relation or with one that holds where the objects are: two unrelated
    objects also count as next to each other.
    """
    _, visible = compositions.render_objects(composed.scene, 0.5)
    objects = [composition_verdict.detected(one) for one in visible]
    texts = set()
    for groups in permutations(composed.composition.groups):
        for relation in (None, *(RELATIONS if len(groups) == 2 else ())):
            claim = replace(composed.composition, groups=groups, relation=relation)
            if composition_verdict.judge(claim, objects).all_right:
                texts.add(word(claim, composed.scene.background, composed.scene.style))
    return texts


def _without_colour(text: str) -> str:
    words = [w for w in text.replace(" ,", ",").split() if w not in ANSWERS["colour"]]
    return " ".join("a" if w == "an" else w for w in words)


CHECK = Check("captioner", ("captioner", "clip"), measure)
