"""Workers on a Ray cluster: Ray places them, restarts those that die, and repeats what they were doing."""

from __future__ import annotations

import io
import os
import pickle
import platform
import socket
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, redirect_stdout, suppress
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

from ctxedit.errors import ConfigError, CtxeditError, ResourceError, counted
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
from ctxedit.runs import versions

#: Seconds to wait for a cluster's address to answer.
_PATIENCE = 5.0
_HINT = "start one with `ray start --head`, or take this machine's processes: --workers N"


@dataclass(frozen=True)
class Needs:
    """What Ray reserves for each worker.

    Attributes:
        threads: CPUs, and how many threads compute.
        gpus: GPUs, also fractions of one.
        memory: bytes of main memory; 0 reserves none.
    """

    threads: int = 1
    gpus: float = 0.0
    memory: int = 0


class Cluster(Executor):
    """A Ray cluster that this process is connected to for as long as the ``with`` block lasts.

    Args:
        address: of the cluster, as Ray takes it: ``auto``, ``HOST:PORT``, ``ray://HOST:PORT``; ``local``
            starts one on this machine.
        needs: of each worker.
        workers: how many; None uses as many as fit.

    Raises:
        ConfigError: Ray is not installed, or the address is invalid.
        ResourceError: no cluster answers there, or none of its machines has what a worker needs.
    """

    def __init__(self, address: str, needs: Needs, workers: int | None = None) -> None:
        if find_spec("ray") is None:
            raise ConfigError("Ray is not installed", "pip install 'ctxedit[ray]', or use --workers N")
        _check_answers(address)
        self._stack = ExitStack()
        self._connect(address)
        self.needs, self._address = needs, address
        try:
            room = self._room()
        except BaseException:
            self.__exit__()
            raise
        self.workers = min(room, workers or room)

    def __enter__(self) -> Cluster:
        # Ray prints messages about machines on stdout, which is reserved for results.
        self._stack.enter_context(redirect_stdout(sys.stderr if _debugging() else io.StringIO()))
        return self

    def __exit__(self, *error: object) -> None:
        import ray

        ray.shutdown()
        self._stack.close()

    def describe(self) -> str:
        gpus = f", {self.needs.gpus:g} GPU" if self.needs.gpus else ""
        each = f"{counted(self.needs.threads, 'thread')}{gpus} each"
        return f"{counted(self.workers, 'worker')} on the Ray cluster {self._address}, {each}"

    def run(self, work: Work[J, R], jobs: Sequence[J], overseer: Overseer) -> Iterator[tuple[J, R | Lost]]:
        import ray

        actor = ray.remote(_Actor).options(
            num_cpus=self.needs.threads, num_gpus=self.needs.gpus, memory=self.needs.memory or None,
            max_restarts=-1, max_task_retries=RETRIES,
        )  # fmt: skip
        packed, died = ray.cloudpickle.dumps(work), (ray.exceptions.RayError,)
        count = min(self.workers, len(jobs))
        workers: list[Worker[J, R]] = [
            _Remote(number, partial(actor.remote, number + 1, packed, self.needs.threads, _version()), died)
            for number in range(count)
        ]
        yield from hand_out(workers, jobs, overseer)

    def _connect(self, address: str) -> None:
        import logging

        import ray

        debugging = _debugging()
        try:
            ray.init(
                address=address, log_to_driver=debugging, configure_logging=debugging,
                logging_level=logging.INFO if debugging else logging.ERROR,
            )  # fmt: skip
        except CtxeditError:
            raise
        except Exception as error:
            line = str(error).strip().split("\n")[0][:200]
            raise ResourceError(f"no Ray cluster at {address}: {line}", _HINT) from error

    def _room(self) -> int:
        """How many workers currently fit on the cluster's machines."""
        import ray

        wanted = {"CPU": self.needs.threads, "GPU": self.needs.gpus, "memory": self.needs.memory}
        wanted = {name: amount for name, amount in wanted.items() if amount}
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        room = sum(
            min(int(machine.get(name, 0) / amount) for name, amount in wanted.items()) for machine in machines
        )
        if room:
            return room
        most = {name: max((m.get(name, 0) for m in machines), default=0) for name in wanted}
        lacking = next(name for name, amount in wanted.items() if most[name] < amount or name == "memory")
        raise ResourceError(
            f"no machine of the Ray cluster {self._address} has the {_amount(lacking, wanted)} that a worker "
            f"needs; the largest has {_amount(lacking, most)}",
            "reserve less with --threads, --gpus or --memory",
        )


def _version() -> str:
    return str(versions()["ctxedit"])


def _debugging() -> bool:
    return os.environ.get("CTXEDIT_DEBUG", "") not in ("", "0")


def _amount(name: str, amounts: dict[str, Any]) -> str:
    return f"{amounts[name] / 2**30:.1f} GiB" if name == "memory" else f"{name} {amounts[name]:g}"


def _check_answers(address: str) -> None:
    """Raise for an unreachable address: Ray itself would retry for minutes."""
    if address == "local":
        return
    if address == "auto":
        if os.environ.get("RAY_ADDRESS"):
            _check_answers(os.environ["RAY_ADDRESS"])
        return
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not (colon and host and port.isdigit() and int(port) < 1 << 16):
        raise ConfigError(
            f"--ray {address!r} is not an address",
            "auto, local, HOST:PORT (usually port 6379) or ray://HOST:10001",
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), _PATIENCE).close()
    except OSError as error:
        reason = error.strerror or str(error) or "no answer"
        raise ResourceError(f"no Ray cluster at {address}: {reason}", _HINT) from error


class _Remote(Worker[J, R]):
    """An actor somewhere in the cluster."""

    retries = RETRIES

    def __init__(self, number: int, start: Any, died: tuple[type[BaseException], ...]) -> None:
        self.name, self.died = f"worker {number + 1}", died
        self._start = start
        self._actor: Any = None
        self._now: Future[Answer[R]] | None = None

    def open(self) -> Future[Answer[R]]:
        self._actor = self._start()
        return self._actor.open.remote().future()

    def submit(self, job: J) -> Future[Answer[R]]:
        if self._now is not None and self._now.done() and self._now.exception() is not None:
            # Ray gave up on it; another one starts as soon as a machine has room.
            self.close()
        if self._actor is None:
            self._actor = self._start()
        now: Future[Answer[R]] = self._actor.do.remote(job).future()
        self._now = now
        return now

    def close(self) -> None:
        import ray

        actor, self._actor = self._actor, None
        if actor is not None:
            with suppress(Exception):  # the cluster may be gone
                ray.kill(actor)


class _Actor:
    """The actor in the cluster. Its process keeps what the work has loaded across jobs."""

    def __init__(self, number: int, work: bytes, threads: int, version: str) -> None:
        self._packed, self._threads, self._version = work, threads, version
        self._work: Prepared[Any, Any] | None = None
        self._place = f"worker {number} on {platform.node()} ({os.getpid()})"

    def open(self) -> Answer[Any]:
        try:
            return self._loaded().ready(self._place)
        except BaseException as error:
            return Answer(self._place, error=error)

    def do(self, job: Any) -> Answer[Any]:
        try:
            return answer(self._loaded(), job, self._place)
        except BaseException as error:
            return Answer(self._place, error=error)

    def _loaded(self) -> Prepared[Any, Any]:
        """The work, unpacked here rather than by Ray, which would try to start the actor for minutes."""
        if self._work is None:
            import torch

            if self._version != _version():
                raise ConfigError(
                    f"{platform.node()} has ctxedit {_version()}, this machine {self._version}",
                    "install the same version everywhere",
                )
            torch.set_num_threads(self._threads)
            self._work = Prepared(pickle.loads(self._packed))
        return self._work
