"""A recipe's ``[schedule]`` table, and the learning rate that follows from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ctxedit.config import Range

_Count = Annotated[int, Range(1, 1_000_000_000)]
_Number = Annotated[float, Range(0, 1_000_000_000)]
_Share = Annotated[float, Range(0, 1)]
#: The learning rate falls to this share of its peak.
_FINAL_LR = 0.1


@dataclass(frozen=True)
class Schedule:
    """Length, optimisation and numerics of a training.

    Attributes:
        steps: optimiser steps in total.
        batch: samples per forward pass, over all processes.
        lr: peak learning rate: linear warm-up over ``warmup`` steps, then cosine decay to a tenth.
        ema: decay of the averaged weights (EMA), limited to (step + 1) / (step + 10) at the start.
        clip_norm: gradients are clipped to this norm.
        save_seconds: time between two saved states.
        accumulate: forward passes per optimiser step.
        precision: ``no``, ``fp16`` or ``bf16``, as accelerate names them.
        workers: data loading processes per training process. None: with CUDA nearly all CPU cores, else one,
            because on a CPU they compete with the training itself.
        snapshots: parts of equal length into which the training is divided: after each but the last, the
            averaged weights are also exported into their own model folder, so that they can be evaluated by
            sampling.
    """

    steps: _Count
    batch: _Count
    lr: _Number
    warmup: Annotated[int, Range(0, 1_000_000_000)] = 200
    weight_decay: _Number = 0.01
    ema: _Share = 0.999
    clip_norm: _Number = 1.0
    seed: Annotated[int, Range(0, 2**31 - 1)] = 0
    save_seconds: _Number = 180.0
    accumulate: _Count = 1
    precision: Literal["no", "fp16", "bf16"] = "no"
    workers: Annotated[int, Range(0, 256)] | None = None
    snapshots: Annotated[int, Range(1, 1000)] = 1

    def is_snapshot(self, step: int) -> bool:
        """Whether the weights after ``step`` steps are exported as a snapshot."""
        return step in {round(part * self.steps / self.snapshots) for part in range(1, self.snapshots)}

    @property
    def images(self) -> int:
        """Samples per optimiser step."""
        return self.batch * self.accumulate

    def ema_decay(self, step: int) -> float:
        """Decay of the averaged weights at a step."""
        return min(self.ema, (step + 1) / (step + 10))


def lr_scheduler(optimizer: Optimizer, schedule: Schedule, step: int = 0) -> LRScheduler:
    """The scheduler of a training that has done ``step`` steps; sets the optimiser's learning rate.

    The rate is a function of the schedule and the step, not of earlier rates. A training can therefore
    resume with another number of steps.
    """
    from transformers import get_scheduler

    for group in optimizer.param_groups:
        group["initial_lr"] = schedule.lr
    scheduler: LRScheduler = get_scheduler(
        "cosine_warmup_with_min_lr",
        optimizer,
        schedule.warmup,
        schedule.steps,
        {"min_lr_rate": _FINAL_LR, "last_epoch": step - 1},
    )
    return scheduler
