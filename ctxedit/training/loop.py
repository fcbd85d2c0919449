"""The training loop: seeded, resumable, on one or several processes, with averaged weights (EMA)."""

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
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset

from ctxedit.errors import ConfigError, NumericsError
from ctxedit.media.temporary import staging, sweep, synchronize
from ctxedit.models.device import keep_heap, name_of, pick_device
from ctxedit.models.state import BrokenState, load_state, save_state
from ctxedit.training.data import raise_if_bad
from ctxedit.training.progress_log import ProgressLog, read_metrics, seconds_of
from ctxedit.training.schedule import Schedule, lr_scheduler
from ctxedit.training.signals import catch_signals, ignore_interrupts


class Trainable(Protocol):
    """The interface that the loop needs from a task; see :class:`ctxedit.training.tasks.base.Task`."""

    model: nn.Module

    def dataset(self, seed: int) -> Dataset[Any]: ...
    def loss(
        self, model: nn.Module, batch: Any, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]: ...
    def export(self, model: nn.Module, folder: Path) -> None: ...


@dataclass
class Done:
    """Totals of a training, including resumed runs. ``bad``: samples left out, name to reason."""

    step: int = 0
    seconds: float = 0.0
    bad: dict[str, str] = field(default_factory=dict)


def check_placement(schedule: Schedule, device: str = "auto") -> tuple[torch.device, int]:
    """The device of a training and its number of processes, which a launcher sets in ``WORLD_SIZE``.

    Raises:
        ConfigError: the device does not support the precision, or the batch cannot be divided among the
            processes.
        ResourceError: there is no such device.
    """
    if ":" in device:
        raise ConfigError(
            f"device {device!r} cannot be used for training",
            "use cuda, with CUDA_VISIBLE_DEVICES",
        )
    chosen = pick_device(device)
    if schedule.precision not in ("no", "fp16", "bf16"):
        raise ConfigError(f"precision {schedule.precision!r}", "one of: no, fp16, bf16")
    if schedule.precision == "fp16" and chosen.type != "cuda":
        raise ConfigError("fp16 needs a CUDA device", "use --precision bf16 or no")
    world = os.environ.get("WORLD_SIZE", "1")
    if not world.isdecimal() or int(world) < 1:
        raise ConfigError(f"WORLD_SIZE = {world!r}", "a launcher such as torchrun sets it; or unset it")
    if schedule.batch % int(world):
        raise ConfigError(
            f"a batch of {schedule.batch} cannot be divided among {world} processes",
            f"choose a multiple of {world}",
        )
    return chosen, int(world)


def make_accelerator(schedule: Schedule, device: str = "auto") -> Accelerator:
    """An ``Accelerator`` for ``auto``, ``cpu``, ``cuda`` or ``mps``; under a launcher, one per process.

    Raises:
        ConfigError, ResourceError: as :func:`check_placement`; or several processes were not started by a
            launcher.
    """
    chosen, processes = check_placement(schedule, device)
    if processes > 1 and "MASTER_ADDR" not in os.environ:
        raise ConfigError(
            f"WORLD_SIZE = {processes}, but no MASTER_ADDR says where the processes meet",
            "start them with accelerate launch or torchrun",
        )
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        # Accelerate keeps one global state per process and refuses to change its precision.
        AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(mixed_precision=schedule.precision, cpu=chosen.type == "cpu")


class _Step(nn.Module):
    """A task's loss as a module's forward pass, so that autocast and gradient exchange cover all of it."""

    def __init__(self, task: Trainable) -> None:
        super().__init__()
        self.model, self._loss = task.model, task.loss

    def forward(self, batch: Any, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        return self._loss(self.model, batch, generator)


def train(
    task: Trainable,
    schedule: Schedule,
    state: Path,
    weights: Path,
    *,
    report: Callable[[dict[str, float]], None] = lambda row: None,
    stop_after: int | None = None,
    accelerator: Accelerator | None = None,
    exported: Callable[[Done], None] = lambda done: None,
    tensorboard: Path | None = None,
    needs_export: Callable[[int], bool] = lambda steps: False,
    snapshot: Callable[[int], Path] | None = None,
) -> nn.Module:
    """Train ``task`` to the end of its schedule, resuming from ``state`` if there is one.

    Args:
        task: what to train.
        schedule: length and optimisation.
        state: folder of the resumable state (``state.pt``) and the metrics (``metrics.jsonl``).
        weights: folder that receives the averaged weights at every save.
        report: called about every two seconds with the figures, step, images per second and seconds left.
        stop_after: save and stop at this step (for tests).
        accelerator: from :func:`make_accelerator`; None creates one.
        exported: called after each export, on the main process.
        tensorboard: folder for TensorBoard's event files.
        needs_export: whether the weights after this many steps are missing although ``weights`` exists; a
            finished training then exports them again.
        snapshot: prepares the folder for the weights after so many steps, where the schedule has snapshots.

    Returns:
        The averaged model. On a CPU it is bit for bit a function of the seed, resumed or not.

    Raises:
        NumericsError: the loss is not finite; the last saved state is kept.
        OutputError: the disk is full; the last saved state and weights are kept.
        InputError: bad input, where the data says ``stop``.
        KeyboardInterrupt: after Ctrl-C; the state is saved first.
    """
    keep_heap()
    # On GPUs: TF32 for float32 matrix products, and the fastest of cuDNN's convolution algorithms.
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    loop = _Loop(task, schedule, state, weights, accelerator or make_accelerator(schedule), exported)
    loop.snapshot = snapshot
    end = min(schedule.steps, stop_after or schedule.steps)
    with ProgressLog(state, loop.done.step, end, schedule.images, report, tensorboard, loop.main) as log:
        if loop.main and loop.done.step >= end and (not weights.is_dir() or needs_export(loop.done.step)):
            loop.export()
        loop.run(end, log)
    return loop.average.module


class _Loop:
    """Model, optimiser and averaged weights of a training, on one of its processes."""

    def __init__(
        self,
        task: Trainable,
        schedule: Schedule,
        state: Path,
        weights: Path,
        accelerator: Accelerator,
        exported: Callable[[Done], None],
    ) -> None:
        self.task, self.schedule, self.accelerator = task, schedule, accelerator
        self.state, self.weights, self.exported = state / "state.pt", weights, exported
        self.snapshot: Callable[[int], Path] | None = None
        self.main = accelerator.is_main_process
        self.trained = [p for p in task.model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            self.trained, lr=schedule.lr, betas=(0.9, 0.99), weight_decay=schedule.weight_decay
        )
        task.model.to(accelerator.device)
        self.average = AveragedModel(task.model, multi_avg_fn=self._update_average).eval()
        self.average.requires_grad_(False)
        self.step, self.optimizer = accelerator.prepare(_Step(task), optimizer)
        self.done = self._load()
        self.average.n_averaged.fill_(self.done.step)
        self.scheduler = lr_scheduler(self.optimizer, schedule, self.done.step)
        self.dataset = task.dataset(schedule.seed)
        self.done.bad |= getattr(self.dataset, "bad", {})

    def run(self, end: int, log: ProgressLog) -> None:
        """Train up to step ``end``; saves periodically, at the end, and on Ctrl-C."""
        began, before, saved = time.monotonic(), self.done.seconds, time.monotonic()
        start = self.done.step
        with catch_signals() as received:
            for step, batches in zip(range(start, end), self._batches(start, end), strict=True):
                row, stop = self._one(step, batches, received)
                self.done.step, self.done.seconds = step + 1, before + time.monotonic() - began
                log.add(step, row | ({"bad": len(self.done.bad)} if self.done.bad else {}))
                if self.main and self.snapshot is not None and self.schedule.is_snapshot(step + 1):
                    self.export_to(self.snapshot(step + 1))
                now = time.monotonic()
                if now - saved > self.schedule.save_seconds or step + 1 == end or stop:
                    if self.main:
                        self._save()
                        self.export()
                    saved = now
                if stop and step + 1 < end:
                    raise KeyboardInterrupt if received[:1] != [signal.SIGTERM] else SystemExit(143)

    def _one(self, step: int, batches: list[Any], received: list[int]) -> tuple[dict[str, float], bool]:
        """One optimiser step; returns its figures, and whether any process received a signal to stop."""
        schedule, accelerator = self.schedule, self.accelerator
        # The generator depends on seed and step only, so that a resumed run samples the same noise.
        # Each process samples its own.
        seed = schedule.seed * 1_000_003 + step + (accelerator.process_index << 48)
        generator = torch.Generator().manual_seed(seed)
        loss, row = torch.zeros(()), {}
        for i, batch in enumerate(batches):
            last = i + 1 == len(batches)
            with nullcontext() if last else accelerator.no_sync(self.step):
                loss, row = self.step(self._on_device(batch), generator)
                accelerator.backward(loss / len(batches))
        value, stop = self._agree(loss.detach(), bool(received))
        if not math.isfinite(value):
            raise NumericsError(f"the loss is {value} at step {step}", "try a lower lr, or precision = no")
        accelerator.clip_grad_norm_(self.trained, schedule.clip_norm)
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.average.update_parameters(self.task.model)
        return row, stop

    def _update_average(self, average: Any, current: Any, _: Any) -> None:
        """One step of the exponential moving average, with the decay of the step being done."""
        decay = self.schedule.ema_decay(self.done.step)
        get_ema_multi_avg_fn(decay)(average, current, _)

    def _agree(self, loss: Tensor, stop: bool) -> tuple[float, bool]:
        """Mean loss, and whether to stop, over all processes: if one stopped alone, the others would hang."""
        if self.accelerator.num_processes == 1:
            return loss.item(), stop
        both = torch.stack([loss.float(), torch.tensor(float(stop), device=loss.device)])
        both = self.accelerator.reduce(both, "mean")
        return both[0].item(), both[1].item() > 0

    def _on_device(self, batch: Any) -> Any:
        """The batch on the device; collects the bad input that it reports, or raises InputError."""
        bad = {line.split("\t", 1)[0]: line.split("\t", 1)[1] for text in batch.pop("bad", []) if text
               for line in text.split("\n")}  # fmt: skip
        if getattr(self.dataset, "on_error", "skip") == "stop":
            raise_if_bad(bad)
        self.done.bad |= bad
        device = self.accelerator.device
        pinned = device.type == "cuda"
        return {
            k: v.to(device, non_blocking=pinned) if isinstance(v, Tensor) else v for k, v in batch.items()
        }

    def _batches(self, start: int, end: int) -> Iterator[list[Any]]:
        """The micro-batches of every step from ``start``; each process gets its share of each."""
        schedule, processes = self.schedule, self.accelerator.num_processes
        share = schedule.batch // processes
        first = range(start * schedule.images, end * schedule.images, schedule.batch)
        offset = self.accelerator.process_index * share
        indices: Any = [range(i + offset, i + offset + share) for i in first]
        workers = self._workers()
        loader = DataLoader(
            self.dataset,
            batch_sampler=indices,
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            worker_init_fn=ignore_interrupts,
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
            "average": self.average.module.state_dict(),
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
            self.average.module.load_state_dict(blob["average"])
            self.optimizer.load_state_dict(blob["optimizer"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"{self.state} is of another recipe", "use another --state, or pass -y to start again"
            ) from error
        if self.accelerator.scaler is not None and "scaler" in blob:
            self.accelerator.scaler.load_state_dict(blob["scaler"])
        step, images = int(blob["step"]), self.schedule.images
        # States of the first version have no time; it follows from their metrics.
        seconds = blob.get("seconds") or seconds_of(read_metrics(self.state.parent), step, images) or 0.0
        return Done(step, seconds, dict(blob.get("bad", {})))

    def export(self) -> None:
        """Export the averaged weights."""
        self.export_to(self.weights)
        self.exported(self.done)

    def export_to(self, folder: Path) -> None:
        """Export the averaged weights into another folder."""
        model = self.average.module
        if self.accelerator.device.type != "cpu":
            model = copy.deepcopy(model).cpu()
        export(self.task, model, folder)


def read_state(file: Path, warn: Callable[[str], None] = lambda text: None) -> dict[str, Any] | None:
    """A saved state, on the CPU; None if there is none, or if it is damaged, with a warning.

    States of ctxedit 0.1 have no checksum and are accepted as they are, because they represent hours of work.
    """
    try:
        return load_state(file, unchecked=True)
    except BrokenState as error:
        warn(f"{file} {error}: the training starts over")
        return None


def export(task: Trainable, model: nn.Module, folder: Path) -> None:
    """Save a model: its files are written to a temporary folder, then each replaces the old one.

    ``task.export`` may also write next to ``folder`` (a pipeline's index), so its parent is temporary too.

    Raises:
        OutputError: the disk is full or ``folder`` cannot be written; the old files are kept.
    """
    sweep(folder.parent)
    with staging(folder.parent, folder.name) as apart:
        (apart / folder.name).mkdir()
        task.export(model, apart / folder.name)
        (apart / "probe").touch()
        allowed = (apart / "probe").stat().st_mode & 0o777  # permissions allowed by the umask
        (apart / "probe").unlink()
        for file in sorted(f for f in apart.rglob("*") if f.is_file()):
            # safetensors creates files that only the owner can read.
            file.chmod(allowed)
            synchronize(file)
            target = folder.parent / file.relative_to(apart)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, target)


def clear(state: Path) -> None:
    """Delete a training's state and metrics."""
    shutil.rmtree(state, ignore_errors=True)
