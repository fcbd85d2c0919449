"""The check of the edits: the preset contextdiff, tuned on clips of held-out combinations."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file

from ctxedit import config
from ctxedit.bundled.training.check import Checked, Row
from ctxedit.bundled.training.judge import Judge, ask, load_judge, truth
from ctxedit.bundled.training.parts import find
from ctxedit.bundled.training.record import hashes
from ctxedit.bundled.world import scenes
from ctxedit.bundled.world.pairs import KINDS, Pair, draw_pairs
from ctxedit.config import Config
from ctxedit.media.write import write_clip
from ctxedit.metrics import formulas as metrics
from ctxedit.models.clip import ClipScorer
from ctxedit.pipeline import Options, Session
from ctxedit.runs import key_of
from ctxedit.workbench import Reporter

PRESET = "contextdiff"
_SIZE, _FPS = 64, Fraction(8)


@dataclass
class _Figures:
    """Of every clip or edit one number."""

    found: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    outside: list[float] = field(default_factory=list)
    round_trip: list[float] = field(default_factory=list)
    round_trip_own: list[float] = field(default_factory=list)
    steadiness: list[float] = field(default_factory=list)


def check_editing(what: Checked, reporter: Reporter) -> Iterator[Row]:
    """Tune on each clip, edit it three ways, and measure.

    - The judge's share of frames that show what was asked for, over all edits and by kind.
    - PSNR outside the object's mask, the old object's and the new one's, for edits of the object.
    - Inverting and sampling with the source prompt, unguided: PSNR against the clip, and against the
      autoencoder's own reconstruction of it, which is all that the denoiser can give back.
    - CLIP-temp of the edit less the source's.
    """
    settings = _settings(what)
    scorer, judge = ClipScorer(find(what.weights, "clip")), load_judge(find(what.weights, "judge"))
    # Other weights make other edits: what an earlier check left of them is not taken up.
    work = what.work / key_of(hashes(find(what.weights, "unet")), hashes(find(what.weights, "vae")))[:12]
    figures = _Figures()
    clips = [list(group) for _, group in itertools.groupby(draw_pairs(what.pairs, what.seed), _clip_name)]
    with reporter.task("check editing", len(clips)) as progress:
        for done, pairs in enumerate(clips, 1):
            _one_clip(pairs, settings, work, scorer, judge, figures)
            progress(done, f"found {np.mean([v for k in KINDS for v in figures.found[k]]):.2f}")
    yield from _rows(figures)


def _settings(what: Checked) -> Config:
    # A folder of models like the built-in ones takes their settings.
    settings = config.merge(config.load(PRESET, environ={}), what.settings)
    return config.merge(settings, {"model": what.model, "clip_model": "builtin"})


def _clip_name(pair: Pair) -> str:
    return pair.clip


def _one_clip(
    pairs: list[Pair], settings: Config, work: Path, scorer: ClipScorer, judge: Judge, figures: _Figures
) -> None:
    first = pairs[0]
    count = settings.clip.frames
    source, mask = scenes.render(first.source, count, _SIZE)
    clip = work / "clips" / first.clip
    if not clip.is_dir():
        write_clip(clip, source, _FPS)
    steady = metrics.clip_temp(scorer.embed_images(source)) or 0.0
    options = Options(prompt=first.source_prompt, runs=work / "runs", offline=True)
    with Session(clip, settings, PRESET, options) as session:
        session.tune()
        trajectory = session.invert()
        session.config = replace(settings, edit=replace(settings.edit, guidance=1.0))
        back = session.edited_frames(first.source_prompt, trajectory)
        own = session.prepared.unpad(session.backbone.decode(session.latents))
        session.config = settings
        figures.round_trip.append(_psnr(back, source))
        figures.round_trip_own.append(_psnr(back, own))
        for pair in pairs:
            edit = _edit(session, pair.target_prompt)
            meant = truth(pair.target)[pair.kind]
            figures.found[pair.kind].append(float(np.mean([a[pair.kind] == meant for a in ask(judge, edit)])))
            figures.steadiness.append((metrics.clip_temp(scorer.embed_images(edit)) or 0.0) - steady)
            if pair.kind == "object":
                keep = np.maximum(mask, scenes.render(pair.target, count, _SIZE)[1]) < 0.5
                figures.outside.append(_psnr(edit, source, keep))


def _edit(session: Session, target: str) -> NDArray[np.uint8]:
    session.edit(target)
    facts = session.run.facts(session.edit_key(target)[0])
    return load_file(session.run.folder / facts["frames"])["frames"].numpy()


def _psnr(a: NDArray[np.uint8], b: NDArray[np.uint8], keep: NDArray[np.bool_] | None = None) -> float:
    return metrics.psnr(a, b, keep) or 0.0


def _rows(figures: _Figures) -> Iterator[Row]:
    every = [value for kind in KINDS for value in figures.found[kind]]
    yield Row("editing", "what was asked is found, by the judge", float(np.mean(every)), 0.80, len(every))
    for kind, values in figures.found.items():
        yield Row("editing", f"the {kind} is found, by the judge", float(np.mean(values)), 0.80, len(values))
    more = (
        ("PSNR outside the object, dB", figures.outside, 22.0),
        ("round trip against the clip, dB", figures.round_trip, 28.0),
        ("round trip against the autoencoder's own, dB", figures.round_trip_own, 28.0),
        ("CLIP-temp less the source's", figures.steadiness, -0.02),
    )
    for name, values, wanted in more:
        yield Row("editing", name, float(np.mean(values)), wanted, len(values))
