"""Runs every method on every clip and target, in one process, and goes on where it was interrupted."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file

from ctxedit.bench.figures import VERSION, Measure, Truth, Values, prepared
from ctxedit.bench.figures import identity as measured_by
from ctxedit.bench.listing import Clip, Target
from ctxedit.bench.meter import Ledger, Meter
from ctxedit.bench.results import Results, Row
from ctxedit.config import Config
from ctxedit.editing.reporter import Reporter
from ctxedit.editing.request import Request
from ctxedit.editing.session import Session
from ctxedit.errors import CtxeditError, InputError, OutputError
from ctxedit.media.mask import read_mask
from ctxedit.media.probe import probe
from ctxedit.media.write import write_clip
from ctxedit.metrics import Networks
from ctxedit.models.device import pick_device
from ctxedit.models.weights import identity, judge_identity, own_folder, part_identity
from ctxedit.runs import fingerprint, key_of, slug
from ctxedit.stages.prepare import Prepared, read_working

#: References beside the methods: the clip unedited, and the true edit where there is one.
SOURCE, IDEAL = "source", "ideal"
REFERENCES = (SOURCE, IDEAL)


@dataclass(frozen=True)
class Method:
    """A preset with its settings; ``label`` is what the tables call it."""

    label: str
    preset: str
    config: Config


@dataclass(frozen=True)
class Bench:
    """What is compared on what.

    Attributes:
        out: the bench's folder: results, run folders, tables, page.
        clips, methods: each method runs on each target of each clip.
        overwrite: redo finished edits (their tuning and inversion stay).
        offline: touch no hub.
        sources: the list and the files of settings; no output may take their place.
        metrics: keys of metrics besides the usual ones.
    """

    out: Path
    clips: tuple[Clip, ...]
    methods: tuple[Method, ...]
    overwrite: bool = False
    offline: bool = False
    sources: tuple[Path, ...] = ()
    metrics: tuple[str, ...] = ()

    def request(self, clip: Clip, method: Method, targets: Sequence[str] = ()) -> Request:
        """The request of one method on one clip; its run folder is in the bench's."""
        return Request(
            clip.path, settings_for(clip, method), method.preset, prompt=clip.prompt, targets=tuple(targets),
            audio=False, overwrite=self.overwrite, offline=self.offline, runs=self.out / "runs",
        )  # fmt: skip

    def key(self, clip: Clip, target: Target, method: str, config: Config) -> str:
        """What an edit is known by: all that its pixels and figures depend on."""
        files = [
            None if f is None else fingerprint(f) for f in (clip.control, _mask(clip, target), target.ideal)
        ]
        wanted: tuple[Any, ...] = (target.prompt, target.kind, target.expect)
        if target.composition is not None:
            judged = judge_identity("composition-judge")
            wanted += (target.composition.to_table(), target.changed, judged)
        scorer = part_identity(config.clip_model, own_folder(config.model), "clip")
        weights = (identity(config.model), scorer, judge_identity())
        clip_of = (fingerprint(clip.path), clip.name, clip.prompt)
        more = measured_by(self.metrics)  # nothing for the built-in metrics: their results stay valid
        return key_of(VERSION, method, config, weights, clip_of, wanted, files, *([more] if more else []))


class Watcher(Reporter):
    """Who is told of a bench; a reporter of stages too. This one keeps silent."""

    def began(self, edits: int, done: int) -> None:
        """So many edits in all, so many of them were done before."""

    def serving(self, method: str, clip: str) -> None:
        """A method is at a clip now."""

    def finished(self, row: Row) -> None:
        """An edit is done, or has failed."""


def settings_for(clip: Clip, method: Method) -> Config:
    """A method's settings for a clip: with the clip's own map where the method takes one that is brought."""
    config = method.config
    if config.control.kind == "video" and clip.control is not None:
        config = replace(config, control=replace(config.control, map=str(clip.control.absolute())))
    return config


def run(bench: Bench, watcher: Watcher | None = None) -> list[Row]:
    """Every row of the comparison, references first in each clip: made, or read where it is done.

    A clip, a tuning or an edit that fails becomes a row with its error, and the rest go on; only a disk that
    cannot be written, and Ctrl-C, end it. A failed edit is tried again by the next call.
    """
    watcher = watcher or Watcher()
    results = Results(bench.out)
    if results.damaged:
        watcher.warn(f"{results.path}: {results.damaged} damaged lines; their edits are made again")
    jobs = [(c, m, t, bench.key(c, t, m.label, settings_for(c, m))) for c, m, t in _edits(bench)]
    known = set() if bench.overwrite else {key for *_, key in jobs if _stands(bench, results, key, watcher)}
    watcher.began(len(jobs), len(known))
    device = pick_device(bench.methods[0].config.device)
    networks = prepared(bench.metrics, device, bench.offline) if len(known) < len(jobs) else None
    for clip in bench.clips:
        for method in bench.methods:
            due = [(t, key) for c, m, t, key in jobs if c is clip and m is method and key not in known]
            first = method is bench.methods[0]
            if due or (first and not _references_stand(bench, results, clip, watcher)):
                watcher.serving(method.label, clip.name)
                for row in _serve(bench, results, clip, method, due, watcher, networks):
                    results.add(row)
                    watcher.finished(row)
                _tidy()
    return rows_of(bench, results)


def _stands(bench: Bench, results: Results, key: str, watcher: Watcher) -> bool:
    """Whether the row of this key is done and its video is what was measured; if it is not, it is said."""
    row = results.done(key)
    if row is None:
        return False
    noted = row.facts.get("video_hash")
    if row.video is None or noted is None:  # rows of an earlier ctxedit note no hash
        return True
    video = bench.out / row.video
    if video.exists() and fingerprint(video) == noted:
        return True
    watcher.warn(f"{video} is {'damaged' if video.exists() else 'missing'}: it is written again")
    return False


def _references_stand(bench: Bench, results: Results, clip: Clip, watcher: Watcher) -> bool:
    """Whether the videos of a clip's references that were made are what was measured."""
    keys = [_reference_key(bench, clip, target, which) for target in clip.targets for which in REFERENCES]
    return all([_stands(bench, results, key, watcher) for key in keys if results.done(key) is not None])


def rows_of(bench: Bench, results: Results) -> list[Row]:
    """The rows of this comparison that there are, in its order."""
    keys = [
        _reference_key(bench, c, t, which) for c in bench.clips for t in c.targets for which in REFERENCES
    ]
    keys += [bench.key(c, t, m.label, settings_for(c, m)) for c, m, t in _edits(bench)]
    return [row for key in keys if (row := results.get(key)) is not None]


def _edits(bench: Bench) -> Iterator[tuple[Clip, Method, Target]]:
    return ((c, m, t) for c in bench.clips for m in bench.methods for t in c.targets)


def _serve(
    bench: Bench,
    results: Results,
    clip: Clip,
    method: Method,
    due: Sequence[tuple[Target, str]],
    watcher: Watcher,
    networks: Networks | None,
) -> Iterator[Row]:
    """The due edits of one method on one clip: one tuning and one inversion for all of them."""
    meter, left = Meter(watcher), list(due)
    with Session(bench.request(clip, method), meter) as session:
        try:
            parts = session.parts
            frames = len(parts.prepared.frames)
            with meter.watch(parts.backbone.networks[0], frames, parts.device):
                costs = _before_edits(session, meter)
                measure = Measure(parts.scorer, bench.metrics, networks)
                yield from _references(bench, results, session, measure, clip)
                while left:
                    target, key = left[0]
                    row = _edit(bench, session, meter, measure, clip, method, target, key, dict(costs))
                    left.pop(0)
                    yield row
        except OutputError:
            raise
        except Exception as error:
            if not left:  # only references were due
                watcher.warn(f"{clip.name}: {_line(error)}")
            for target, key in left:
                yield _row(key, method.label, clip, target, error=_line(error))


def _before_edits(session: Session, meter: Meter) -> dict[str, dict[str, float]]:
    """Tune and invert; what both cost, now or when they were made."""
    costs: dict[str, dict[str, float]] = {}
    for stage in ("tune", "invert"):
        key = session.key(stage)[1]
        ledger = Ledger(session.run.folder)
        # A tuning goes on where it was killed, and so does its cost; an inversion starts afresh.
        note = ledger.add if stage == "tune" else ledger.put
        with meter.noting(stage, partial(note, stage, key)):
            session.bring(stage)
        if cost := ledger.of(stage, key):
            costs[stage] = asdict(cost)
    return costs


def _edit(
    bench: Bench, session: Session, meter: Meter, measure: Measure, clip: Clip, method: Method,
    target: Target, key: str, costs: dict[str, dict[str, float]],
) -> Row:  # fmt: skip
    """One edit, measured; an error is a row too, unless the disk refuses."""
    try:
        stage, stage_key = session.key("edit", target.prompt)
        ledger = Ledger(session.run.folder)
        with meter.noting("edit", partial(ledger.put, stage, stage_key)):
            result = session.edit(target.prompt)
        if cost := ledger.of(stage, stage_key):
            costs["edit"] = asdict(cost)
        made = session.run.facts(stage)
        kept = load_file(session.run.folder / made["frames"])["frames"].numpy()
        figures = measure(kept, clip, target, _truth(session, clip, target))
        video = result.files.video
        facts = {**_facts(session, measure, made), "video_hash": fingerprint(video)}
        where = os.path.relpath(video, bench.out)
        return _row(key, method.label, clip, target, figures, costs, facts, where)
    except OutputError:
        raise
    except Exception as error:
        return _row(key, method.label, clip, target, error=_line(error))


def _references(
    bench: Bench, results: Results, session: Session, measure: Measure, clip: Clip
) -> Iterator[Row]:
    """Figures of the unedited clip and of the true edit, once for each target."""
    for target in clip.targets:
        truth = _truth(session, clip, target)
        for which, frames in ((SOURCE, truth.source), (IDEAL, truth.ideal)):
            key = _reference_key(bench, clip, target, which)
            if frames is None or (not bench.overwrite and _stands(bench, results, key, Watcher())):
                continue
            name = f"{slug(clip.name)}-{which}" + (f"-{key[:6]}" if which == IDEAL else "")
            timed = session.parts.prepared.clip
            video = write_clip(
                bench.out / "references" / f"{name}.mp4", frames, timed.fps, durations=timed.durations,
                overwrite=True,
            )  # fmt: skip
            figures = measure(frames, clip, target, truth)
            facts = {"clip_model": measure.scorer.name, "video_hash": fingerprint(video)}
            yield _row(key, which, clip, target, figures, {}, facts, os.path.relpath(video, bench.out))


def _reference_key(bench: Bench, clip: Clip, target: Target, which: str) -> str:
    """References are read as the first method reads the clip."""
    config = bench.methods[0].config
    seen = replace(Config(), clip=config.clip, model=config.model, clip_model=config.clip_model)
    return bench.key(clip, target, which, seen)


def _truth(session: Session, clip: Clip, target: Target) -> Truth:
    """What an edit of this target is compared with, read as the session reads the clip."""
    prepared, span = session.parts.prepared, session.config.clip
    path = _mask(clip, target)
    mask = None if path is None else read_mask(path, span.frames, span.start, span.stride, prepared.fit)
    ideal = None if target.ideal is None else _ideal(target.ideal, session, prepared)
    return Truth(prepared.frames, mask, ideal)


def _ideal(path: Path, session: Session, prepared: Prepared) -> NDArray[np.uint8]:
    info, fit = probe(path), prepared.fit
    if (info.width, info.height) != (fit.source_width, fit.source_height):
        raise InputError(f"the ideal edit {path} has another size than the clip", "make them equal")
    return read_working(path, session.config.clip, fit).frames


def _mask(clip: Clip, target: Target) -> Path | None:
    return target.mask or clip.mask


def _facts(session: Session, measure: Measure, made: Mapping[str, Any]) -> dict[str, Any]:
    """What is said of an edit; ``made`` is what its run notes of it: it may be of another machine."""
    config, parts = session.config, session.parts
    height_width = parts.prepared.frames.shape[1:3]
    return {
        "model": parts.backbone.name, "device": made.get("device", "?"), "dtype": made.get("dtype", "?"),
        "clip_model": measure.scorer.name, "frames": len(parts.prepared.frames),
        "size": [height_width[1], height_width[0]], "seed": config.seed, "adapter": config.adapter.enabled,
        "trained": _trained(session), "run": session.run.folder.name,
    }  # fmt: skip


def _trained(session: Session) -> int:
    """Parameters that the tuning moved: counted in what it left."""
    file = session.run.folder / "tune" / "tuned.safetensors"
    if not session.config.tune.steps or not file.exists():
        return 0
    with safe_open(file, "pt") as tensors:
        return sum(int(np.prod(tensors.get_slice(name).get_shape())) for name in tensors.keys())  # noqa: SIM118


def _row(
    key: str, method: str, clip: Clip, target: Target, figures: Values | None = None,
    costs: dict[str, dict[str, float]] | None = None, facts: dict[str, Any] | None = None,
    video: str | None = None, error: str | None = None,
) -> Row:  # fmt: skip
    return Row(
        key, method, clip.name, target.prompt, target.kind, clip.prompt,
        dict(figures or {}), costs or {}, facts or {}, video, error,
    )  # fmt: skip


def _line(error: Exception) -> str:
    text = error.message if isinstance(error, CtxeditError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:300]


def _tidy() -> None:
    """Give a session's networks back before the next one loads its own."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
