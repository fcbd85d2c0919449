"""The one training loop: seeded, resumable, on one process or several, with averaged weights (EMA)."""

from __future__ import annotations

import copy
import math
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ctxedit.bundled.training.data import refuse
from ctxedit.bundled.training.interrupts import asked_to_stop, deaf
from ctxedit.bundled.training.meter import Meter, read_metrics, seconds_of
from ctxedit.errors import ConfigError, NumericsError
from ctxedit.media.temporary import staging, sweep, synchronize
from ctxedit.models.device import keep_heap, name_of, pick_device
from ctxedit.models.state import BrokenState, load_state, save_state


@dataclass(frozen=True)
class Schedule:
    """What the loop itself needs to know of a recipe.

    Attributes:
        steps: optimiser steps in all.
        batch: samples a step, of all processes together; ``accumulate`` times as many with accumulation.
        lr: peak learning rate; linear warm-up over ``warmup`` steps, then cosine down to a tenth.
        ema: decay of the averaged weights; it warms up with the step count.
        save_seconds: at most this much work is lost to a kill.
        precision: ``no``, ``fp16`` or ``bf16`` (accelerate's names).
        workers: processes that make samples, for each training process; None is nearly all of the cores
            beside a CUDA device, and else one: on a CPU they would take the training's own.
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
    workers: int | None = None

    @property
    def images(self) -> int:
        """Samples a step."""
        return self.batch * self.accumulate


class Task(Protocol):
    """One part to train: what it is made of, what it sees, what it minimises, how it is saved."""

    model: nn.Module

    def dataset(self, seed: int) -> Dataset[Any]: ...
    def loss(
        self, model: nn.Module, batch: Any, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]: ...
    def export(self, model: nn.Module, folder: Path) -> None: ...


@dataclass
class Done:
    """What a training has done, its earlier sittings included. ``bad`` is left-out input: name to reason."""

    step: int = 0
    seconds: float = 0.0
    bad: dict[str, str] = field(default_factory=dict)


def learning_rate(step: int, schedule: Schedule) -> float:
    """Linear warm-up, then cosine to a tenth of the peak."""
    if step < schedule.warmup:
        return schedule.lr * (step + 1) / schedule.warmup
    done = (step - schedule.warmup) / max(1, schedule.steps - schedule.warmup)
    return schedule.lr * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def make_accelerator(schedule: Schedule, device: str = "auto") -> Accelerator:
    """Accelerate's, for ``auto``, ``cpu``, ``cuda`` or ``mps``; under its launcher, one of several processes.

    Raises:
        ConfigError: a precision that the device does not have, a batch that is no multiple of the processes.
        ResourceError: no such device.
    """
    if ":" in device:
        raise ConfigError(
            f"train: device {device!r}", "choose the GPU by CUDA_VISIBLE_DEVICES, and cuda here"
        )
    chosen = pick_device(device)
    if schedule.precision not in ("no", "fp16", "bf16"):
        raise ConfigError(f"precision {schedule.precision!r}", "one of: no, fp16, bf16")
    if schedule.precision == "fp16" and chosen.type != "cuda":
        raise ConfigError("fp16 needs a CUDA device", "use --precision bf16 or no")
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        # Accelerate keeps one state a process, and refuses another precision in it.
        AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(mixed_precision=schedule.precision, cpu=chosen.type == "cpu")
    if schedule.batch % accelerator.num_processes:
        raise ConfigError(
            f"a batch of {schedule.batch} on {accelerator.num_processes} processes", "choose a multiple"
        )
    return accelerator


class _Step(nn.Module):
    """A task's loss as one forward pass: so autocast and the exchange of gradients see all of it."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.model, self._loss = task.model, task.loss

    def forward(self, batch: Any, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        return self._loss(self.model, batch, generator)


def train(
    task: Task,
    schedule: Schedule,
    state: Path,
    weights: Path,
    *,
    report: Callable[[dict[str, float]], None] = lambda row: None,
    stop_after: int | None = None,
    accelerator: Accelerator | None = None,
    exported: Callable[[Done], None] = lambda done: None,
    tensorboard: Path | None = None,
    lacking: Callable[[int], bool] = lambda steps: False,
) -> nn.Module:
    """Train ``task`` to the end of its schedule, going on from ``state`` where there is one.

    Args:
        task: the part.
        schedule: lengths and rates.
        state: folder of the resumable state (``state.pt``) and the metrics (``metrics.jsonl``).
        weights: folder that receives the averaged weights, at every save.
        report: called about every two seconds with step, loss, images a second and seconds left.
        stop_after: stop early at this step, saved (tests).
        accelerator: of :func:`make_accelerator`; None makes one.
        exported: called after each export, on the main process.
        tensorboard: folder for TensorBoard's event files.
        lacking: whether the weights after so many steps are not there, whatever lies in the folder: a
            training that is done exports them again.

    Returns:
        The averaged model. The same seed gives the same weights, resumed or not, bit for bit on CPU.

    Raises:
        NumericsError: when the loss is not finite; what was saved before stays.
        OutputError: when the disk is full; the state and the weights saved before stay.
        InputError: bad input, where the data says ``stop``.
        KeyboardInterrupt: after Ctrl-C; the state was saved first.
    """
    keep_heap()
    # GPUs alone heed these: TF32 for products in float32, and the fastest of cuDNN's convolutions.
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    loop = _Loop(task, schedule, state, weights, accelerator or make_accelerator(schedule), exported)
    end = min(schedule.steps, stop_after or schedule.steps)
    with Meter(state, loop.done.step, end, schedule.images, report, tensorboard, loop.main) as meter:
        if loop.main and loop.done.step >= end and (not weights.is_dir() or lacking(loop.done.step)):
            loop.export()
        loop.run(end, meter)
    return loop.average


class _Loop:
    """Model, optimiser and average of one training, on one of its processes."""

    def __init__(
        self,
        task: Task,
        schedule: Schedule,
        state: Path,
        weights: Path,
        accelerator: Accelerator,
        exported: Callable[[Done], None],
    ) -> None:
        self.task, self.schedule, self.accelerator = task, schedule, accelerator
        self.state, self.weights, self.exported = state / "state.pt", weights, exported
        self.main = accelerator.is_main_process
        self.trained = [p for p in task.model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            self.trained, lr=schedule.lr, betas=(0.9, 0.99), weight_decay=schedule.weight_decay
        )
        task.model.to(accelerator.device)
        self.average = copy.deepcopy(task.model).eval().requires_grad_(False)
        self.step, self.optimizer = accelerator.prepare(_Step(task), optimizer)
        self.done = self._load()
        self.dataset = task.dataset(schedule.seed)
        self.done.bad |= getattr(self.dataset, "bad", {})

    def run(self, end: int, meter: Meter) -> None:
        """Steps to ``end``, saved now and then, at the end, and on Ctrl-C."""
        began, before, saved = time.monotonic(), self.done.seconds, time.monotonic()
        start = self.done.step
        with asked_to_stop() as asked:
            for step, batches in zip(range(start, end), self._batches(start, end), strict=True):
                row, stop = self._one(step, batches, asked)
                self.done.step, self.done.seconds = step + 1, before + time.monotonic() - began
                meter.add(step, row | ({"bad": len(self.done.bad)} if self.done.bad else {}))
                now = time.monotonic()
                if now - saved > self.schedule.save_seconds or step + 1 == end or stop:
                    if self.main:
                        self._save()
                        self.export()
                    saved = now
                if stop and step + 1 < end:
                    raise KeyboardInterrupt if asked[:1] != [signal.SIGTERM] else SystemExit(143)

    def _one(self, step: int, batches: list[Any], asked: list[int]) -> tuple[dict[str, float], bool]:
        """One optimiser step; its figures, and whether any process was asked to stop."""
        schedule, accelerator = self.schedule, self.accelerator
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, schedule)
        # One generator a step, from the seed and the step: a resumed run draws what an unbroken one would.
        # Each process draws its own noise.
        seed = schedule.seed * 1_000_003 + step + (accelerator.process_index << 48)
        generator = torch.Generator().manual_seed(seed)
        loss, row = torch.zeros(()), {}
        for i, batch in enumerate(batches):
            last = i + 1 == len(batches)
            with nullcontext() if last else accelerator.no_sync(self.step):
                loss, row = self.step(self._seen(batch), generator)
                accelerator.backward(loss / len(batches))
        value, stop = self._agree(loss.detach(), bool(asked))
        if not math.isfinite(value):
            raise NumericsError(f"the loss is {value} at step {step}", "try a lower lr, or precision = no")
        accelerator.clip_grad_norm_(self.trained, schedule.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        _follow(self.average, self.task.model, min(schedule.ema, (step + 1) / (step + 10)))
        return row, stop

    def _agree(self, loss: Tensor, stop: bool) -> tuple[float, bool]:
        """The loss and the wish to stop, of all processes: if one stopped alone the rest would wait."""
        if self.accelerator.num_processes == 1:
            return loss.item(), stop
        both = torch.stack([loss.float(), torch.tensor(float(stop), device=loss.device)])
        both = self.accelerator.reduce(both, "mean")
        return both[0].item(), both[1].item() > 0

    def _seen(self, batch: Any) -> Any:
        """The batch on the device; bad input that it tells of is noted, or refused."""
        told = {line.split("\t", 1)[0]: line.split("\t", 1)[1] for text in batch.pop("bad", []) if text
                for line in text.split("\n")}  # fmt: skip
        if getattr(self.dataset, "on_error", "skip") == "stop":
            refuse(told)
        self.done.bad |= told
        device = self.accelerator.device
        ahead = device.type == "cuda"  # its batches come pinned
        return {k: v.to(device, non_blocking=ahead) if isinstance(v, Tensor) else v for k, v in batch.items()}

    def _batches(self, start: int, end: int) -> Iterator[list[Any]]:
        """For every step from ``start`` the list of its micro-batches; each process gets its part of each."""
        schedule, processes = self.schedule, self.accelerator.num_processes
        share = schedule.batch // processes
        first = range(start * schedule.images, end * schedule.images, schedule.batch)
        offset = self.accelerator.process_index * share
        workers = self._workers()
        loader = DataLoader(
            self.dataset,
            batch_sampler=[range(i + offset, i + offset + share) for i in first],
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            worker_init_fn=deaf,
            pin_memory=self.accelerator.device.type == "cuda",
        )
        held: list[Any] = []
        for batch in loader:
            held.append(batch)
            if len(held) == schedule.accumulate:
                yield held
                held = []

    def _workers(self) -> int:
        if self.schedule.workers is not None:
            return self.schedule.workers
        if self.accelerator.device.type != "cuda":
            return 1
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 2)

    def _save(self) -> None:
        blob = {
            "step": self.done.step,
            "seconds": self.done.seconds,
            "bad": self.done.bad,
            "device": name_of(self.accelerator.device),
            "model": self.task.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        if self.accelerator.scaler is not None:
            blob["scaler"] = self.accelerator.scaler.state_dict()
        save_state(self.state, blob)

    def _load(self) -> Done:
        blob = read_state(self.state)
        if blob is None:
            return Done()
        try:
            self.task.model.load_state_dict(blob["model"])
            self.average.load_state_dict(blob["average"])
            self.optimizer.load_state_dict(blob["optimizer"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"{self.state} is of another recipe", "give another --state, or -y to begin anew"
            ) from error
        if self.accelerator.scaler is not None and "scaler" in blob:
            self.accelerator.scaler.load_state_dict(blob["scaler"])
        step, images = int(blob["step"]), self.schedule.images
        # States of before the record know no time: their metrics do.
        seconds = blob.get("seconds") or seconds_of(read_metrics(self.state.parent), step, images) or 0.0
        return Done(step, seconds, dict(blob.get("bad", {})))

    def export(self) -> None:
        """The averaged weights, as they are now."""
        model = self.average
        if self.accelerator.device.type != "cpu":
            model = copy.deepcopy(model).cpu()
        export(self.task, model, self.weights)
        self.exported(self.done)


def read_state(file: Path, warn: Callable[[str], None] = lambda text: None) -> dict[str, Any] | None:
    """A saved state, on the CPU; None where there is none, or where it is damaged, which ``warn`` is told.

    States of ctxedit 0.1 have no checksum and are taken as they are: hours of work are in them.
    """
    try:
        return load_state(file, unchecked=True)
    except BrokenState as error:
        warn(f"{file} {error}: the training begins anew")
        return None


def export(task: Task, model: nn.Module, folder: Path) -> None:
    """Save a model: all its files are written apart first, then each takes its old one's place.

    ``task.export`` may write beside ``folder`` as well (a pipeline's index): its parent is apart, too.

    Raises:
        OutputError: the disk is full, or the place cannot be written; what lay there stays.
    """
    sweep(folder.parent)
    with staging(folder.parent, folder.name) as apart:
        (apart / folder.name).mkdir()
        task.export(model, apart / folder.name)
        (apart / "probe").touch()
        allowed = (apart / "probe").stat().st_mode & 0o777  # what the umask leaves
        (apart / "probe").unlink()
        for file in sorted(f for f in apart.rglob("*") if f.is_file()):
            # safetensors writes for the owner alone.
            file.chmod(allowed)
            synchronize(file)
            target = folder.parent / file.relative_to(apart)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, target)


@torch.no_grad()
def _follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
    for mine, theirs in zip(average.buffers(), model.buffers(), strict=True):
        mine.copy_(theirs)


def clear(state: Path) -> None:
    """Forget a training's state and metrics."""
    shutil.rmtree(state, ignore_errors=True)
