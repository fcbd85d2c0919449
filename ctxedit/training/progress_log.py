"""Figures of a training, averaged over about two seconds, for a file, the caller and TensorBoard."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from ctxedit.errors import ConfigError
from ctxedit.media.temporary import atomic

_EVERY = 2.0


class ProgressLog:
    """Collects the figures of the steps.

    Args:
        state: folder of ``metrics.jsonl``; rows of steps after ``start``, which a kill lost, are removed.
        start, end: first and last step of this run.
        images: samples per step.
        report: called with every row.
        tensorboard: folder for event files, or None.
        main: whether this is the main process; only that one writes.
    """

    def __init__(
        self,
        state: Path,
        start: int,
        end: int,
        images: int,
        report: Callable[[dict[str, float]], None],
        tensorboard: Path | None = None,
        main: bool = True,
    ) -> None:
        self.log, self.start, self.end, self.images, self.report = (
            state / "metrics.jsonl", start, end, images, report,
        )  # fmt: skip
        self.main = main
        self.board = _board(tensorboard, start) if tensorboard and main else None
        if main:
            state.mkdir(parents=True, exist_ok=True)
            _truncate(self.log, start)
        self.started = self.reported = time.monotonic()
        self.sums: dict[str, float] = {}
        self.count = 0

    def __enter__(self) -> ProgressLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.board is not None:
            self.board.close()

    def add(self, step: int, row: dict[str, float]) -> None:
        """Add one step's figures."""
        if not self.main:
            return
        for key, value in row.items():
            self.sums[key] = self.sums.get(key, 0.0) + value
        self.count += 1
        now = time.monotonic()
        if now - self.reported <= _EVERY and step + 1 < self.end:
            return
        speed = (step + 1 - self.start) / max(now - self.started, 1e-9)
        line = {key: value / self.count for key, value in self.sums.items()}
        if self.board is not None:
            for key, value in line.items():
                self.board.add_scalar(key, value, step + 1)
        line |= {"step": step + 1, "images_per_second": speed * self.images}
        line |= {"seconds_left": (self.end - step - 1) / speed}
        with self.log.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.report(line)
        self.reported, self.sums, self.count = now, {}, 0


def read_metrics(state: Path) -> list[dict[str, float]]:
    """The rows of ``metrics.jsonl``; a truncated line is left out."""
    file = state / "metrics.jsonl"
    rows = []
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and all(isinstance(v, (int, float)) for v in row.values()):
            rows.append(row)
    return rows


def seconds_of(rows: list[dict[str, float]], steps: int, images: int) -> float | None:
    """Duration of a training according to the speeds in its metrics; None without metrics."""
    total, before = 0.0, 0.0
    for row in rows:
        step, speed = row.get("step", 0.0), row.get("images_per_second", 0.0)
        if not before < step <= steps or not speed:
            continue
        total, before = total + (step - before) * images / speed, step
    return total or None


def check_tensorboard() -> Any:
    """TensorBoard's writer class; raises ConfigError if it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError("TensorBoard is not installed", "pip install 'ctxedit[tensorboard]'") from error
    return SummaryWriter


def _board(folder: Path, start: int) -> Any:
    return check_tensorboard()(str(folder), purge_step=start)


def _truncate(log: Path, start: int) -> None:
    if not log.is_file():
        return
    rows = read_metrics(log.parent)
    kept = [row for row in rows if row.get("step", 0) <= start]
    if len(kept) < len(rows):
        with atomic(log, True, durable=False) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))
