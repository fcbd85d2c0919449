"""How stages report what they do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Reporter:
    """Receives messages and progress. This one discards them; the command line prints them."""

    def say(self, text: str) -> None:
        """Report progress in one line."""

    def warn(self, text: str) -> None:
        """Report something that the user should not miss."""

    @contextmanager
    def task(self, name: str, total: int, unit: str = "step") -> Iterator[Callable[[int, str], None]]:
        """Report a stage of ``total`` steps; the callable takes the steps done and a short note.

        ``unit`` names, in the singular, what is counted where it is not steps: images, frames, clips.
        """

        def discard(done: int, note: str = "") -> None:
            """Nothing is reported."""

        yield discard
