"""The interface of every executor, and the loop that gives the next job to whichever worker is free."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from ctxedit.editing.reporter import Reporter
from ctxedit.errors import ResourceError, counted

J = TypeVar("J")
R = TypeVar("R")
J_in = TypeVar("J_in", contravariant=True)
R_out = TypeVar("R_out", covariant=True)

#: How often a job is retried after the process that ran it died.
RETRIES = 2


class Work(Protocol[J_in, R_out]):
    """What is done for each job. It is pickled once for each worker, which keeps it across jobs.

    Anything it loads may be kept in attributes that are not pickled.
    """

    def prepare(self) -> None:
        """Load what every job needs; called once in each worker. Errors end the whole run."""

    def __call__(self, job: J_in, reporter: Reporter) -> Iterable[R_out]:
        """The results of a job. An exception ends the whole run: a job's own failure is a result too."""


class Overseer(Reporter):
    """Is notified which worker runs which job; also receives messages and the progress within jobs."""

    def started(self, job: Any, worker: str) -> None:
        """A worker begins a job; ``worker`` is empty for this process."""

    def ended(self, job: Any, worker: str) -> None:
        """A worker has done a job, or lost it."""


@dataclass(frozen=True)
class Lost:
    """In place of the result of a job whose worker died at every attempt."""

    reason: str


class Executor(ABC):
    """Runs jobs.

    Attributes:
        workers: maximum number of concurrent jobs.
    """

    workers: int = 1

    def __enter__(self) -> Executor:
        return self

    def __exit__(self, *error: object) -> None:  # noqa: B027
        """Release what the constructor acquired."""

    @abstractmethod
    def describe(self) -> str:
        """Where the jobs run, as readable text."""

    @abstractmethod
    def run(self, work: Work[J, R], jobs: Sequence[J], overseer: Overseer) -> Iterator[tuple[J, R | Lost]]:
        """Run every job; yields each result with its job, as they become available.

        Closing the iterator stops the workers. Exceptions of the work are raised here.
        """


class InProcess(Executor):
    """Runs jobs in this process, one after the other; results and progress are reported immediately.

    Args:
        threads: CPU threads to compute with; None keeps the current setting.
    """

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads

    def describe(self) -> str:
        return "this process" + (f", {counted(self.threads, 'thread')}" if self.threads else "")

    def run(self, work: Work[J, R], jobs: Sequence[J], overseer: Overseer) -> Iterator[tuple[J, R | Lost]]:
        if not jobs:
            return
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(self.threads or before)
        try:
            work.prepare()
            for job in jobs:
                overseer.started(job, "")
                for result in work(job, overseer):
                    yield job, result
                overseer.ended(job, "")
        finally:
            torch.set_num_threads(before)


class Collecting(Reporter):
    """Collects warnings, which are reported in the parent process."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@dataclass(frozen=True)
class Answer(Generic[R]):
    """What a worker sends back for a job.

    Attributes:
        place: the machine and process.
        results: those that were produced, including before an error.
        warnings: to be reported.
        error: what ends the whole run, or None.
    """

    place: str
    results: list[R] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    error: BaseException | None = None


class Prepared(Generic[J, R]):
    """The work inside a worker, prepared before its first job."""

    def __init__(self, work: Work[J, R]) -> None:
        self._work, self._ready = work, False

    def ready(self, place: str) -> Answer[R]:
        """Prepare the work; an exception is part of the answer."""
        try:
            self._prepare()
        except BaseException as error:
            return Answer(place, error=error)
        return Answer(place)

    def __call__(self, job: J, reporter: Reporter) -> Iterable[R]:
        self._prepare()
        return self._work(job, reporter)

    def _prepare(self) -> None:
        if not self._ready:
            self._work.prepare()
            self._ready = True


def answer(work: Prepared[J, R], job: J, place: str) -> Answer[R]:
    """Run a job in a worker; any exception is part of the answer."""
    reporter, results = Collecting(), list[R]()
    try:
        results.extend(work(job, reporter))
    except BaseException as error:
        return Answer(place, results, reporter.warnings, error)
    return Answer(place, results, reporter.warnings)


class Worker(ABC, Generic[J, R]):
    """A process that runs one job at a time.

    Attributes:
        name: the name in messages.
        retries: how often the loop below retries a lost job on it.
        died: exceptions that mean that the process died.
    """

    name: str
    retries: int = 0
    died: tuple[type[BaseException], ...] = ()

    @abstractmethod
    def open(self) -> Future[Answer[R]]:
        """Start the process and prepare the work; the answer says where it is."""

    @abstractmethod
    def submit(self, job: J) -> Future[Answer[R]]:
        """Begin a job."""

    @abstractmethod
    def close(self) -> None:
        """Stop the process, immediately if it is working."""


@dataclass
class _Running(Generic[J, R]):
    """A worker running a job, or starting (``job`` is None)."""

    worker: Worker[J, R]
    name: str
    job: J | None = None
    tries: int = 0


def hand_out(
    workers: Sequence[Worker[J, R]], jobs: Sequence[J], overseer: Overseer
) -> Iterator[tuple[J, R | Lost]]:
    """Assign every job to a free worker; yields results as they arrive. Workers are closed at the end.

    A worker without remaining jobs is closed immediately, because another one may be waiting for its
    resources. One that has not started by then is not waited for.
    """
    try:
        yield from _Round(workers, jobs, overseer).results()
    finally:
        for worker in workers:
            worker.close()


class _Round(Generic[J, R]):
    def __init__(self, workers: Sequence[Worker[J, R]], jobs: Sequence[J], overseer: Overseer) -> None:
        self.overseer, self.waiting = overseer, deque(jobs)
        self.running: dict[Future[Answer[R]], _Running[J, R]] = {
            worker.open(): _Running(worker, worker.name) for worker in workers
        }

    def results(self) -> Iterator[tuple[J, R | Lost]]:
        while self.waiting or any(now.job is not None for now in self.running.values()):
            for future in wait(self.running, return_when=FIRST_COMPLETED).done:
                now = self.running.pop(future)
                if (died := future.exception()) is not None:
                    yield from self._died(now, died)
                else:
                    yield from self._told(now, future.result())

    def _next(self, worker: Worker[J, R]) -> None:
        if not self.waiting:
            worker.close()
            return
        job = self.waiting.popleft()
        self.overseer.started(job, worker.name)
        self.running[worker.submit(job)] = _Running(worker, worker.name, job)

    def _told(self, now: _Running[J, R], given: Answer[R]) -> Iterator[tuple[J, R | Lost]]:
        if now.job is not None and given.place != now.name:
            self.overseer.warn(f"{now.name} died: {given.place} repeated its job")
        now.worker.name = given.place
        for text in given.warnings:
            self.overseer.warn(text)
        if now.job is not None:
            for result in given.results:
                yield now.job, result
        if given.error is not None:
            raise given.error
        if now.job is not None:
            self.overseer.ended(now.job, now.name)
        self._next(now.worker)

    def _died(self, now: _Running[J, R], died: BaseException) -> Iterator[tuple[J, R | Lost]]:
        worker, tries = now.worker, now.tries + 1
        line = f"{type(died).__name__}: {str(died).strip()}".split("\n")[0][:200]
        if now.job is None or not isinstance(died, worker.died):
            raise ResourceError(
                f"{now.name} failed to start: {line}",
                "install the same ctxedit and packages on every machine",
            ) from died
        if now.tries < worker.retries:
            self.overseer.warn(f"{now.name} died: its job is repeated")
            self.running[worker.submit(now.job)] = _Running(worker, now.name, now.job, tries)
            return
        yield (
            now.job,
            Lost(f"the process that worked on it died {RETRIES + 1} times; is there enough memory?"),
        )
        self.overseer.ended(now.job, now.name)
        self._next(worker)
