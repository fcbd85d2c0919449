"""Ctrl-C in a training: the step is finished and saved first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def deaf(_: int) -> None:
    """Workers leave Ctrl-C to the main process: it needs their batches to finish its step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def asked_to_stop() -> Iterator[list[int]]:
    """A list that holds the signal when Ctrl-C or SIGTERM came; the second Ctrl-C does not wait."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def note(number: int, frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
