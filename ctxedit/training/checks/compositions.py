"""The checks on the harder split: the composition judge on drawn frames, and the denoiser on captions."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from ctxedit import config
from ctxedit.editing.reporter import Reporter
from ctxedit.stages.generate import generate
from ctxedit.synthetic import composition_changes, compositions
from ctxedit.synthetic.composition_captions import caption
from ctxedit.synthetic.composition_judge import load
from ctxedit.synthetic.composition_verdict import Verdict, detect, judge
from ctxedit.synthetic.compositions import KINDS, Composed, Composition
from ctxedit.training.checks.base import Check, CheckConfig, CheckRow

FOLDER = "composition-judge"
#: Drawn frames are cheap: this many for each image of the other checks.
_MORE = 10
_BATCH = 50
_SETTINGS = {"edit": {"steps": 25, "guidance": 5.0}, "invert": {"steps": 25}}


def held_out(count: int, seed: int) -> list[Composed]:
    """``count`` held-out compositions, cycling through the kinds."""
    rng = np.random.default_rng((seed, 5))
    return [compositions.draw(rng, test=True, kind=KINDS[i % len(KINDS)]) for i in range(count)]


def check_judge(what: CheckConfig, reporter: Reporter) -> Iterator[CheckRow]:
    """The judge on drawn frames of held-out combinations, at any time of their motion."""
    network, count = load(what.find(FOLDER)), _MORE * what.count
    composed, rng = held_out(count, what.seed), np.random.default_rng((what.seed, 6))
    verdicts: list[Verdict] = []
    places: list[bool] = []
    refused: list[bool] = []
    with reporter.task("check composition judge", count, "image") as progress:
        for start in range(0, count, _BATCH):
            part = composed[start : start + _BATCH]
            frames = np.stack([compositions.render_objects(c.scene, float(rng.random()))[0] for c in part])
            detections = detect(network, frames)
            verdicts += [
                judge(c.composition, found.objects) for c, found in zip(part, detections, strict=True)
            ]
            refused += [
                not judge(_other(c.composition, rng), found.objects).all_right
                for c, found in zip(part, detections, strict=True)
            ]
            places += [
                found.background == c.scene.background for c, found in zip(part, detections, strict=True)
            ]
            progress(len(verdicts), "")
    row = partial(CheckRow, "composition-judge")
    yield from _rows(row, composed, verdicts, 0.97)
    yield row("a composition that differs in one thing is refused", float(np.mean(refused)), 0.97, count)
    yield row("background right", float(np.mean(places)), 0.97, count)


def _other(composition: Composition, rng: np.random.Generator) -> Composition:
    parts = composition_changes.parts_of(composition)
    return composition_changes.change(composition, rng, parts[rng.integers(len(parts))])[0]


def check_pictures(what: CheckConfig, reporter: Reporter) -> Iterator[CheckRow]:
    """Images of held-out captions, judged: share where every object, colour, count and place is right."""
    network, backbone = load(what.find(FOLDER)), what.backbone()
    settings = config.merge(config.load(flags=_SETTINGS, environ={}), what.settings)
    composed = held_out(what.count, what.seed)
    verdicts: list[Verdict] = []
    with reporter.task("check compositions", what.count, "image") as progress:
        for i, one in enumerate(composed):
            picture = generate(backbone, caption(one), config.merge(settings, {"seed": i}))
            verdicts.append(judge(one.composition, detect(network, picture)[0].objects))
            progress(i + 1, f"all right {np.mean([v.all_right for v in verdicts]):.2f}")
    yield from _rows(partial(CheckRow, "compositions"), composed, verdicts, 0.40)


def _rows(
    row: partial[CheckRow], composed: list[Composed], verdicts: list[Verdict], wanted: float
) -> Iterator[CheckRow]:
    yield row("all right", float(np.mean([v.all_right for v in verdicts])), wanted, len(verdicts))
    objects = [v.objects for v in verdicts]
    yield row("objects, colours, numbers and sizes right", float(np.mean(objects)), wanted, len(objects))
    for kind in KINDS:
        of = [v.all_right for c, v in zip(composed, verdicts, strict=True) if c.composition.kind == kind]
        if of:  # a small slice may show no such kind
            yield row(f"all right, {kind}", float(np.mean(of)), wanted, len(of))


JUDGE = Check("composition-judge", (FOLDER,), check_judge)
PICTURES = Check("compositions", ("vae", "text_encoder", "unet"), check_pictures)
