"""The pipeline's reporter on a terminal or in a log. Imports the pipeline, so import it late."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import MofNCompleteColumn

from ctxedit.cli.bars import bars, folding
from ctxedit.cli.failures import work_begins
from ctxedit.cli.output import Screen, debugging
from ctxedit.editing.reporter import Reporter
from ctxedit.errors import counted

#: Seconds between lines of a long stage where there is no terminal.
_EVERY = 30.0


class CommandReporter(Reporter):
    """Bars with the time left on a terminal, plain lines elsewhere, nothing with ``-q``."""

    def __init__(self, screen: Screen) -> None:
        self.screen = screen

    def say(self, text: str) -> None:
        self.screen.say(text)

    def warn(self, text: str) -> None:
        self.screen.warn(text)

    @contextmanager
    def task(self, name: str, total: int, unit: str = "step") -> Iterator[Callable[[int, str], None]]:
        began, last = time.monotonic(), ["", 0]

        def note(done: int, text: str = "") -> None:
            last[:] = [text, done]

        how = self._bar if self.screen.shows_bars else self._lines
        with how(name, total, unit, note) as step:
            yield step
        text = f" ({last[0]})" if last[0] else ""
        self.say(f"{name}: done in {time.monotonic() - began:.1f} s{text}")

    @contextmanager
    def _bar(
        self, name: str, total: int, unit: str, note: Callable[[int, str], None]
    ) -> Iterator[Callable[[int, str], None]]:
        note_column = folding("{task.fields[note]}")
        with bars(self.screen.console, MofNCompleteColumn, note_column, transient=True) as progress:
            bar = progress.add_task(name, total=total, note="")

            def step(done: int, text: str = "") -> None:
                note(done, text)
                progress.update(bar, completed=done, note=text)

            yield step

    @contextmanager
    def _lines(
        self, name: str, total: int, unit: str, note: Callable[[int, str], None]
    ) -> Iterator[Callable[[int, str], None]]:
        began = said = time.monotonic()
        self.say(f"{name}: {counted(total, unit)}" if total > 1 else f"{name} …")

        def step(done: int, text: str = "") -> None:
            nonlocal said
            note(done, text)
            now = time.monotonic()
            if now - said >= _EVERY and done:
                said = now
                left = (now - began) / done * (total - done)
                self.say(f"{name}: {done}/{total}, about {left:.0f} s left{f', {text}' if text else ''}")

        yield step


def teller(screen: Screen) -> CommandReporter:
    """A reporter for the pipeline; silences libraries. Called when imports are done and the work begins."""
    work_begins()
    if not debugging():
        from ctxedit.models.quiet import hush

        hush()
    return CommandReporter(screen)
