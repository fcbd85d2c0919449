"""Shared by commands that use a run folder: checks, the printed plan, and choosing the run."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ctxedit.cli.failures import resumable
from ctxedit.cli.output import Screen, columns, pairs
from ctxedit.errors import counted
from ctxedit.runs import Run

if TYPE_CHECKING:
    from ctxedit.editing.plan import Plan, PlannedStage
    from ctxedit.editing.request import Request
    from ctxedit.editing.session import Session
    from ctxedit.stages.report import OutputFiles


def checked(
    request: Request, last: str, screen: Screen, dry_run: bool,
    complete: Callable[[Plan], Plan] = lambda plan: plan,
) -> Plan | None:  # fmt: skip
    """Check everything that can be checked; print the plan of a dry run. Returns the plan to carry out.

    ``complete`` adds to the plan what the command does besides the stages.
    """
    from ctxedit.editing import plan

    made = complete(plan.make(request, last))
    if dry_run:
        screen.result(describe(made), {"plan": made.table()})
    made.check()
    if not dry_run:
        about = f", about {duration(made.seconds)}" if made.seconds else ""
        screen.say(f"seed {request.config.seed}, preset {request.preset}{about}")
    return None if dry_run else made


def say_duration(session: Session, plan: Plan, screen: Screen) -> None:
    """Print how long a plan takes that has no estimate yet, by timing one pass and one tuning step."""
    from ctxedit.editing.speed import WORTH_MEASURING, seconds_of

    works = plan.works(session.config)
    if plan.seconds is not None or sum(passes for _, passes in works) < WORTH_MEASURING:
        return
    session.measure(work.kind for work, _ in works)
    each = [seconds_of(work, passes) for work, passes in works]
    if None not in each:  # an upscaler is measured while it works
        seconds = sum(one for one in each if one is not None)
        screen.say(f"about {duration(seconds)} of network passes, by a short measurement on this machine")


def folder_of(session: Session) -> Path:
    """The session's run folder; finding it may need a caption of the clip."""
    with resumable(None):
        return session.run.folder


def chosen_run(folder: Path | None, runs: Path, screen: Screen, clip: Path | None = None) -> Run:
    """The named run, or else the newest one (of ``clip`` if given), which is printed."""
    if folder is not None:
        return Run(folder)
    run = Run.newest(runs, screen.warn, clip)
    screen.say(f"run: {run.folder} (the newest{f' of {clip.name}' if clip else ''})")
    return run


def say_other_files(screen: Screen, files: OutputFiles) -> None:
    """Print what is written next to an edited video, whose own path is the result."""
    screen.say(f"also written: {files.side_by_side}, {files.sheet}")


def describe(plan: Plan) -> str:
    """The plan as text."""
    work, padded = _size(plan.working_size), _size(plan.padded_size)
    handling = f"{gib(plan.reading_bytes)} to read the clip"
    if plan.writing_bytes:
        handling += f", {gib(plan.writing_bytes)} to write an edit"
    frames = counted(plan.frames, "frame")
    facts = [
        ("clip", f"{plan.clip}: {frames}, {_rate(plan.fps)} a second, {_size(plan.source_size)}"),
        ("sizes", f"working {work}, padded {padded}"),
        ("model", f"{plan.model}, {plan.parameters / 1e6:.1f} M parameters, {plan.device}, {plan.dtype}"),
        *([("control", plan.control)] if plan.control else []),
        *([("windows", _windows(plan))] if plan.windows > 1 else []),
        *([("upscaler", f"{plan.upscaler}, to {_size(plan.output_size)}")] if plan.upscaler else []),
        *(("note", note) for note in plan.notes),
        ("run", plan.run or "a new one"),
        ("prompt", plan.prompt or "by the captioner"),
        ("seed", str(plan.seed)),
        ("memory", f"{gib(plan.memory_available)} available; {handling}"),
        ("disk", f"{gib(plan.disk_needed)} needed, {gib(plan.disk_free)} free"),
        ("time", _time(plan)),
    ]
    rows = [("stage", "does", "evaluations", "time (estimate)", "peak memory (estimate)")]
    rows += [
        (
            stage.name,
            "reused" if stage.reused else "runs",
            _passes(stage, plan),
            "-" if stage.seconds is None else duration(stage.seconds),
            "-" if stage.reused else gib(stage.peak_bytes),
        )
        for stage in plan.stages
    ]
    return f"{pairs(facts)}\n\n{columns(rows)}"


def _windows(plan: Plan) -> str:
    return f"{plan.windows} of {plan.window_frames} frames, neighbours share up to {plan.shared_frames}"


def _time(plan: Plan) -> str:
    if plan.seconds is None:
        return "not known on this machine yet: measured when the run begins"
    return f"about {duration(plan.seconds)}" if plan.seconds else "nothing to compute"


def _passes(stage: PlannedStage, plan: Plan) -> str:
    if stage.reused or not stage.evaluations:
        return "-"
    beside = ", and the ControlNet as many" if stage.control_evaluations else ""
    if stage.name.startswith("upscale "):
        from ctxedit.models.upscalers.base import CHUNK, chunk_count

        chunks = chunk_count(plan.frames)
        clip = f"{chunks} chunks × {CHUNK} frames" if chunks > 1 else counted(plan.frames, "frame")
        return f"{stage.evaluations} × {clip}"
    # A tuning step sees one window, or less; all else goes through all of them.
    windows = f"{plan.windows} windows × " if plan.windows > 1 and stage.name.split(" ")[0] != "tune" else ""
    return f"{stage.evaluations} × {windows}{counted(stage.frames, 'frame')}{beside}"


def duration(seconds: float) -> str:
    """Seconds as text, in one or two units."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def gib(count: int) -> str:
    """Bytes as text."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**27 else f"{count / 2**20:.1f} MiB"


def _rate(fps: object) -> str:
    return re.sub(r"/1$", "", str(fps))


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}×{size[1]}"
