"""One method on one clip: tuned and inverted once, then edited for every due target and measured."""

from __future__ import annotations

import gc
import os
import platform
import shutil
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open

from ctxedit.bench import external
from ctxedit.bench.delivery import deliver
from ctxedit.bench.figures import Measure, Truth, Values, prepared
from ctxedit.bench.listing import Clip, Target
from ctxedit.bench.meter import CostMeter, Ledger
from ctxedit.bench.results import ResultRow
from ctxedit.bench.subject import IDEAL, SOURCE, Bench, Method
from ctxedit.bench.truth import truth
from ctxedit.editing.loaded import LoadedNetworks
from ctxedit.editing.long import mapped
from ctxedit.editing.reporter import Reporter
from ctxedit.editing.session import Session
from ctxedit.errors import CtxeditError, InputError, OutputError
from ctxedit.media.temporary import atomic
from ctxedit.media.write import write_clip
from ctxedit.metrics import Networks
from ctxedit.models.device import pick_device
from ctxedit.models.quiet import hush
from ctxedit.runs import fingerprint, slug
from ctxedit.storage import fetch_to

#: In the output folder while workers write to it.
_MARK = ".workers"


@dataclass(frozen=True)
class Job:
    """One method on one clip.

    Attributes:
        due: targets to edit towards, with their keys.
        references: references to measure as well: target, which one, key.
    """

    clip: Clip
    method: Method
    due: tuple[tuple[Target, str], ...]
    references: tuple[tuple[Target, str, str], ...] = ()


class _Named(Reporter):
    """Passes messages on, warnings with the clip's name."""

    def __init__(self, inner: Reporter, name: str) -> None:
        self.inner, self.name = inner, name
        self.say, self.task = inner.say, inner.task  # type: ignore[method-assign]

    def warn(self, text: str) -> None:
        self.inner.warn(text if self.name in text else f"{self.name}: {text}")


class Serving:
    """The work of a bench; the networks stay loaded from one job to the next."""

    def __init__(self, bench: Bench, token: str = "") -> None:
        self.bench, self._token = bench, token
        self._networks: Networks | None = None
        self._loaded = LoadedNetworks()

    def __reduce__(self) -> tuple[type[Serving], tuple[Bench, str]]:
        return Serving, (self.bench, self._token)

    @contextmanager
    def marked(self) -> Iterator[Serving]:
        """Mark the output folder while the block lasts, so that workers can verify that they see the same
        folder."""
        token, mark, store = uuid.uuid4().hex, self.bench.out / _MARK, self.bench.store
        if store is not None:
            store.write(_MARK, token.encode())
        else:
            with atomic(mark, True) as temporary:
                temporary.write_text(token)
        try:
            yield Serving(self.bench, token)
        finally:
            if store is not None:
                store.delete(_MARK)
            mark.unlink(missing_ok=True)

    def prepare(self) -> None:
        """Load the metrics' networks, so that missing ones are reported before the first edit.

        Raises:
            OutputError: the output folder is not the one that was marked.
        """
        if self._token and self._marked() != self._token.encode():
            place = self.bench.out if self.bench.store is None else self.bench.store.url
            raise OutputError(
                f"a worker on {platform.node()} cannot read {place}",
                "choose --out on storage that all workers share",
            )
        if os.environ.get("CTXEDIT_DEBUG", "") in ("", "0"):
            warnings.simplefilter("ignore")
            hush()
        device = pick_device(self.bench.methods[0].config.device)
        self._networks = prepared(self.bench.metrics, device, self.bench.offline)

    def _marked(self) -> bytes | None:
        """The mark as seen from this process."""
        if self.bench.store is not None:
            return self.bench.store.read(_MARK)
        mark = self.bench.out / _MARK
        return mark.read_bytes() if mark.is_file() else None

    def __call__(self, job: Job, reporter: Reporter) -> Iterator[ResultRow]:
        yield from _serve(self.bench, job, reporter, self._networks, self._loaded)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _serve(
    bench: Bench, job: Job, reporter: Reporter, networks: Networks | None, loaded: LoadedNetworks
) -> Iterator[ResultRow]:
    """The due edits of one method on one clip: one tuning and one inversion for all of them."""
    clip, method = job.clip, job.method
    meter, left = CostMeter(_Named(reporter, clip.name)), list(job.due)
    failed = False
    with Session(bench.request(clip, method), meter, loaded) as session:
        try:
            for url, copy in clip.remote:
                fetch_to(url, copy)
            parts = session.parts
            frames = len(parts.prepared.frames)
            with meter.watch(parts.backbone.networks[0], frames, parts.device):
                costs = _before_edits(session, meter)
                measure = Measure(parts.scorer, bench.metrics, networks)
                yield from _references(bench, job, session, measure)
                while left:
                    target, key = left[0]
                    row = _edit(bench, session, meter, measure, clip, method, target, key, dict(costs))
                    left.pop(0)
                    yield row
        except OutputError:
            raise
        except Exception as error:
            failed = True
            if not left:  # only references were due
                meter.warn(line(error))
            for target, key in left:
                yield row_for(key, method.label, clip, target, error=line(error))
    if failed:
        loaded.drop()
        # The exception refers to its frames, and they to the networks. A session that ends well is released
        # by its last reference; collecting would take 0.3 s.
        gc.collect()


def _before_edits(session: Session, meter: CostMeter) -> dict[str, dict[str, float]]:
    """Tune and invert; returns their costs, measured now or when they were first computed."""
    costs: dict[str, dict[str, float]] = {}
    for stage in ("tune", "invert"):
        key = session.key(stage)[1]
        ledger = Ledger(session.run.folder)
        # An interrupted tuning resumes, and so does its cost; an inversion starts over.
        note = ledger.add if stage == "tune" else ledger.put
        with meter.noting(stage, partial(note, stage, key)):
            session.bring(stage)
        if cost := ledger.of(stage, key):
            costs[stage] = cost.table()
    return costs


def _edit(
    bench: Bench, session: Session, meter: CostMeter, measure: Measure, clip: Clip, method: Method,
    target: Target, key: str, costs: dict[str, dict[str, float]],
) -> ResultRow:  # fmt: skip
    """One measured edit; an error becomes a row too, unless the disk cannot be written."""
    try:
        stage, stage_key = session.key("edit", target.prompt)
        ledger = Ledger(session.run.folder)
        with meter.noting("edit", partial(ledger.put, stage, stage_key)):
            result = session.edit(target.prompt)
        if cost := ledger.of(stage, stage_key):
            costs["edit"] = cost.table()
        made = session.run.facts(stage)
        frames = mapped(session.run.folder / made["frames"], "frames")
        figures = measure(frames, clip, target, truth(session, clip, target))
        video = _delivered(bench, clip, target, key, result.files.video)
        facts = {**_facts(session, measure, made), "video_hash": fingerprint(video)}
        where = os.path.relpath(video, bench.out)
        clip = replace(clip, prompt=session.prompt)
        return row_for(key, method.label, clip, target, figures, costs, facts, where)
    except OutputError:
        raise
    except Exception as error:
        return row_for(key, method.label, clip, target, error=line(error))


def _delivered(bench: Bench, clip: Clip, target: Target, key: str, video: Path) -> Path:
    """The delivered edit: a copy named by clip and target, if the bench asks for one."""
    if bench.results is None:
        return video
    name = f"{slug(clip.name)}-{slug(target.prompt)}-{key[:6]}{video.suffix}"
    copy = bench.out / bench.results / name
    with atomic(copy, True) as temporary:
        shutil.copyfile(video, temporary)
    deliver(bench, f"{bench.results}/{name}")
    return copy


def _references(bench: Bench, job: Job, session: Session, measure: Measure) -> Iterator[ResultRow]:
    """Figures of the unedited clip and of the true edit, once for each target."""
    clip = job.clip
    for target, which, key in job.references:
        known = truth(session, clip, target)
        try:
            frames = _shown(bench, session, clip, target, known, which)
        except InputError as error:  # for another method's video
            yield row_for(key, which, clip, target, error=line(error))
            continue
        name = f"references/{slug(clip.name)}-{slug(which)}" + (f"-{key[:6]}" if which != SOURCE else "")
        timed = session.parts.prepared.clip
        video = write_clip(
            bench.out / f"{name}.mp4", frames, timed.fps, durations=timed.durations,
            overwrite=True,
        )  # fmt: skip
        deliver(bench, f"{name}.mp4")
        figures = measure(frames, clip, target, known)
        facts = {"clip_model": measure.scorer.name, "video_hash": fingerprint(video)}
        yield row_for(key, which, clip, target, figures, {}, facts, os.path.relpath(video, bench.out))


def _shown(
    bench: Bench, session: Session, clip: Clip, target: Target, known: Truth, which: str
) -> NDArray[np.uint8]:
    """The frames of a reference or of another method's video."""
    if which == SOURCE:
        return known.source
    if which == IDEAL:
        assert known.ideal is not None
        return known.ideal
    method = next(one for one in bench.externals if one.label == which)
    video = method.find(clip, target)
    if video is None:
        raise InputError(f"no video of {which} for this target in {method.folder}")
    return external.read(video, session.config.clip, session.parts.prepared)


def _facts(session: Session, measure: Measure, made: Mapping[str, Any]) -> dict[str, Any]:
    """Facts of an edit; ``made`` are its run's, which may be from another machine."""
    config, parts = session.config, session.parts
    height_width = parts.prepared.frames.shape[1:3]
    return {
        "model": parts.backbone.name, "device": made.get("device", "?"), "dtype": made.get("dtype", "?"),
        "clip_model": measure.scorer.name, "frames": len(parts.prepared.frames),
        "size": [height_width[1], height_width[0]], "seed": config.seed, "adapter": config.adapter.enabled,
        "trained": _trained(session), "run": session.run.folder.name,
    }  # fmt: skip


def _trained(session: Session) -> int:
    """Number of tuned parameters, counted in the tuning's file."""
    file = session.run.folder / "tune" / "tuned.safetensors"
    if not session.config.tune.steps or not file.exists():
        return 0
    with safe_open(file, "pt") as tensors:
        return sum(int(np.prod(tensors.get_slice(name).get_shape())) for name in tensors.keys())  # noqa: SIM118


def row_for(
    key: str, method: str, clip: Clip, target: Target, figures: Values | None = None,
    costs: dict[str, dict[str, float]] | None = None, facts: dict[str, Any] | None = None,
    video: str | None = None, error: str | None = None,
) -> ResultRow:  # fmt: skip
    return ResultRow(
        key, method, clip.name, target.prompt, target.kind, clip.prompt,
        dict(figures or {}), costs or {}, facts or {}, video, error,
    )  # fmt: skip


def line(error: Exception | str) -> str:
    """An error as one line of a table."""
    if isinstance(error, str):
        text = error
    else:
        text = error.message if isinstance(error, CtxeditError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:300]
