"""How long a pass of the network takes on this machine: measured as stages work, kept for the next plan."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ctxedit.cache import cached_table, change_table
from ctxedit.config import Config
from ctxedit.editing.reporter import Reporter
from ctxedit.stages.tune import frames_of_step
from ctxedit.windows import plan_windows

_FILE = "speed.json"
#: Passes and tuning steps of a plan; of fewer a measurement would be a large part.
WORTH_MEASURING = 40
#: Shorter stages tell too little: loading and the first step are most of them.
_STEPS = 3


@dataclass(frozen=True)
class Work:
    """What the speed of a stage depends on.

    Attributes:
        kind: ``tune``, ``upscale``, or ``pass`` for all other stages.
        config: the settings.
        device, dtype: a device's product name, a tensor's type.
        size: (width, height) of the padded frames, in pixels.
    """

    kind: str
    config: Config
    device: str
    dtype: str
    size: tuple[int, int]

    @property
    def name(self) -> str:
        """What is measured apart: one network's passes on one device."""
        config, attention = self.config, self.config.attention
        parts = [
            self.kind, config.model, self.device, self.dtype, attention.frames, attention.backend,
            f"temporal {attention.temporal}", f"adapter {config.adapter.enabled}", config.control.kind,
        ]  # fmt: skip
        if self.kind == "tune":
            parts.append(f"checkpointing {config.tune.gradient_checkpointing}")
        if self.kind == "upscale":
            parts.append(config.upscale.model)
        return " | ".join(parts)

    @property
    def pixels(self) -> int:
        """Of all frames of a pass together: of one step's in tuning, otherwise of every window."""
        config = self.config
        windows = plan_windows(config.clip.frames, config.window.size, config.window.overlap)
        frames = frames_of_step(config) if self.kind == "tune" else windows[0].stop * len(windows)
        return frames * self.size[0] * self.size[1]


def speed_kind(stage: str) -> str:
    """The kind of work of a stage: with gradients or without, or of the upscaler."""
    return stage if stage in ("tune", "upscale") else "pass"


def seconds_of(work: Work, passes: int) -> float | None:
    """How long passes of the network over the clip will take; None without a comparable measurement.

    Of clips of another size or length the nearest measured one counts, in proportion to the pixels.
    """
    measured = _measured(cached_table(_FILE), work)
    if not measured:
        return None
    nearest = min(measured, key=lambda pixels: abs(pixels - work.pixels))
    return passes * measured[nearest] * work.pixels / nearest


def note(work: Work, seconds: float) -> None:
    """Keep what one pass over the clip took: half of what was known, half new, so that estimates follow."""

    def change(table: dict[str, Any]) -> None:
        measured = _measured(table, work)
        measured[work.pixels] = (measured.get(work.pixels, seconds) + seconds) / 2
        table[work.name] = measured

    change_table(_FILE, change)


def _measured(table: dict[str, Any], work: Work) -> dict[int, float]:
    """Seconds of a pass by number of pixels; damaged entries are skipped."""
    known = table.get(work.name)
    entries = known.items() if isinstance(known, dict) else ()
    return {
        int(pixels): seconds
        for pixels, seconds in entries
        if pixels.isdecimal() and int(pixels) and isinstance(seconds, float)
    }


@dataclass
class Stopwatch(Reporter):
    """Hands everything on, and measures the steps of each task."""

    inner: Reporter
    each: list[float] = field(default_factory=list)
    whole: bool = False

    def say(self, text: str) -> None:
        self.inner.say(text)

    def warn(self, text: str) -> None:
        self.inner.warn(text)

    @contextmanager
    def task(self, name: str, total: int, unit: str = "step") -> Iterator[Callable[[int, str], None]]:
        at = [(time.perf_counter(), 0)]
        with self.inner.task(name, total, unit) as inner:

            def step(done: int, text: str = "") -> None:
                now, (before, last) = time.perf_counter(), at[0]
                if done == last + 1:  # a tuning that goes on begins in the middle
                    self.each.append(now - before)
                at[0] = (now, done)
                self.whole = len(self.each) == total
                inner(done, text)

            yield step

    def seconds(self) -> float | None:
        """Seconds of all steps, the first replaced by an average one: it includes one-time work.

        None for a task of few steps, and for one that was not seen from its beginning to its end.
        """
        later = self.each[1:]
        return statistics.fmean(later) * len(self.each) if self.whole and len(later) >= _STEPS else None
