"""Ctrl-C and SIGTERM during training: the current step is finished and saved before stopping."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def ignore_interrupts(_: int) -> None:
    """``worker_init_fn`` of data workers: the main process needs their batches to finish its step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def catch_signals() -> Iterator[list[int]]:
    """A list that receives the number of a SIGINT or SIGTERM; a second one raises KeyboardInterrupt."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def note(number: int, frame: Any) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
