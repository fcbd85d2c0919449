"""What a command is about to do, found out without loading a weight; everything that can be checked is.

The order of the checks is what a user can fix fastest first: words, files, sizes, models, memory, disk.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ctxedit.config import Config
from ctxedit.editing import machine, needs, paths
from ctxedit.editing.costs import Costs
from ctxedit.editing.keys import Keys, find_run, known_caption
from ctxedit.editing.request import Request
from ctxedit.editing.speed import Work, seconds_of, speed_kind
from ctxedit.editing.stage import Stage
from ctxedit.editing.stages import stage_named, up_to
from ctxedit.errors import ConfigError, InputError
from ctxedit.media.companions import read_companion
from ctxedit.media.geometry import Fit, plan_fit
from ctxedit.media.mask import read_mask
from ctxedit.media.memory import pasting_bytes, reading_bytes, writing_bytes
from ctxedit.media.probe import probe
from ctxedit.media.read import Clip, Store, span_of
from ctxedit.media.scratch import scratch
from ctxedit.media.temporary import check_writable
from ctxedit.media.write import check_output, even_note, holds_audio
from ctxedit.model_names import is_own
from ctxedit.models.backbones import builtin_vocabulary, check_addons, family_of
from ctxedit.models.control import Denoiser, check_settings, locate_control
from ctxedit.models.control_maps import computed_map
from ctxedit.models.device import name_of, pick_device, pick_dtype
from ctxedit.models.sizes import Sizes, Weight, folder_weight
from ctxedit.models.upscalers.checkpoints import Found, locate_upscaler
from ctxedit.models.weights import Checkpoint, is_half, locate
from ctxedit.prompts import check_texts, plain
from ctxedit.runs import Run
from ctxedit.stages.passes import Kept
from ctxedit.stages.prepare import check_readable
from ctxedit.stages.report import check_image, files_for, heatmap_files, is_image
from ctxedit.stages.wording import check_describes
from ctxedit.windows import Window, plan_windows


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
    config = request.config
    paths.for_edit(request).check()
    check_texts(request.prompt, request.targets, request.config.edit.negative_prompt)
    check_settings(config.control, is_own(config.model))
    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, device)
    known = _Known(request)
    inspected = _inspect(request, known, is_half(dtype))
    if known.prompt is not None and not request.overwrite:
        for target in request.targets:
            check_describes(plain(target), known.prompt)
    needs.check_words(config, known.prompt, request.targets)
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
        disk, inspected.shown, inspected.reading, *_written(request, fit, inspected.clip),
        _output_size(request, fit), None if inspected.upscaler is None else inspected.upscaler.name,
        len(inspected.windows), inspected.windows[0].stop, max(window.shared for window in inspected.windows),
    )  # fmt: skip


class _Known:
    """What is known of a request without working: its prompt, its run, and which stages are done."""

    def __init__(self, request: Request) -> None:
        self.request, self.keys = request, Keys(request)

    # On demand: hashing comes after the checks that give a better message.
    @cached_property
    def prompt(self) -> str | None:
        """The source prompt; None where the clip has yet to be captioned."""
        caption = known_caption(self.request, self.keys)
        return None if caption is None else caption.text

    @cached_property
    def run(self) -> Run | None:
        """The run folder that there is."""
        if self.prompt is None:
            return self.request.run
        return find_run(self.request, self.keys, self.prompt)

    def store(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """An array for frames that are read for checking; on disk for a clip in windows."""
        config, runs = self.request.config, self.request.runs
        if config.clip.frames <= config.window.size:
            return np.empty(shape, dtype)
        return scratch(runs if runs.is_dir() else Path(tempfile.gettempdir()), shape, dtype)

    def done(self, stage: Stage, target: str) -> bool:
        """Whether the stage need not be done."""
        if stage.name == "caption":
            return self.prompt is not None
        if self.run is None or self.prompt is None or not stage.keeps:
            return False
        if not stage.applies(self.request.config):
            return True
        name = stage.name_of(self.keys, self.prompt, target)
        redone = stage.each_target and self.request.overwrite
        return not redone and self.run.done(name, stage.key(self.keys, self.prompt, target))

    def own(self, target: str, outputs: Sequence[Path]) -> set[Path]:
        """Those of the outputs that exist because this very edit was made before.

        Raises:
            InputError: the run that would tell is damaged.
        """
        if self.run is None or self.prompt is None:
            self._check_damage(outputs)
            return set()
        stage = stage_named("edit")
        name, key = stage.name_of(self.keys, self.prompt, target), stage.key(self.keys, self.prompt, target)
        return {path for path in outputs if self.run.may_replace(name, key, path)}

    def _check_damage(self, outputs: Sequence[Path]) -> None:
        """Raise InputError if a damaged ``run.toml`` leaves it open whether existing outputs are its own."""
        request, existing = self.request, next((path for path in outputs if path.exists()), None)
        if existing is None:
            return
        try:
            identity = None if self.prompt is None else self.keys.identity(self.prompt)
            Run.check_damage(request.runs, request.clip, request.preset, identity)
        except InputError as error:
            raise InputError(
                f"{error.message}, so it is not known whether {existing} is its edit",
                "-y starts the run over and replaces that file; or name another --output",
            ) from error


@dataclass(frozen=True)
class _Inspected:
    """What the checks have read: the clip, the model's sizes, the control."""

    checkpoint: Checkpoint
    body: Sizes
    fit: Fit
    clip: Clip
    reading: int
    windows: tuple[Window, ...]
    shown: str | None
    control: Weight
    upscaler: Found | None


def _inspect(request: Request, known: _Known, half: bool) -> _Inspected:
    """Read and check the clip, the mask, the control map and the model's config files."""
    config, span = request.config, request.config.clip
    info = probe(request.clip)
    _check_outputs(request, known, span_of(info, span.frames, span.start, span.stride).fps)
    checkpoint = locate(config.model, request.offline, half)
    family = family_of(checkpoint)
    body = family.sizes(checkpoint)
    builtin_vocabulary(checkpoint.path)  # refuses a broken one
    addons = check_addons(config, checkpoint, request.offline)
    needs.check_settings(config, body)
    needs.check_cache(config, body, family)
    fit = plan_fit(info.width, info.height, span.size or body.resolution, body.multiple)
    needs.check_layers(config, body, request.heatmaps)
    windows = plan_windows(span.frames, config.window.size, config.window.overlap)
    needs.check_kept_source(config, len(windows))
    reading = reading_bytes(info, windows[0].stop, fit.width, fit.height)
    machine.check_handling("reading the clip", reading)
    # The frames are read here once already: a damaged clip is noticed before minutes of work, not after.
    clip = check_readable(request.clip, span)
    if request.mask is not None:
        read_mask(request.mask, span.frames, span.start, span.stride, fit, known.store)
    shown, control = _control(config, checkpoint, body, fit, request.offline, half, known.store)
    if not config.edit.long_prompts:
        texts = [*map(plain, request.targets), config.edit.negative_prompt, request.prompt or ""]
        family.check_prompts(checkpoint, list(map(addons.lengthen, texts)))
    upscaler = None
    if config.upscale.scale > 1:
        upscaler = locate_upscaler(config.upscale.model, checkpoint.own, request.offline, half)
    return _Inspected(checkpoint, body, fit, clip, reading, windows, shown, control, upscaler)


def _rows(
    request: Request, last: str, known: _Known, costs: Costs, machine: tuple[str, str, tuple[int, int]]
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
    """Stages as they are listed: one that stands for another (an edit for its frames) at that one's place."""
    place = {stage.name: i for i, stage in enumerate(stages)}
    return sorted(stages, key=lambda stage: min(place[name] for name in (stage.name, *stage.shows)))


def _written(request: Request, fit: Fit, clip: Clip) -> tuple[int, tuple[str, ...]]:
    """Bytes that writing an edit takes, and what a person should know of the clip and of the output."""
    if not request.targets:
        return 0, clip.notes
    output = request.output or Path("edit.mp4")
    size = _output_size(request, fit)
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


def _control(
    config: Config, checkpoint: Checkpoint, body: Sizes, fit: Fit, offline: bool, half: bool, store: Store
) -> tuple[str | None, Weight]:
    """The control map and the ControlNet's size; the network is not loaded, a map is read once."""
    control = config.control
    if control.kind == "none":
        return None, Weight()
    span = config.clip
    if control.kind == "video" and control.map:
        read_companion(control.map, "control map", span.frames, span.start, span.stride, fit, store=store)
    denoiser = None
    if body.takes_control:
        denoiser = Denoiser(
            checkpoint.name, checkpoint.own, body.channels, body.layers, body.latent_channels,
            body.context_width, body.factor,
        )  # fmt: skip
    weight = folder_weight(locate_control(control, denoiser, offline, half))
    name = "next to the model" if control.model == "auto" and checkpoint.own else control.model
    shown = control.map or f"Canny edges ({control.low}, {control.high})"
    if control.kind == "video" and not control.map:
        shown = f"{computed_map(control.model)}, computed from the clip,"
    return f"{shown} to the ControlNet {name}, {weight.parameters / 1e6:.1f} M parameters", weight


def _check_outputs(request: Request, known: _Known, fps: Fraction) -> None:
    targets, free = request.targets, request.overwrite
    if request.output is None:
        folder = request.runs if request.run is None else request.run.folder
        check_writable(folder / ".ctxedit", True)
        return
    if len(targets) > 1:
        raise ConfigError(
            "--output names one file, and there are several targets",
            "leave it out: the run folder takes them",
        )
    files, maps = files_for(request.output), heatmap_files(request.output)
    outputs = (files.video, files.side_by_side, files.sheet)
    own: set[Path] = set()
    if not free and targets and any(path.exists() for path in outputs):
        own = known.own(targets[0], outputs)
    if is_image(request.output) and request.config.clip.frames == 1:
        check_image(request.output, free or files.video in own)
    else:
        check_output(request.output, fps, free or files.video in own)
    for path in outputs[1:]:
        check_writable(path, free or path in own)
    for path in (maps.sheet, maps.video) if request.heatmaps else ():
        check_writable(path, free)
