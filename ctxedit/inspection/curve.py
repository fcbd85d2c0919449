"""How a tuning went: loss, shift and CLIP-text of edits over its steps, as CSV and picture (figure 11)."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ctxedit.config import Config
from ctxedit.editing.plan import Plan, PlannedStage, make
from ctxedit.editing.request import Request
from ctxedit.editing.session import Session
from ctxedit.editing.speed import Work, seconds_of
from ctxedit.editing.stages import invert_now
from ctxedit.errors import ConfigError
from ctxedit.media.temporary import atomic
from ctxedit.metrics import formulas as metrics
from ctxedit.models.device import name_of, pick_device
from ctxedit.prompts import plain
from ctxedit.stages import invert
from ctxedit.stages.edit import InvertedClip, edit, network_passes
from ctxedit.stages.tune import ADAPTER

#: A log's figures, with what the picture calls them.
_FIGURES = {"loss": "loss", "shift": "‖shift‖ / ‖signal‖", "clip_text": "CLIP-text of an edit"}
#: Steps that the loss is averaged over: each is of one random level.
_SMOOTH = 10

Row = Mapping[str, Any]


@dataclass(frozen=True)
class CurveFiles:
    """Paths of a curve."""

    table: Path
    picture: Path


def tune_with_curve(session: Session, target: str, every: int, compare: bool = False) -> CurveFiles:
    """Tune, and see what comes of it on the way: loss, shift and CLIP-text of an edit over the steps.

    The edits are sampled with the weights as they are then, and change nothing of the tuning. One that is
    done already is not repeated: its curve has the samples that were taken while it ran.

    Args:
        session: the clip, its prompt and settings.
        target: target prompt of the sampled edits.
        every: sample after so many steps, and after the last.
        compare: tune once more with the adapter switched over, in a run of its own, and draw both.

    Returns:
        ``curve.csv`` and ``curve.png`` in the run's ``tune`` folder.
    """
    logs: dict[str, list[dict[str, Any]]] = {}
    if compare:
        request = replace(session.request, config=_toggled(session.config), prompt=session.prompt)
        # First, and closed again: two networks need not be in memory at once.
        with Session(request, session.reporter) as other:
            logs[_label(other.config)] = _tuned_while_sampling(other, target, every)
    logs[_label(session.config)] = _tuned_while_sampling(session, target, every)
    return write(dict(sorted(logs.items())), session.run.folder / "tune")


def _toggled(config: Config) -> Config:
    """The settings with the adapter switched over.

    Raises:
        ConfigError: no adapter is trained.
    """
    if ADAPTER not in config.tune.trainable_modules:
        raise ConfigError(
            "the comparison needs an adapter that is trained: tune.trainable_modules does not name it",
            "choose a preset with +adapter",
        )
    return replace(config, adapter=replace(config.adapter, enabled=not config.adapter.enabled))


def _label(config: Config) -> str:
    return "with the adapter" if config.adapter.enabled else "without the adapter"


def with_samples(plan: Plan, request: Request, every: int | None, compare: bool) -> Plan:
    """A tuning's plan with the edits that are sampled, and with the second tuning of a comparison.

    Args:
        plan: of the tuning.
        request: its request, with the target of the sampled edits.
        every: as in :func:`tune_with_curve`; None for no samples.
        compare: as in :func:`tune_with_curve`.

    Raises:
        ConfigError: a comparison without an adapter that is trained.
    """
    if every is None:
        return plan
    stages = [*plan.stages, *_samples(plan, request, every)]
    if compare:
        config = _toggled(request.config)
        other = replace(request, config=config)
        planned = make(other, "tune")
        name = f"tune {_label(config)}"
        again = [replace(row, name=name) for row in planned.stages if row.name == "tune"]
        stages += [*again, *_samples(planned, other, every)]
    return replace(plan, stages=tuple(stages))


def _samples(plan: Plan, request: Request, every: int) -> list[PlannedStage]:
    """A row for the edits that are sampled while a clip is tuned; none where it is tuned already."""
    config = request.config
    count = len({*range(every, config.tune.steps + 1, every), config.tune.steps} - {0})
    if not count or any(row.name == "tune" and row.reused for row in plan.stages):
        return []
    like = next(row for row in make(request, "edit").stages if row.name.startswith("edit "))
    passes = network_passes(config, plan.prompt, request.targets[0], "no")
    if config.edit.start == "inversion":
        passes += invert.network_passes(config)
    work = Work("pass", config, name_of(pick_device(plan.device)), plan.dtype, plan.padded_size)
    passes *= count
    name, seconds = f"sampled edits ({count})", seconds_of(work, passes)
    return [replace(like, name=name, reused=False, evaluations=passes, seconds=seconds)]


def _tuned_while_sampling(session: Session, target: str, every: int) -> list[dict[str, Any]]:
    """Tune; returns the log's rows."""
    session.check_target(target)
    steps = session.config.tune.steps

    def probe(step: int) -> float | None:
        if step % every and step != steps:
            return None
        return _clip_text_now(session, target)

    session.probe = probe
    session.reporter.say(f"tuning {_label(session.config)}")  # a comparison has two
    rows = read_log(session.tune().folder / "tune" / "log.jsonl")
    if steps and not any(row.get("clip_text") is not None for row in rows):
        session.reporter.warn(
            f"{session.run.folder} was tuned before, without samples: tune with another --seed, or remove it"
        )
    return rows


def _clip_text_now(session: Session, target: str) -> float:
    """CLIP-text of an edit with the present weights; nothing is stored."""
    config, parts = session.config, session.parts
    trajectory = parts.latents[None]
    if config.edit.start == "inversion":
        trajectory = invert_now(parts, session.prompt)
    levels = parts.backbone.levels(config.edit.steps)
    inverted = InvertedClip(parts.backbone, session.prompt, trajectory, levels, parts.view)
    frames = parts.backbone.decode(edit(inverted, target, config, parts.shift(plain(target))))
    images = parts.scorer.embed_images(parts.prepared.unpad(frames))
    return metrics.clip_text(images, parts.scorer.embed_texts([plain(target)]))


def read_log(file: Path) -> list[dict[str, Any]]:
    """The rows that tuning wrote, in order; a line that was cut short or damaged ends them."""
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(row, dict):
            break
        rows.append(row)
    return rows


def write(logs: Mapping[str, Sequence[Row]], folder: Path) -> CurveFiles:
    """Write ``curve.csv`` and ``curve.png``.

    Args:
        logs: a name (``with adapter``) and the rows of each tuning: step, loss, shift, clip_text or None.
        folder: where to.
    """
    files = CurveFiles(folder / "curve.csv", folder / "curve.png")
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["tuning", "step", *_FIGURES])
    for name, rows in logs.items():
        for row in rows:
            values = [row.get(k) for k in _FIGURES]
            table.writerow([name, row["step"], *("" if v is None else f"{v:.6g}" for v in values)])
    with atomic(files.table, True) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")
    with atomic(files.picture, True) as temporary:
        _draw(logs, temporary)
    return files


def _draw(logs: Mapping[str, Sequence[Row]], path: Path) -> None:
    """One panel for each figure that any tuning has."""
    # The object interface: no display is asked for, and no global state is left.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [k for k in _FIGURES if any(row.get(k) is not None for rows in logs.values() for row in rows)]
    figure = Figure(figsize=(4.2 * len(shown), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, key in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        for name, rows in logs.items():
            points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
            if not points:
                continue
            steps, values = zip(*points, strict=True)
            if key == "clip_text":
                axes.plot(steps, values, marker="o", label=name)
            else:
                (line,) = axes.plot(steps, values, alpha=0.25)
                axes.plot(steps, _smooth(values), color=line.get_color(), label=name)
        axes.set(xlabel="tuning step", title=_FIGURES[key])
        axes.grid(alpha=0.3)
    figure.axes[0].legend()
    figure.savefig(path, format="png", dpi=110)


def _smooth(values: Sequence[float]) -> list[float]:
    """The mean of each value and those up to ``_SMOOTH − 1`` before it."""
    windows = (values[max(0, i - _SMOOTH + 1) : i + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]
