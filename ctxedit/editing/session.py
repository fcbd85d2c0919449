"""A session walks the table of stages over one run folder: each stage at most once, and only when needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ctxedit.config import Config
from ctxedit.editing.footage import check_footage
from ctxedit.editing.keys import Caption, Keys, find_run, known_caption
from ctxedit.editing.loaded import LoadedNetworks
from ctxedit.editing.measuring import measure, work_of
from ctxedit.editing.parts import Parts, warn_of_unknown_words
from ctxedit.editing.reporter import Reporter
from ctxedit.editing.request import Request
from ctxedit.editing.result import EditResult as EditResult
from ctxedit.editing.round_trip import RoundTrip
from ctxedit.editing.speed import Stopwatch, note, speed_kind
from ctxedit.editing.stage import Stage, StageJob
from ctxedit.editing.stages import edit_files, edited_frames, figures, metadata_of, stage_named
from ctxedit.errors import InputError
from ctxedit.media.temporary import sweep
from ctxedit.metrics import Metric, Networks
from ctxedit.metrics import evaluate as evaluating
from ctxedit.metrics.registry import usual
from ctxedit.prompts import plain
from ctxedit.runs import Run
from ctxedit.stages import report as reporting
from ctxedit.stages.long import Stored
from ctxedit.stages.passes import Kept
from ctxedit.stages.wording import check_describes


class Session:
    """One clip and one preset: stages on demand, over a run folder.

    Args:
        request: the clip, its settings, where results go.
        reporter: receives messages and progress.
        loaded: networks that stay loaded from session to session; None loads this one's own.

    Attributes:
        parts: networks, frames, masks.
        keys: what each stage depends on.
        probe: asked after every tuning step; see :func:`ctxedit.stages.tune.tune`.
    """

    def __init__(
        self, request: Request, reporter: Reporter | None = None, loaded: LoadedNetworks | None = None
    ) -> None:
        self.request = request
        self.parts, self.keys = Parts(request, reporter or Reporter(), loaded), Keys(request)
        self.probe: Callable[[int], float | None] = lambda step: None
        self._tuned = False
        self._made: set[str] = set()
        self._round_trip: RoundTrip | None = None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *error: Any) -> None:
        self.parts.close(*error)

    @property
    def config(self) -> Config:
        """The settings."""
        return self.request.config

    @property
    def reporter(self) -> Reporter:
        """Receives messages and progress."""
        return self.parts.reporter

    @reporter.setter
    def reporter(self, reporter: Reporter) -> None:
        self.parts.reporter = reporter

    # -- the source prompt and the run folder ----------------------------------------------------------------

    @cached_property
    def caption(self) -> Caption:
        """The source prompt: given, of an earlier run, or captioned now."""
        if self.request.prompt is not None and not self.request.prompt.strip():
            raise InputError("the prompt is empty", "omit it to caption the clip")
        if known := known_caption(self.request, self.keys):
            return known
        stage = stage_named("caption")
        made = stage.make(StageJob(self.parts, stage.name))
        return Caption(made.value, self.keys.caption(), dict(made.facts))

    @property
    def prompt(self) -> str:
        """The source prompt's text."""
        return self.caption.text

    @cached_property
    def run(self) -> Run:
        """The run folder of these inputs; made where there is none."""
        request, caption = self.request, self.caption
        run = find_run(request, self.keys, caption.text)
        if run is None:
            run = Run.create(
                request.runs, request.clip, request.preset, request.config,
                self.keys.identity(caption.text), self.reporter.warn,
            )  # fmt: skip
        if request.run is None:
            given = request.prompt is not None
            noted = run.facts("caption").get("text") == caption.text
            if not (noted and (given or run.done("caption", caption.key))):
                run.finish("caption", caption.key, [], **{**caption.facts, "text": caption.text})
        return run

    @contextmanager
    def working(self) -> Iterator[None]:
        """Hold the run folder for a stage; another process that holds it is waited for, which is reported."""
        with self.run.working(self.reporter.say):
            yield

    # -- the walk --------------------------------------------------------------------------------------------

    def key(self, stage: str, target: str = "") -> tuple[str, str]:
        """A stage's name in the run folder, and its key."""
        found = stage_named(stage)
        return found.name_of(self.keys, self.prompt, target), found.key(self.keys, self.prompt, target)

    def bring(self, stage: str, target: str = "") -> Any:
        """A stage's value: read where it is done, else made, with the stages that it needs."""
        with self.working():
            return self._bring(stage, target)

    def _bring(self, name: str, target: str) -> Any:
        if name == "tune":  # the networks hold its result: once a session
            return None if self._tuned else self.tune()
        return self._walk(stage_named(name), target)

    def _walk(self, stage: Stage, target: str = "") -> Any:
        job = self._job(stage, target)
        if not stage.applies(self.config):
            return stage.absent(job)
        if self._done(stage, job):
            return stage.read(job)
        needed = {name: self._bring(name, target) for name in stage.needs}
        return self._make(stage, replace(job, needed=needed))

    def _job(self, stage: Stage, target: str) -> StageJob:
        name, key = self.key(stage.name, target)
        if not stage.each_target:
            return StageJob(self.parts, name, key, self.run.folder, self.prompt, target, probe=self.probe)
        edit_name, frames_name = name.partition("/")[2], self.keys.frames_name(self.prompt, target)
        return StageJob(self.parts, name, key, self.run.folder, self.prompt, target, edit_name, frames_name)

    def _done(self, stage: Stage, job: StageJob) -> bool:
        """Whether a stage can be skipped; damaged files that require it again are reported."""
        if not stage.keeps:
            return False
        status = self.run.stage_status(job.name, job.key)
        if status.flaw:
            self.reporter.warn(f"{status.flaw}: {stage.again} again")
        # Two stages may need a third one, which is made once for both.
        again = stage.each_target and self.request.overwrite and job.name not in self._made
        return status.done and not again

    def _make(self, stage: Stage, job: StageJob) -> Any:
        with self._measuring(stage, job):
            made = stage.make(job)
        if made.outputs:
            replaces = self.request.overwrite or self.request.output is None
            self.run.publish(job.name, job.key, made.outputs, made.write, replaces, made.files, **made.facts)
        elif stage.keeps:
            self.run.finish(job.name, job.key, made.files, **made.facts)
        self._made.add(job.name)
        return made.value

    @contextmanager
    def _measuring(self, stage: Stage, job: StageJob) -> Iterator[None]:
        """Keep how long a stage's passes of the network took, for the plans to come."""
        source = self.parts.kept_source
        kept: Kept = "no" if source is None else "before" if source.whole else "now"
        passes = stage.passes(self.config, self.prompt, job.target, kept)
        if not passes:
            yield
            return
        outer = self.reporter
        self.reporter = watch = Stopwatch(outer)
        try:
            yield
        finally:
            self.reporter = outer
        if (seconds := watch.seconds()) is not None:
            note(work_of(speed_kind(stage.name), self.parts), seconds / passes)

    def measure(self, kinds: Iterable[str]) -> None:
        """Time one pass of each kind of work (``pass``, ``tune``) not yet measured on this machine."""
        measure(self.parts, self.prompt, kinds)

    # -- stages by name --------------------------------------------------------------------------------------

    def tune(self) -> Run:
        """Tune unless it is done; resumes a killed tuning.

        Raises:
            InputError: the built-in models do not know the footage.
        """
        with self.working():
            if not self.run.done(*self.key("tune")):
                check_footage(self.parts, self.prompt)
            self._walk(stage_named("tune"))
            self._tuned = True
            self._walk(stage_named("adapter"))
            (self.run.folder / "tune" / "state.pt").unlink(missing_ok=True)
        return self.run

    def invert(self) -> Tensor | Stored:
        """The inverted trajectory (S + 1, F, C, h, w), made or reused; level 0 alone where none is needed.

        Of a clip in windows it is on disk.
        """
        with self.working():
            if not self._tuned:
                self.tune()
            trajectory: Tensor | Stored = self._walk(stage_named("invert"))
            return trajectory

    def round_trip(self) -> RoundTrip | None:
        """How well the clip comes back from its inversion, reported once; None if switched off."""
        if self._round_trip is None and not self.parts.long:
            with self.working():
                self._round_trip = self._walk(stage_named("round trip"))
        return self._round_trip

    def edit(self, target: str) -> EditResult:
        """Edit towards a target and write the three files; reused where it is done already."""
        self.check_target(target)
        with self.working():
            stage = stage_named("edit")
            job = self._job(stage, target)
            files = edit_files(self.request, job.folder, job.edit_name)
            sweep(files.video.parent)
            if self._done(stage, job):
                # An older ctxedit kept the frames under the edit's own name.
                kept = self.run.facts(job.name).get("frames", job.frames_file)
                return EditResult(target, files, True, job.folder / kept)
            self.round_trip()
            needed = {name: self._bring(name, target) for name in stage.needs}
            self._make(stage, replace(job, needed=needed))
        return EditResult(target, files, False, job.folder / job.frames_file)

    def edit_all(self, targets: Sequence[str]) -> list[EditResult]:
        """All stages; one tuning and one inversion serve every target. Targets are checked first."""
        for target in targets:
            self.check_target(target)
        # A metric that cannot be computed is known now, and not when the edits are made.
        chosen, networks = usual("run"), Networks(None, self.parts.device, self.request.offline)
        evaluating.prepare(chosen, networks)
        self.tune()
        self.invert()
        self.round_trip()
        results = []
        for target in targets:
            result = self.edit(target)
            name, beside = self.key("edit", target)[0], networks.with_clip(self.parts.scorer)
            results.append(replace(result, figures=self.evaluate(name, chosen, beside)))
        return results

    def edited_frames(self, target: str, trajectory: Tensor) -> NDArray[np.uint8]:
        """RGB uint8 (F, h, w, 3) of an edit at working size, not written."""
        return edited_frames(self.parts, self.prompt, target, trajectory)

    def edit_files(self, target: str) -> reporting.OutputFiles:
        """Where the edit towards a target leaves its results."""
        return edit_files(self.request, self.run.folder, self.keys.edit_name(self.prompt, target))

    def metadata(self, target: str) -> str | None:
        """The text that the files of an edit carry: how it is made. None where they carry none."""
        return metadata_of(self._job(stage_named("edit"), target))

    def evaluate(
        self, name: str, chosen: Sequence[Metric] | None = None, networks: Networks | None = None
    ) -> evaluating.Figures:
        """Scores of a finished edit, by its name in the run folder; the usual ones unless ``chosen``."""
        facts = self.run.facts(name)
        frames = self.run.folder / facts["frames"]
        return figures(self.parts, frames, facts["target"], self.prompt, chosen, networks)

    def evaluate_run(
        self, chosen: Sequence[Metric] | None = None, weights: Mapping[str, str] | None = None
    ) -> list[dict[str, Any]]:
        """Figures of every finished edit of the run; the caller writes them to ``metrics.json``.

        An edit whose frames are damaged is left out, with a warning.

        Raises:
            InputError: there is no edit to score.
        """
        rows = []
        networks = Networks(self.parts.scorer, self.parts.device, self.request.offline, weights)
        for name in self.run.edits():
            facts = self.run.facts(name)
            if flaw := self.run.flaw_of(name, str(facts.get("frames", "its frames"))):
                self.reporter.warn(f"{flaw}: not scored; `ctxedit edit` with the same target makes it again")
                continue
            table = self.evaluate(name, chosen, networks).table()
            known: dict[str, Any] = {k: facts[k] for k in ("target", "video", "settings") if k in facts}
            rows.append({**known, **table})
        if not rows:
            raise InputError(
                f"{self.run.folder} has no edits to score",
                "make one with `ctxedit edit --target TEXT`",
            )
        return rows

    def check_target(self, target: str) -> None:
        """Raise InputError for a target that gives an order, or is too long for the text encoder."""
        if not target.strip():
            raise InputError("the target is empty", "describe what the edited clip should show")
        target = plain(target)
        if not self.request.overwrite:
            check_describes(target, self.prompt)
        self.parts.backbone.words(target)
        self.parts.backbone.words(self.prompt)
        warn_of_unknown_words(self.parts.backbone, target, self.reporter)
