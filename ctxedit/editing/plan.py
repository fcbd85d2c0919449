"""What a command is about to do, found out without loading a weight; everything that can be checked is.

The order of the checks is what a user can fix fastest first: words, files, sizes, models, memory, disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from ctxedit.config import Config
from ctxedit.editing import machine
from ctxedit.editing.checks import Inspected, Known, check
from ctxedit.editing.costs import Costs
from ctxedit.editing.request import Request
from ctxedit.editing.speed import Work, seconds_of, speed_kind
from ctxedit.editing.stage import Stage
from ctxedit.editing.stages import stage_named, up_to
from ctxedit.media.geometry import Fit
from ctxedit.media.memory import pasting_bytes, writing_bytes
from ctxedit.media.read import Clip
from ctxedit.media.write import check_size, even_note, holds_audio
from ctxedit.models.device import name_of, pick_device, pick_dtype
from ctxedit.models.weights import Checkpoint
from ctxedit.stages.passes import Kept


@dataclass(frozen=True)
class PlannedStage:
    """One row: whether the stage is done, passes of the network over the clip, peak memory (estimated).

    ``control_evaluations`` are passes of the ControlNet beside it. ``seconds`` is how long the passes
    take (estimated); None where nothing like them was measured on this machine. ``frames`` is how many a
    pass has: all of a window, or fewer in tuning.
    """

    name: str
    reused: bool
    evaluations: int
    peak_bytes: int
    control_evaluations: int = 0
    seconds: float | None = None
    frames: int = 0


@dataclass(frozen=True)
class Plan:
    """Sizes are (width, height) in pixels; ``run`` is None while there is no run folder yet.

    ``control`` says what the ControlNet is shown, and which one it is; None without one. ``reading_bytes``
    and ``writing_bytes`` are peaks in main memory (estimated). The clip is worked in ``windows`` of
    ``window_frames`` frames each, of which neighbours share up to ``shared_frames``. ``notes`` is what is
    done to the clip and to the output that the user should know. ``upscaler`` is the model of the
    super-resolution, None without it.
    """

    clip: str
    model: str
    parameters: int
    device: str
    dtype: str
    seed: int
    run: str | None
    prompt: str | None
    targets: tuple[str, ...]
    frames: int
    fps: Fraction
    source_size: tuple[int, int]
    working_size: tuple[int, int]
    padded_size: tuple[int, int]
    stages: tuple[PlannedStage, ...]
    memory_available: int
    disk_free: int
    disk_needed: int
    control: str | None = None
    reading_bytes: int = 0
    writing_bytes: int = 0
    notes: tuple[str, ...] = ()
    output_size: tuple[int, int] = (0, 0)
    upscaler: str | None = None
    windows: int = 1
    window_frames: int = 0
    shared_frames: int = 0

    def table(self) -> dict[str, Any]:
        """As plain values for JSON; the frame rate is a fraction in text."""
        return {**asdict(self), "fps": str(self.fps)}

    def works(self, config: Config) -> list[tuple[Work, int]]:
        """Kinds of network passes, and how many of each; ``config`` is the request's."""
        device = name_of(pick_device(self.device))
        return [
            (Work(speed_kind(stage.name.split(" ")[0]), config, device, self.dtype, self.padded_size), n)
            for stage in self.stages if (n := stage.evaluations)
        ]  # fmt: skip

    @property
    def seconds(self) -> float | None:
        """Seconds of all network passes; None if one of the kinds was not measured on this machine."""
        each = [stage.seconds for stage in self.stages if stage.evaluations]
        return None if None in each else sum(one for one in each if one is not None)

    def check(self) -> None:
        """Raises ResourceError when a stage wants more memory than there is, OutputError for the disk."""
        for stage in self.stages:
            if not stage.reused:
                machine.check_memory(stage.name, stage.peak_bytes, self.memory_available)
        if any(stage.name.startswith("edit ") and not stage.reused for stage in self.stages):
            machine.check_handling("writing the edit", self.writing_bytes)
        machine.check_disk(self.disk_needed, self.disk_free)


def make(request: Request, last: str = "evaluate") -> Plan:
    """Check a request and say what its stages up to ``last`` will do. Errors as they would come."""
    config, device = request.config, pick_device(request.config.device)
    dtype = pick_dtype(config.dtype, device)
    known = Known(request)
    inspected = check(request, known)
    checkpoint, body, fit = inspected.checkpoint, inspected.body, inspected.fit
    costs = Costs(
        config, request.offline, checkpoint.own, body, fit, dtype, inspected.control, inspected.upscaler,
        device.type, len(request.targets),
    )  # fmt: skip
    size = (fit.padded_width, fit.padded_height)
    stages, disk = _rows(request, last, known, costs, (name_of(device), str(dtype).split(".")[-1], size))
    run = known.run
    return Plan(
        str(request.clip), checkpoint.name, body.parameters, str(device), str(dtype).split(".")[-1],
        config.seed, str(run.folder) if run else None, known.prompt, request.targets, config.clip.frames,
        inspected.clip.fps, (fit.source_width, fit.source_height), (fit.width, fit.height),
        size, stages, machine.memory_available(device),
        machine.disk_free(run.folder if run else request.runs),
        disk, _controlled(config, checkpoint, inspected), inspected.reading,
        *_written(request, fit, inspected.clip), _output_size(request, fit),
        None if inspected.upscaler is None else inspected.upscaler.name,
        len(inspected.windows), inspected.windows[0].stop, max(window.shared for window in inspected.windows),
    )  # fmt: skip


def _controlled(config: Config, checkpoint: Checkpoint, inspected: Inspected) -> str | None:
    """What the ControlNet is shown, and which one it is; None without one."""
    if inspected.shown is None:
        return None
    control = config.control.model
    name = "next to the model" if control == "auto" and checkpoint.own else control
    millions = inspected.control.parameters / 1e6
    return f"{inspected.shown} to the ControlNet {name}, {millions:.1f} M parameters"


def _rows(
    request: Request, last: str, known: Known, costs: Costs, machine: tuple[str, str, tuple[int, int]]
) -> tuple[tuple[PlannedStage, ...], int]:
    """A row for each listed stage, one for each target where a stage is done for each; bytes of disk."""
    rows, disk = [], 1 << 20
    kept: Kept = "now" if costs.kept else "no"
    for stage in _in_order_of_work(up_to(last)):
        if not stage.listed or (stage.name == "caption" and request.prompt is not None):
            continue
        if stage.optional and not stage.applies(request.config):
            continue
        for label, target in stage.rows(request.targets):
            done = known.done(stage, target)
            shown = [stage, *(one for one in map(stage_named, stage.shows) if not known.done(one, target))]
            asked = (request.config, known.prompt, target, kept)
            passes = 0 if done else sum(one.passes(*asked) for one in shown)
            if costs.kept and passes and any(one.keeps_source(*asked[:3]) for one in shown):
                kept = "before"
            beside = passes if costs.control.parameters and stage.name != "upscale" else 0
            work = Work(speed_kind(stage.name), request.config, *machine)
            seconds = seconds_of(work, passes) if passes else None
            frames = costs.tuned if stage.name == "tune" else costs.frames
            peak = max(one.peak(costs, done) for one in shown)
            rows.append(PlannedStage(label, done, passes, peak, beside, seconds, frames))
            disk += 0 if done else stage.disk(costs)
    return tuple(rows), disk


def _in_order_of_work(stages: Sequence[Stage]) -> list[Stage]:
    """Stages in the order of work: one that is listed for another (an edit for its frames) in its place."""
    place = {stage.name: i for i, stage in enumerate(stages)}
    return sorted(stages, key=lambda stage: min(place[name] for name in (stage.name, *stage.shows)))


def _written(request: Request, fit: Fit, clip: Clip) -> tuple[int, tuple[str, ...]]:
    """Bytes that writing an edit takes, and what a person should know of the clip and of the output."""
    if not request.targets:
        return 0, clip.notes
    output = request.output or Path("edit.mp4")
    size = _output_size(request, fit)
    check_size(output, *size)
    note = even_note(output, *size, request.chroma)
    sound = clip.info.sound_note if request.audio and holds_audio(output) else None
    notes = (*clip.notes, *(said for said in (sound, note) if said is not None))
    frames, pasted = request.config.clip.frames, 0
    if request.mask is not None and size != (fit.width, fit.height):
        pasted = pasting_bytes(min(frames, request.config.window.size), *size)
    return writing_bytes(output, frames, *size) + pasted, notes


def _output_size(request: Request, fit: Fit) -> tuple[int, int]:
    """(width, height) of the edit."""
    if request.source_size:
        return fit.source_width, fit.source_height
    scale = request.config.upscale.scale
    return fit.width * scale, fit.height * scale
