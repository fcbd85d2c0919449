"""The one training loop: seeded, resumable, with an averaged copy of the weights (EMA)."""

from __future__ import annotations

import copy
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ctxedit.models.device import keep_heap


@dataclass(frozen=True)
class Schedule:
    """What the loop itself needs to know of a recipe.

    Attributes:
        steps: optimiser steps in all.
        batch: samples a step.
        lr: peak learning rate; linear warm-up over ``warmup`` steps, then cosine down to a tenth.
        ema: decay of the averaged weights; it warms up with the step count.
        save_seconds: at most this much work is lost to a kill.
        precision: ``no``, ``fp16`` or ``bf16`` (accelerate's names).
    """

    steps: int
    batch: int
    lr: float
    warmup: int = 200
    weight_decay: float = 0.01
    ema: float = 0.999
    clip_norm: float = 1.0
    seed: int = 0
    save_seconds: float = 180.0
    accumulate: int = 1
    precision: str = "no"
    workers: int = 1


class Task(Protocol):
    """One part to train: what it is made of, what it sees, what it minimises, how it is saved."""

    model: nn.Module

    def dataset(self, seed: int) -> Dataset[Any]: ...
    def loss(
        self, model: nn.Module, batch: Any, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]: ...
    def export(self, model: nn.Module, folder: Path) -> None: ...


def learning_rate(step: int, schedule: Schedule) -> float:
    """Linear warm-up, then cosine to a tenth of the peak."""
    if step < schedule.warmup:
        return schedule.lr * (step + 1) / schedule.warmup
    done = (step - schedule.warmup) / max(1, schedule.steps - schedule.warmup)
    return schedule.lr * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def train(
    task: Task,
    schedule: Schedule,
    state: Path,
    weights: Path,
    *,
    report: Callable[[dict[str, float]], None] = lambda row: None,
    stop_after: int | None = None,
) -> nn.Module:
    """Train ``task`` to the end of its schedule, going on from ``state`` where there is one.

    Args:
        task: the part.
        schedule: lengths and rates.
        state: folder of the resumable state (``state.pt``) and the metrics (``metrics.jsonl``).
        weights: folder that receives the averaged weights, at every save.
        report: called about every two seconds with step, loss, images a second and seconds left.
        stop_after: stop early at this step, saved (tests).

    Returns:
        The averaged model. The same seed gives the same weights, resumed or not, bit for bit on CPU.

    Raises:
        FloatingPointError: when the loss is not finite.
    """
    keep_heap()
    accelerator = Accelerator(mixed_precision=schedule.precision)
    model = accelerator.prepare(task.model)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=schedule.lr, betas=(0.9, 0.99), weight_decay=schedule.weight_decay
    )
    average = copy.deepcopy(accelerator.unwrap_model(model)).eval().requires_grad_(False)
    state.mkdir(parents=True, exist_ok=True)
    start = _load(state / "state.pt", model, average, optimizer)
    end = min(schedule.steps, stop_after or schedule.steps)
    saved = time.monotonic()
    meter = _Meter(state / "metrics.jsonl", start, end, schedule.batch * schedule.accumulate, report)
    for step, batches in zip(range(start, end), _batches(task, schedule, start, end), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, schedule)
        # One generator a step, from the seed and the step: a resumed run draws what an unbroken one would.
        generator = torch.Generator().manual_seed(schedule.seed * 1_000_003 + step)
        for batch in batches:
            with accelerator.autocast():
                loss, row = task.loss(model, batch, generator)
            accelerator.backward(loss / len(batches))
        if not torch.isfinite(loss):
            raise FloatingPointError(f"loss is {loss.item()} at step {step}")
        accelerator.clip_grad_norm_(trained, schedule.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        _average(average, accelerator.unwrap_model(model), min(schedule.ema, (step + 1) / (step + 10)))
        meter.add(step, row)
        now = time.monotonic()
        if now - saved > schedule.save_seconds or step + 1 == end:
            _save(state / "state.pt", step + 1, accelerator.unwrap_model(model), average, optimizer)
            task.export(average, weights)
            saved = now
    return average


class _Meter:
    """Means of what a task reports, written and told about every two seconds."""

    def __init__(
        self, log: Path, start: int, end: int, images: int, report: Callable[[dict[str, float]], None]
    ) -> None:
        self.log, self.start, self.end, self.images, self.report = log, start, end, images, report
        self.began = self.told = time.monotonic()
        self.sums: dict[str, float] = {}
        self.count = 0

    def add(self, step: int, row: dict[str, float]) -> None:
        """Take one step's figures."""
        for key, value in row.items():
            self.sums[key] = self.sums.get(key, 0.0) + value
        self.count += 1
        now = time.monotonic()
        if now - self.told <= 2 and step + 1 < self.end:
            return
        speed = (step + 1 - self.start) / (now - self.began)
        line = {key: value / self.count for key, value in self.sums.items()}
        line |= {"step": step + 1, "images_per_second": speed * self.images}
        line |= {"seconds_left": (self.end - step - 1) / speed}
        with self.log.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.report(line)
        self.told, self.sums, self.count = now, {}, 0


def _batches(task: Task, schedule: Schedule, start: int, end: int) -> Iterator[list[Any]]:
    """For every step from ``start`` the list of its micro-batches."""
    per_step = schedule.batch * schedule.accumulate
    loader = DataLoader(
        task.dataset(schedule.seed),
        batch_size=schedule.batch,
        sampler=range(start * per_step, end * per_step),
        num_workers=schedule.workers,
        prefetch_factor=4 if schedule.workers else None,
    )
    held: list[Any] = []
    for batch in loader:
        held.append(batch)
        if len(held) == schedule.accumulate:
            yield held
            held = []


@torch.no_grad()
def _average(average: nn.Module, model: nn.Module, decay: float) -> None:
    theirs = [p for p in model.parameters()]
    torch._foreach_lerp_(list(average.parameters()), theirs, 1 - decay)


def _save(
    path: Path, step: int, model: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    blob = {
        "step": step,
        "model": model.state_dict(),
        "average": average.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    temporary = path.with_suffix(".tmp")
    torch.save(blob, temporary)
    os.replace(temporary, path)


def _load(path: Path, model: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    if not path.exists():
        return 0
    blob = torch.load(path, weights_only=True)
    model.load_state_dict(blob["model"])
    average.load_state_dict(blob["average"])
    optimizer.load_state_dict(blob["optimizer"])
    return int(blob["step"])
