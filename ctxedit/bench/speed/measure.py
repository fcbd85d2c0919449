"""Measures every way in turn, repeatedly, so that all of them are affected by the same disturbances."""

from __future__ import annotations

import gc
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

from ctxedit import config as configuration
from ctxedit.bench.speed import limits, random_model, ways
from ctxedit.bench.speed.counting import Counts, counting
from ctxedit.bench.speed.ways import Clock, Way
from ctxedit.config import Config
from ctxedit.editing.parts import Parts
from ctxedit.editing.reporter import Reporter
from ctxedit.editing.request import Request
from ctxedit.errors import ConfigError
from ctxedit.media.write import write_clip
from ctxedit.models.device import pick_device
from ctxedit.synthetic import scenes
from ctxedit.synthetic.scenes import Actor, Scene
from ctxedit.tables import DEFAULT_PRESET


@dataclass(frozen=True)
class SpeedPlan:
    """What to measure.

    Attributes:
        presets: names or TOML files.
        model: as ``--model``; unused with ``random``.
        random: sizes of a network with random weights, or None.
        frames, size, steps: of the clip (frames, pixels) and of inversion and sampling alike.
        tune_steps: measured tuning steps, after one warm-up step.
        repeats: measured runs of each way, after one in which its work is counted; 0 times that one, which is
            enough where a run takes minutes.
        only: measure the ways whose names contain one of these texts; empty means all.
        device, dtype: as ``--device`` and ``--dtype``.
        settings: further settings for every preset, as nested tables.
    """

    presets: tuple[str, ...]
    model: str = configuration.BUILTIN
    random: str | None = None
    frames: int = 8
    size: int = 64
    steps: int = 10
    tune_steps: int = 4
    repeats: int = 3
    device: str = "auto"
    dtype: str = "auto"
    settings: dict[str, Any] = field(default_factory=dict)
    only: tuple[str, ...] = ()

    def load(self, preset: str, model: str | None = None) -> Config:
        """Settings of a preset under this plan."""
        table: dict[str, Any] = {name: dict(value) if isinstance(value, dict) else value
                                 for name, value in self.settings.items()}  # fmt: skip
        laid = {
            "clip": {"frames": self.frames, "stride": 1, "start": 0, "size": self.size},
            "invert": {"steps": self.steps}, "edit": {"steps": self.steps},
        }  # fmt: skip
        for name, values in laid.items():
            table[name] = {**table.get(name, {}), **values}
        table |= {"model": model or self.model, "device": self.device, "dtype": self.dtype,
                  "clip_model": configuration.BUILTIN}  # fmt: skip
        found = configuration.load(preset, flags=table)
        if not found.tune.steps:
            return found
        return configuration.merge(found, {"tune": {"steps": self.tune_steps + 1}})


@dataclass
class SpeedRow:
    """The result of one way. Tuning is measured per step, editing per clip.

    Attributes:
        way, task: see :class:`Way`.
        seconds: of each run, by phase.
        processor_seconds: of each run.
        stored_bytes: of stored attention maps.
        counts: operations, passes, memory.
        precision: of the network.
        error: why it was not measured; otherwise empty.
    """

    way: str
    task: str
    seconds: list[dict[str, float]] = field(default_factory=list)
    processor_seconds: list[float] = field(default_factory=list)
    stored_bytes: int = 0
    counts: Counts = field(default_factory=Counts)
    precision: str = ""
    error: str = ""

    @property
    def totals(self) -> list[float]:
        """Seconds of each run."""
        return [sum(phases.values()) for phases in self.seconds]

    @property
    def median(self) -> float:
        """Seconds, the median of the runs."""
        return statistics.median(self.totals)


@dataclass
class Measured:
    """Everything that was measured.

    Attributes:
        rows: one for each way.
        limits: of the machine.
        device, dtype: that the default preset ran on.
    """

    rows: list[SpeedRow]
    limits: limits.Limits
    device: torch.device
    dtype: torch.dtype


def run(plan: SpeedPlan, say: Callable[[str], None] = lambda text: None) -> Measured:
    """Measure all ways of a plan.

    Raises:
        ConfigError: an unknown preset or setting.
        ResourceError: no such device.
    """
    pick_device(plan.device)
    for name in plan.presets:
        plan.load(name)
    _ways(plan, None)  # refuses an unknown name before weights are written
    with tempfile.TemporaryDirectory(prefix="ctxedit-speed-") as temporary, _frozen():
        folder = Path(temporary)
        clip = _draw(folder, plan)
        model = None
        if plan.random is not None:
            say(f"writing a {plan.random} with random weights")
            model = str(random_model.make(plan.random, folder, torch.float16))
        found = _ways(plan, model)
        default = plan.load(DEFAULT_PRESET, model)
        say(f"measuring the machine on {pick_device(plan.device)}")
        most, device, dtype = _limits(default, clip, folder)
        _release()
        rows = [SpeedRow(way.name, way.task) for way in found]
        for number in range(plan.repeats + 1):
            what = "counting" if number == 0 else f"run {number} of {plan.repeats}"
            for way, row in zip(found, rows, strict=True):
                if not row.error:
                    say(f"{what}: {way.task}, {way.name}")
                    try:
                        _once(way, row, clip, folder, number == 0, plan)
                    except (MemoryError, torch.OutOfMemoryError):
                        row.error = "not enough memory"  # the others are still measured
                    _release()
        return Measured(rows, most, device, dtype)


def _limits(config: Config, clip: Path, folder: Path) -> tuple[limits.Limits, torch.device, torch.dtype]:
    """The machine's limits, and the device and precision that they are of."""
    with _opened(config, clip, folder) as parts:
        net, device, dtype = parts.backbone.networks[0], parts.device, parts.backbone.dtype
        return limits.measure(net, lambda: _pass(parts), device, dtype), device, dtype


def _ways(plan: SpeedPlan, model: str | None) -> list[Way]:
    presets = [(name, plan.load(name, model)) for name in plan.presets]
    if plan.random is not None:  # there is no ControlNet with random weights
        presets = [(name, config) for name, config in presets if config.control.kind == "none"]
    default = plan.load(DEFAULT_PRESET, model)
    rivals = ways.rivals(default, plan.load(ways.STORED_PRESET, model))
    found = [*rivals, *ways.edits(presets), *ways.tunings(presets, default), *ways.faster(default)]
    for text in plan.only:
        if not any(text in way.name for way in found):
            names = ", ".join(dict.fromkeys(way.name for way in found))
            raise ConfigError(f"--only {text!r}: no row has that in its name", f"names: {names}")
    return [way for way in found if not plan.only or any(text in way.name for text in plan.only)]


def _draw(folder: Path, plan: SpeedPlan) -> Path:
    tiger = Actor("tiger", None, 0.5, 0.86, 0.56)
    scene = Scene((tiger,), "beach", "plain", "walk", -1, 1.0, (0.5,) * 8)
    frames, _ = scenes.render(scene, plan.frames, plan.size)
    return write_clip(folder / "clip.mp4", frames, Fraction(8))


@contextmanager
def _opened(config: Config, clip: Path, folder: Path) -> Iterator[Parts]:
    """The parts of a session, loaded as far as every way needs them."""
    request = Request(clip, config, prompt=ways.PROMPTS[0], runs=folder / "runs", offline=True)
    parts = Parts(request, Reporter())
    try:
        _ = parts.latents, parts.temporal, parts.view
        for prompt in ways.PROMPTS:
            parts.shift(prompt)
        yield parts
    finally:
        parts.close()


def _release() -> None:
    """Free what a way leaves behind, in reference cycles and in CUDA's cache, before the next one begins.

    Called when nothing refers to its session any more, and the traceback of an error is gone as well.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def _frozen() -> Iterator[None]:
    """Exclude existing objects from garbage collection, so that collecting each closed session is fast."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@torch.no_grad()
def _pass(parts: Parts) -> None:
    """One pass of the network over the clip."""
    context = parts.backbone.condition([ways.PROMPTS[0]])
    parts.backbone.raw(parts.latents, 500, context, parts.view)


def _once(way: Way, row: SpeedRow, clip: Path, folder: Path, count: bool, plan: SpeedPlan) -> None:
    """Run a way once, to count or to time, or both if there is no other run."""
    runs = plan.tune_steps if way.task == "tune" else 1
    with _opened(way.config, clip, folder) as parts, tempfile.TemporaryDirectory(dir=folder) as work:
        row.precision = str(parts.backbone.dtype).removeprefix("torch.")
        if count:
            frames, counted = len(parts.latents), runs + (way.task == "tune")  # its warm-up is counted, too
            with counting(parts.backbone.networks[0], frames, parts.device) as counts:
                clock = Clock(parts.device)
                way.run(parts, Path(work), clock)
            row.counts = Counts(counts.flops / counted, counts.passes / counted, counts.peak_bytes)
            row.stored_bytes = clock.stored_bytes
            if plan.repeats:
                return
        else:
            _pass(parts)
            clock = Clock(parts.device)
            way.run(parts, Path(work), clock)
        seconds = {name: value for name, value in clock.seconds().items() if name != ways.WARM_UP}
        row.seconds.append({name: value / runs for name, value in seconds.items()})
        row.processor_seconds.append(clock.processor_seconds() / runs)
