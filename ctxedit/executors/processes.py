"""Several processes on this machine, each with its own number of CPU threads and its share of the GPUs."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from typing import Any

from ctxedit.errors import counted
from ctxedit.executors.base import (
    RETRIES,
    Answer,
    Executor,
    J,
    Lost,
    Overseer,
    Prepared,
    R,
    Work,
    Worker,
    answer,
    hand_out,
)

#: The work of this process, in a worker.
_here: dict[str, Any] = {}


class Processes(Executor):
    """Worker processes on this machine.

    Args:
        workers: how many.
        threads: CPU threads of each. Sums are split by threads, so another number may change the last bits.
    """

    def __init__(self, workers: int, threads: int) -> None:
        self.workers, self.threads = workers, threads

    def describe(self) -> str:
        return f"{counted(self.workers, 'worker')} on this machine, {counted(self.threads, 'thread')} each"

    def run(self, work: Work[J, R], jobs: Sequence[J], overseer: Overseer) -> Iterator[tuple[J, R | Lost]]:
        count, packed, gpus = min(self.workers, len(jobs)), pickle.dumps(work), _visible_gpus()
        context = _context(bool(gpus), type(work).__module__)
        workers: list[Worker[J, R]] = [
            _Process(context, number, self.threads, gpus[number % len(gpus)] if gpus else None, packed)
            for number in range(count)
        ]
        yield from hand_out(workers, jobs, overseer)


class _Process(Worker[J, R]):
    """One process: a pool of one, so that its death is detected and affects no other."""

    retries = RETRIES
    died = (BrokenProcessPool,)

    def __init__(self, context: Any, number: int, threads: int, gpu: str | None, work: bytes) -> None:
        self._context = context
        self.name = f"worker {number + 1}"
        self._start = (self.name, threads, gpu, work)
        self._pool: ProcessPoolExecutor | None = None
        self._now: Future[Answer[R]] | None = None

    def open(self) -> Future[Answer[R]]:
        self._pool = ProcessPoolExecutor(1, self._context, _begin, self._start)
        self._now = self._pool.submit(_ready)
        return self._now

    def submit(self, job: J) -> Future[Answer[R]]:
        if self._pool is not None:
            with suppress(BrokenProcessPool):
                self._now = self._pool.submit(_do, job)
                return self._now
        self.close()
        self._pool = ProcessPoolExecutor(1, self._context, _begin, self._start)
        self._now = self._pool.submit(_do, job)
        return self._now

    def close(self) -> None:
        pool, self._pool = self._pool, None
        if pool is None:
            return
        if self._now is not None and not self._now.done():
            for process in list((pool._processes or {}).values()):
                process.terminate()
        pool.shutdown(wait=True, cancel_futures=True)


def _context(gpu: bool, module: str) -> Any:
    """Processes that inherit no threads: forked from a clean one that has imported the work's module once.

    On machines with GPUs each one is spawned: an import may initialize the driver, which does not survive a
    fork.
    """
    if gpu or sys.platform == "win32":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", __name__, module])
    return context


def _visible_gpus() -> list[str]:
    """The CUDA devices that this process may use, by the names that the driver accepts."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        return [one.strip() for one in listed.split(",") if one.strip()]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def _begin(name: str, threads: int, gpu: str | None, work: bytes) -> None:
    """In a new process: set its threads and its GPU before anything is computed."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Ctrl-C goes to every process of a terminal; it is for the parent, which stops its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _stop)
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    import torch

    torch.set_num_threads(threads)
    _here.update(name=name, work=Prepared(pickle.loads(work)), busy=False)


def _end_with_parent() -> None:
    """A killed parent cannot stop its workers."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _stop(*_: object) -> None:
    """End a job as Ctrl-C does, removing partly written files."""
    if not _here["busy"]:
        os._exit(1)
    raise KeyboardInterrupt


def _ready() -> Answer[Any]:
    with _busy() as work:
        return work.ready(_here["name"])


def _do(job: Any) -> Answer[Any]:
    with _busy() as work:
        return answer(work, job, _here["name"])


@contextmanager
def _busy() -> Iterator[Prepared[Any, Any]]:
    _here["busy"] = True
    try:
        yield _here["work"]
    finally:
        _here["busy"] = False
