"""Options that say where many jobs run, and the executor that they select."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from ctxedit.errors import ConfigError

if TYPE_CHECKING:
    from ctxedit.executors import Executor


@dataclass(frozen=True)
class ExecutorOptions:
    """How many processes do the work, and on which machines."""

    panel: ClassVar = "Workers"
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers", min=1, metavar="N", show_default=False,
            help="Worker processes. [default: 1]",
        ),
    ] = None  # fmt: skip
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads", min=1, metavar="N", show_default=False,
            help="CPU threads of each worker. For a given number, results are bit for bit the same with "
            "any number of workers. [default: this machine's, divided by the workers]",
        ),
    ] = None  # fmt: skip
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray", metavar="ADDRESS", show_default=False,
            help="Run on a Ray cluster: auto, local, HOST:PORT or ray://HOST:PORT. All machines must "
            "share the folders of clips and results. --workers defaults to as many as fit, --threads to 1.",
        ),
    ] = None  # fmt: skip
    gpus: Annotated[
        float | None,
        typer.Option(
            "--gpus", min=0.0, metavar="N", show_default=False,
            help="GPUs that Ray reserves for each worker; fractions share one. [default: 0]",
        ),
    ] = None  # fmt: skip
    memory: Annotated[
        float | None,
        typer.Option(
            "--memory", min=0.0, metavar="GIB", show_default=False,
            help="Memory that Ray reserves for each worker, in GiB. [default: the estimate of --dry-run]",
        ),
    ] = None  # fmt: skip


def executor_of(where: ExecutorOptions, peak_bytes: int = 0) -> Executor:
    """The executor that the options name, checked to be possible; use it in a ``with`` block.

    Args:
        where: the options.
        peak_bytes: memory that one worker needs, estimated.

    Raises:
        ConfigError: options that do not go together, Ray is not installed, an invalid address.
        ResourceError: not enough memory for so many workers, no cluster at the address, or none of its
            machines has what a worker needs.
    """

    if where.ray is not None:
        return _on_ray(where.ray, where, peak_bytes)
    for name in ("gpus", "memory"):
        if getattr(where, name) is not None:
            raise ConfigError(f"--{name} needs --ray", "add --ray ADDRESS, or leave it out")
    import torch

    from ctxedit.editing.machine import check_memory, memory_available
    from ctxedit.executors import InProcess
    from ctxedit.executors.processes import Processes

    workers = where.workers or 1
    threads = where.threads or max(1, torch.get_num_threads() // workers)
    if workers == 1:
        return InProcess(threads)
    if not torch.cuda.is_available():
        check_memory(
            f"the work of {workers} workers", workers * peak_bytes, memory_available(torch.device("cpu"))
        )
    return Processes(workers, threads)


def _on_ray(address: str, where: ExecutorOptions, peak_bytes: int) -> Executor:
    from ctxedit.executors.cluster import Cluster, Needs

    # What is estimated for work on a GPU is the GPU's memory, which Ray does not count.
    default = 0 if where.gpus else peak_bytes
    memory = default if where.memory is None else int(where.memory * 2**30)
    return Cluster(address, Needs(where.threads or 1, where.gpus or 0.0, memory), where.workers)
