"""The plan of a comparison: everything that can be checked before any weights are loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

from ctxedit.bench import sweep
from ctxedit.bench.checks import Checks
from ctxedit.bench.delivery import results_of
from ctxedit.bench.listing import Clip
from ctxedit.bench.report import files_in
from ctxedit.bench.results import NAME
from ctxedit.bench.subject import REFERENCES, Bench, Method, settings_for
from ctxedit.bench.sweep import Axis
from ctxedit.config import Config
from ctxedit.editing import plan
from ctxedit.editing.checks import Ahead, Inspected
from ctxedit.editing.checks import check_ahead as check_request
from ctxedit.editing.paths import Input, Paths
from ctxedit.editing.session import Session
from ctxedit.editing.speed import WORTH_MEASURING, Work, seconds_of
from ctxedit.errors import ConfigError
from ctxedit.media.geometry import Fit
from ctxedit.models.control_maps import computed_map


@dataclass(frozen=True)
class Preview:
    """Counts and estimates.

    Attributes:
        edits: methods × targets.
        done: those that are already finished.
        evaluations: remaining passes of the network over a clip, by method.
        works: the same passes for estimating their time: (method, kind of work on a clip, passes).
        peak_bytes: the largest stage's memory, estimated.
        failing: clips, or clips and targets, that cannot be edited, with the reason.
        refused: their edits by key, which become rows with that error.
    """

    edits: int
    done: int
    evaluations: dict[str, int]
    peak_bytes: int
    failing: dict[str, str]
    works: tuple[tuple[str, Work, int], ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)

    @property
    def seconds(self) -> dict[str, float | None]:
        """How long each method's passes take, according to measurements on this machine; None if unknown."""
        found: dict[str, float | None] = dict.fromkeys(self.evaluations, 0.0)
        for method, work, passes in self.works:
            before, more = found[method], seconds_of(work, passes)
            found[method] = None if before is None or more is None else before + more
        return found

    @property
    def total_seconds(self) -> float | None:
        """The sum over all methods; None if one is unknown."""
        each = list(self.seconds.values())
        return None if None in each else sum(one for one in each if one is not None)

    def table(self) -> dict[str, Any]:
        """As plain values for JSON."""
        table = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("works", "refused")}
        return {**table, "seconds": self.seconds}


def measure(bench: Bench, preview: Preview) -> None:
    """Time a pass and a tuning step of every method not yet measured on this machine, on the first clip."""
    for clip in bench.clips:
        if clip.prompt and clip.name not in preview.failing:
            break
    else:
        return
    for method in bench.methods:
        known = preview.seconds.get(method.label, 0.0) is not None
        if not known and preview.evaluations[method.label] >= WORTH_MEASURING:
            with Session(bench.request(clip, method, [target.prompt for target in clip.targets])) as session:
                session.measure(work.kind for label, work, _ in preview.works if label == method.label)


def methods(
    presets: Sequence[str], load: Callable[[str, Mapping[str, Any]], Config], axes: Sequence[Axis] = ()
) -> tuple[Method, ...]:
    """Methods by preset name or file, each at every point of the grid of ``axes``.

    ``load`` returns the settings of a preset, overridden by a nested table.

    Raises:
        ConfigError: none, an unknown preset, two of one name, or a name that the tables reserve.
    """
    if not presets:
        raise ConfigError("no presets given", "e.g. --presets ddim,contextdiff; see `ctxedit presets ls`")
    found: dict[str, Method] = {}
    for name in presets:
        label = Path(name).stem if name.endswith(".toml") else name
        if label in found:
            raise ConfigError(f"two presets are named {label!r}", "name each once; rename a file's copy")
        if label in REFERENCES:
            raise ConfigError(f"a preset cannot be called {label!r} here", "rename the file")
        found[label] = Method(label, name, load(name, {}))
    return tuple(
        Method(method.label + suffix, method.preset, load(method.preset, table) if table else method.config)
        for method in found.values()
        for suffix, table in sweep.points(method.config, axes)
    )


def check_labels(labels: Sequence[str]) -> None:
    """Raise ConfigError for a label that occurs twice or that the tables reserve."""
    for label in labels:
        if label in REFERENCES or labels.count(label) > 1:
            raise ConfigError(
                f"a method cannot be called {label!r} here", "choose another name for --external"
            )


def make(bench: Bench) -> Preview:
    """Check every method on every clip, and list the remaining work, without loading weights.

    Raises:
        ConfigError: a method asks for a control that a clip lacks; settings that a model does not support.
        InputError: none of the edits can be made.
        WeightsError, ResourceError, OutputError: see :func:`ctxedit.editing.plan.make`.
    """
    paths(bench).check()
    for clip in bench.clips:
        for method in bench.methods:
            _check_control(clip, method)
    results, checks = results_of(bench), Checks(bench, plan.make, _fit_of_plan)
    edits = done = peak = 0
    left: dict[str, int] = {}
    works: list[tuple[str, Work, int]] = []
    for clip in bench.clips:
        for method in bench.methods:
            settings = settings_for(clip, method)
            keys = [(t, bench.key(clip, t, method.label, settings)) for t in clip.targets]
            due = [(t, key) for t, key in keys if bench.overwrite or not results.done(key)]
            edits, done = edits + len(clip.targets), done + len(clip.targets) - len(due)
            made = checks(clip, method, due)
            if made is None:
                continue
            made.check()
            stages = [stage for stage in made.stages if not stage.reused]
            left[method.label] = left.get(method.label, 0) + sum(s.evaluations for s in stages)
            works += [(method.label, *work) for work in made.works(settings)]
            peak = max([peak, *(s.peak_bytes for s in stages)])
    if len(checks.refused) == edits:
        checks.give_up()
    return Preview(edits, done, left, peak, checks.failing, tuple(works), checks.refused)


def check_ahead(bench: Bench, warn: Callable[[str], None], ahead: Ahead) -> None:
    """Check every method on every clip before the weights of these repositories are fetched.

    An edit that cannot be made is a warning, as it will be a row of the table with that error.

    Raises:
        ConfigError, InputError, WeightsError, OutputError: as of :func:`make`.
    """
    paths(bench).check()
    checks = Checks(bench, partial(check_request, ahead=ahead), _fit_of_check)
    edits = [(clip, method) for clip in bench.clips for method in bench.methods]
    for clip, method in edits:
        _check_control(clip, method)
        checks(clip, method, [(t, f"{clip.name} {method.label} {t.prompt}") for t in clip.targets])
    if len(checks.refused) == sum(len(clip.targets) for clip, _ in edits):
        checks.give_up()
    for name, why in checks.failing.items():
        warn(f"{name}: {why}")


def _fit_of_check(found: Inspected | None) -> Fit | None:
    return None if found is None else found.fit


def _fit_of_plan(made: plan.Plan) -> Fit:
    return Fit(*made.source_size, *made.working_size, *made.padded_size)


def paths(bench: Bench) -> Paths:
    """What a comparison reads and writes."""
    inputs = [Input(path, "list or its settings") for path in bench.sources]
    for clip in bench.clips:
        inputs.append(Input(clip.path, "clip", True))
        brought = [clip.mask, clip.control, *(p for t in clip.targets for p in (t.mask, t.ideal))]
        inputs += [Input(path, "mask, map or ideal edit", True) for path in brought if path is not None]
    names = (NAME, "references", *(path.name for path in astuple(files_in(bench.out))))
    return Paths(tuple(inputs), tuple((name, bench.out / name) for name in names), (bench.out / "runs",))


def _check_control(clip: Clip, method: Method) -> None:
    control = settings_for(clip, method).control
    if control.kind == "video" and not control.map and not computed_map(control.model):
        raise ConfigError(
            f"{method.label} takes a control map, and the clip {clip.name!r} has none",
            "give the clip a `control` in the list, or leave the preset out",
        )
