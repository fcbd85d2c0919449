"""Options that say where many jobs run, and the executor that they stand for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ctxedit.executors import Executor

_PANEL = "Workers"


@dataclass(frozen=True)
class Where:
    """How many processes do the work, and on which machines."""

    workers: Annotated[
        int | None,
        typer.Option(
            "--workers", min=1, rich_help_panel=_PANEL, metavar="N", show_default=False,
            help="Worker processes. [default: 1]",
        ),
    ] = None  # fmt: skip
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads", min=1, rich_help_panel=_PANEL, metavar="N", show_default=False,
            help="CPU threads of each worker. With the same number, any number of workers gives the same "
            "bits. [default: this machine's, divided by the workers]",
        ),
    ] = None  # fmt: skip


def executor_of(where: Where, peak_bytes: int = 0) -> Executor:
    """The executor that the options name, checked to be possible.

    Args:
        where: the options.
        peak_bytes: memory that one worker needs, estimated.

    Raises:
        ResourceError: not enough memory for so many workers.
    """
    import torch

    from ctxedit.editing.machine import check_memory, memory_available
    from ctxedit.executors import Here
    from ctxedit.executors.processes import Processes

    workers = where.workers or 1
    threads = where.threads or max(1, torch.get_num_threads() // workers)
    if workers == 1:
        return Here(threads)
    if not torch.cuda.is_available():
        check_memory(
            f"the work of {workers} workers", workers * peak_bytes, memory_available(torch.device("cpu"))
        )
    return Processes(workers, threads)
