"""Measured cost of a stage: seconds, peak memory, passes of the denoiser."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from ctxedit.editing.reporter import Reporter
from ctxedit.media.temporary import atomic
from ctxedit.models.deep_cache import pass_share

_FILE = "costs.json"
_EVERY = 0.02  # seconds between samples of the resident memory


@dataclass(frozen=True)
class Cost:
    """Cost of one stage.

    Attributes:
        seconds: of the stage's own loop: no loading, decoding or writing.
        peak_bytes: largest resident memory of the process on CPU, largest allocation on CUDA.
        evaluations: passes of the UNet over the clip, guidance's two branches counted as two; of one on
            cached features the share that plans count (:func:`ctxedit.models.deep_cache.pass_share`).
        steps: progress steps of the stage made in that time.
        reached: the last step of the stage that was made, of this process or of those before.
    """

    seconds: float = 0.0
    peak_bytes: int = 0
    evaluations: float = 0.0
    steps: int = 0
    reached: int = 0

    def and_then(self, more: Cost) -> Cost:
        """The sum of both, for a stage that was interrupted and resumed."""
        return Cost(
            self.seconds + more.seconds,
            max(self.peak_bytes, more.peak_bytes),
            self.evaluations + more.evaluations,
            self.steps + more.steps,
            max(self.reached, more.reached),
        )

    def of_all_steps(self) -> Cost:
        """Of every step once: what killed processes did not note is extrapolated, steps made twice are not
        counted twice."""
        if self.steps in (0, self.reached):
            return self
        ratio = self.reached / self.steps
        return replace(
            self, seconds=self.seconds * ratio, evaluations=self.evaluations * ratio, steps=self.reached
        )

    def table(self) -> dict[str, float]:
        """The figures by name."""
        return {"seconds": self.seconds, "peak_bytes": self.peak_bytes, "evaluations": self.evaluations}


class CostMeter(Reporter):
    """A reporter that measures every task and passes it on.

    Args:
        inner: receives everything.
    """

    def __init__(self, inner: Reporter) -> None:
        self.inner = inner
        self._notes: dict[str, Callable[[Cost], None]] = {}
        self._device = torch.device("cpu")
        self._frames, self._branch_frames = 1, 0.0

    def say(self, text: str) -> None:
        self.inner.say(text)

    def warn(self, text: str) -> None:
        self.inner.warn(text)

    @contextmanager
    def watch(self, unet: nn.Module, frames: int, device: torch.device) -> Iterator[None]:
        """Count the network's passes over clips of ``frames`` frames inside the block."""
        self._frames, self._device = frames, device

        def count(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            self._branch_frames += len(args[0]) * pass_share()

        hook = unet.register_forward_hook(count)
        try:
            yield
        finally:
            hook.remove()

    @contextmanager
    def task(self, name: str, total: int, unit: str = "step") -> Iterator[Callable[[int, str], None]]:
        stage = name.split(" ", 1)[0]
        before, began = self._branch_frames, time.perf_counter()
        first = last = 0
        with self.inner.task(name, total, unit) as tell, _peak(self._device) as peak:

            def record() -> None:
                if self._device.type == "cuda":
                    torch.cuda.synchronize(self._device)
                seconds, passes = time.perf_counter() - began, (self._branch_frames - before) / self._frames
                cost = Cost(seconds, peak(), passes, last - first + 1 if last else 0, last)
                if note := self._notes.get(stage):
                    note(cost)

            def step(done: int, note: str) -> None:
                nonlocal first, last
                first, last = first or done, done
                tell(done, note)
                if done == total:
                    record()

            try:
                yield step
            finally:
                if last != total:
                    record()

    @contextmanager
    def noting(self, stage: str, note: Callable[[Cost], None]) -> Iterator[None]:
        """Pass each task of a stage to ``note``, including interrupted ones.

        This happens at the last step, before a tuning's state of it or the stage's result is stored: a
        process that is killed in between leaves no result of unknown cost.
        """
        self._notes[stage] = note
        try:
            yield
        finally:
            del self._notes[stage]


@contextmanager
def _peak(device: torch.device) -> Iterator[Callable[[], int]]:
    """Yields a callable that returns the peak memory since the block began."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield lambda: int(torch.cuda.max_memory_allocated(device))
        return
    process, over = psutil.Process(), threading.Event()
    most = [process.memory_info().rss]

    def sample() -> int:
        most[0] = max(most[0], process.memory_info().rss)
        return most[0]

    def poll() -> None:
        while not over.wait(_EVERY):
            sample()

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield sample
    finally:
        over.set()
        thread.join()


class Ledger:
    """Costs of a run folder's stages, so that reused stages are still accounted for.

    Args:
        folder: the run folder; holds ``costs.json``.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / _FILE
        self._table: dict[str, Any] = {}
        # None yet, or damaged: the stage's cost is then unknown, not wrong.
        with suppress(OSError, ValueError, RecursionError):
            if isinstance(table := json.loads(self._path.read_text(encoding="utf-8")), dict):
                self._table = table

    def add(self, stage: str, key: str, cost: Cost) -> None:
        """Add to the cost of a resumable stage under this key; the cost under any other key is discarded."""
        before = self.of(stage, key)
        self.put(stage, key, (cost if before is None else before.and_then(cost)).of_all_steps())

    def put(self, stage: str, key: str, cost: Cost) -> None:
        """Record the cost of a stage that always starts from the beginning."""
        self._table[stage] = {"key": key, **asdict(cost)}
        with atomic(self._path, True) as temporary:
            temporary.write_text(json.dumps(self._table, indent=1))

    def of(self, stage: str, key: str) -> Cost | None:
        """The cost of a stage under this key, if it is known."""
        entry = self._table.get(stage)
        if not isinstance(entry, dict) or entry.get("key") != key:
            return None
        figures: list[Any] = [entry.get(field.name, field.default) for field in fields(Cost)]
        return Cost(*figures) if all(isinstance(f, (int, float)) for f in figures) else None
