"""Figures of a training: means over about two seconds, to a file, to a person, and to TensorBoard."""

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


class Meter:
    """Collects what the steps report.

    Args:
        state: folder of ``metrics.jsonl``; rows of steps after ``start`` are of a lost future and go.
        start, end: steps of this sitting.
        images: samples a step.
        report: told every row.
        tensorboard: folder for event files, or None.
        main: whether this is the process that writes.
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
        self.began = self.told = time.monotonic()
        self.sums: dict[str, float] = {}
        self.count = 0

    def __enter__(self) -> Meter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.board is not None:
            self.board.close()

    def add(self, step: int, row: dict[str, float]) -> None:
        """Take one step's figures."""
        if not self.main:
            return
        for key, value in row.items():
            self.sums[key] = self.sums.get(key, 0.0) + value
        self.count += 1
        now = time.monotonic()
        if now - self.told <= _EVERY and step + 1 < self.end:
            return
        speed = (step + 1 - self.start) / max(now - self.began, 1e-9)
        line = {key: value / self.count for key, value in self.sums.items()}
        if self.board is not None:
            for key, value in line.items():
                self.board.add_scalar(key, value, step + 1)
        line |= {"step": step + 1, "images_per_second": speed * self.images}
        line |= {"seconds_left": (self.end - step - 1) / speed}
        with self.log.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.report(line)
        self.told, self.sums, self.count = now, {}, 0


def read_metrics(state: Path) -> list[dict[str, float]]:
    """The rows of ``metrics.jsonl``; a line that a kill cut short is left out."""
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
    """Time of a training by its metrics: a row says the speed that its steps were done at; None without."""
    total, before = 0.0, 0.0
    for row in rows:
        step, speed = row.get("step", 0.0), row.get("images_per_second", 0.0)
        if not before < step <= steps or not speed:
            continue
        total, before = total + (step - before) * images / speed, step
    return total or None


def check_tensorboard() -> Any:
    """TensorBoard's writer class; raises ConfigError when it is not installed."""
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
