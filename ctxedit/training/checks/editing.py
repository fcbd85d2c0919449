"""The check of edits: the preset contextdiff, tuned on clips of held-out combinations."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from ctxedit.config import Config, load, merge
from ctxedit.editing.reporter import Reporter
from ctxedit.editing.request import Request
from ctxedit.editing.session import Session
from ctxedit.media.write import write_clip
from ctxedit.metrics import formulas as metrics
from ctxedit.models.clip import ClipScorer
from ctxedit.runs import key_of
from ctxedit.synthetic import scenes
from ctxedit.synthetic.judge import Judge, classify, load_judge, truth
from ctxedit.synthetic.pairs import KINDS, Pair, draw_pairs
from ctxedit.tables import DEFAULT_PRESET
from ctxedit.training.checks.base import Check, CheckConfig, CheckRow
from ctxedit.training.components import hashes

PRESET = DEFAULT_PRESET
_SIZE, _FPS = 64, Fraction(8)


@dataclass
class _Figures:
    """One number per clip or edit."""

    found: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    outside: list[float] = field(default_factory=list)
    round_trip: list[float] = field(default_factory=list)
    round_trip_own: list[float] = field(default_factory=list)
    clip_temp: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class _Scorers:
    clip: ClipScorer
    judge: Judge


def measure(config: CheckConfig, reporter: Reporter) -> Iterator[CheckRow]:
    """Tune on each clip, edit it towards three targets, and measure:

    - the share of frames in which the judge finds the edit, over all edits and by kind;
    - for edits of the object, PSNR outside the masks of the old and the new object;
    - PSNR of inversion and sampling with the source prompt at guidance scale 1, against the clip, and against
      its reconstruction by the autoencoder, the best that the denoiser can reach;
    - CLIP-temp of the edit minus the source's.
    """
    settings = _settings(config)
    scorers = _Scorers(ClipScorer(config.find("clip")), load_judge(config.find("judge")))
    # Results of an earlier check with other weights must not be reused.
    work = config.work / key_of(hashes(config.find("unet")), hashes(config.find("vae")))[:12]
    figures = _Figures()
    clips = [list(group) for _, group in itertools.groupby(draw_pairs(config.pairs, config.seed), _clip_name)]
    with reporter.task("check editing", len(clips), "clip") as progress:
        for done, pairs in enumerate(clips, 1):
            _measure_clip(pairs, settings, work, scorers, figures)
            progress(done, f"found {np.mean([v for k in KINDS for v in figures.found[k]]):.2f}")
    yield from _rows(figures)


def _settings(config: CheckConfig) -> Config:
    # Models in a folder of the user's take the built-in models' settings. Edits are judged at working size.
    settings = merge(load(PRESET, environ={}), config.settings)
    return merge(settings, {"model": config.model, "clip_model": "builtin", "upscale": {"scale": 1}})


def _clip_name(pair: Pair) -> str:
    return pair.clip


def _measure_clip(
    pairs: list[Pair], settings: Config, work: Path, scorers: _Scorers, figures: _Figures
) -> None:
    first = pairs[0]
    source, mask = scenes.render(first.source, settings.clip.frames, _SIZE)
    clip = work / "clips" / first.clip
    if not clip.is_dir():
        write_clip(clip, source, _FPS)
    source_temp = metrics.clip_temp(scorers.clip.embed_images(source)) or 0.0
    request = Request(
        clip, settings, PRESET, prompt=first.source_prompt, runs=work / "runs", offline=True
    )  # fmt: skip
    with Session(request) as session:
        session.tune()
        session.invert()
        _measure_round_trip(session, source, figures)
        for pair in pairs:
            edit = _edit(session, pair.target_prompt)
            wanted = truth(pair.target)[pair.kind]
            found = [answer[pair.kind] == wanted for answer in classify(scorers.judge, edit)]
            figures.found[pair.kind].append(float(np.mean(found)))
            edit_temp = metrics.clip_temp(scorers.clip.embed_images(edit)) or 0.0
            figures.clip_temp.append(edit_temp - source_temp)
            if pair.kind == "object":
                target_mask = scenes.render(pair.target, len(source), _SIZE)[1]
                figures.outside.append(_psnr(edit, source, np.maximum(mask, target_mask) < 0.5))


def _measure_round_trip(session: Session, source: NDArray[np.uint8], figures: _Figures) -> None:
    """Sample the source prompt from the run's inversion, in a session of its own at guidance scale 1."""
    config = replace(session.config, edit=replace(session.config.edit, guidance=1.0))
    with Session(replace(session.request, config=config, run=session.run)) as unguided:
        trajectory = unguided.invert()
        assert isinstance(trajectory, Tensor)  # the clips here fit one window
        back = unguided.edited_frames(unguided.prompt, trajectory)
    parts = session.parts
    decoded = parts.prepared.unpad(parts.backbone.decode(parts.latents))
    figures.round_trip.append(_psnr(back, source))
    figures.round_trip_own.append(_psnr(back, decoded))


def _edit(session: Session, target: str) -> NDArray[np.uint8]:
    session.edit(target)
    facts = session.run.facts(session.key("edit", target)[0])
    return load_file(session.run.folder / facts["frames"])["frames"].numpy()


def _psnr(a: NDArray[np.uint8], b: NDArray[np.uint8], keep: NDArray[np.bool_] | None = None) -> float:
    return metrics.psnr(a, b, keep) or 0.0


def _rows(figures: _Figures) -> Iterator[CheckRow]:
    every = [value for kind in KINDS for value in figures.found[kind]]
    yield CheckRow(
        "editing", "what was asked is found, by the judge", float(np.mean(every)), 0.80, len(every)
    )
    for kind, values in figures.found.items():
        yield CheckRow(
            "editing", f"the {kind} is found, by the judge", float(np.mean(values)), 0.80, len(values)
        )
    more = (
        ("PSNR outside the object, dB", figures.outside, 22.0),
        ("round trip against the clip, dB", figures.round_trip, 28.0),
        ("round trip against the autoencoder's own, dB", figures.round_trip_own, 28.0),
        ("CLIP-temp less the source's", figures.clip_temp, -0.02),
    )
    for name, values, wanted in more:
        yield CheckRow("editing", name, float(np.mean(values)), wanted, len(values))


CHECK = Check("editing", ("vae", "text_encoder", "unet"), measure)
