"""A comparison's progress: a table of methods on a terminal, else one line per edit; nothing with ``-q``."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Group
from rich.live import Live
from rich.measure import Measurement
from rich.progress import MofNCompleteColumn
from rich.table import Column, Table

from ctxedit.bench.figures import mean_of
from ctxedit.bench.results import ResultRow
from ctxedit.bench.runner import Watcher
from ctxedit.bench.serve import Job
from ctxedit.cli.bars import bars
from ctxedit.cli.output import Screen, debugging
from ctxedit.cli.work import duration
from ctxedit.errors import counted
from ctxedit.models.quiet import hush

#: What the table shows about the edits so far.
_SHOWN = (("clip_text", "CLIP-text", 3), ("clip_temp", "CLIP-temp", 3), ("judge_asked", "edit found", 2))


class Lines(Watcher):
    """A line for every edit of these methods; other measurements are reported if they fail."""

    def __init__(self, screen: Screen, methods: Sequence[str], seconds: float | None = None) -> None:
        self.methods, self._seconds = tuple(methods), seconds
        self.screen, self._edits, self._done, self._began = screen, 0, 0, time.monotonic()
        self._first = 0
        self.at: dict[str, Job] = {}

    def say(self, text: str) -> None:
        """A session's own messages would drown out the rest."""

    def warn(self, text: str) -> None:
        self.screen.warn(text)

    def began(self, edits: int, done: int) -> None:
        self._edits, self._done, self._first = edits, done, done
        about = f", about {duration(self._seconds)}" if self._seconds else ""
        self.screen.say(f"{counted(edits, 'edit')}, {done} of them done before{about}")

    def started(self, job: Job, worker: str) -> None:
        self.at[worker] = job
        if worker and not self.screen.shows_bars:
            self.screen.say(f"{worker}: {job.method.label}, {job.clip.name}")

    def ended(self, job: Job, worker: str) -> None:
        self.at.pop(worker, None)

    def finished(self, row: ResultRow) -> None:
        if row.method not in self.methods:
            if row.error:
                self.screen.warn(f"{row.method}, {row.clip}, “{row.target}”: {row.error}")
            return
        self._done += 1
        said = f"error: {row.error}" if row.error else _figures(row)
        left = f", {self._left()} left" if self._done < self._edits else ""
        head = f"[{self._done}/{self._edits}{left}]"
        self.screen.say(f"{head} {row.method}, {row.clip}: “{row.target}” {said}")

    def _left(self) -> str:
        each = (time.monotonic() - self._began) / max(1, self._done - self._first)
        return duration(each * (self._edits - self._done))


class Board(Lines):
    """A live table: each method's edits and means so far, the stage at work, the time left."""

    def __init__(self, screen: Screen, methods: Sequence[str], seconds: float | None = None) -> None:
        super().__init__(screen, methods, seconds)
        self._rows: dict[str, list[ResultRow]] = {method: [] for method in methods}
        self._bars = bars(screen.console, MofNCompleteColumn)
        self._whole = self._bars.add_task("edits", total=None)
        self.live = Live(
            console=screen.console, refresh_per_second=4, get_renderable=self._drawn, transient=True
        )

    def began(self, edits: int, done: int) -> None:
        super().began(edits, done)
        self._bars.update(self._whole, total=edits, completed=done)

    def finished(self, row: ResultRow) -> None:
        if row.method in self._rows:
            self._rows[row.method].append(row)
            self._bars.advance(self._whole)
        if row.error:
            self.screen.warn(f"{row.method} failed on {row.clip}, “{row.target}”: {row.error}")

    @contextmanager
    def task(self, name: str, total: int, unit: str = "step") -> Iterator[Callable[[int, str], None]]:
        bar = self._bars.add_task(name, total=total)

        def step(done: int, note: str = "") -> None:
            self._bars.update(bar, completed=done)

        try:
            yield step
        finally:
            self._bars.remove_task(bar)

    def _drawn(self) -> Group:
        console = self.screen.console
        # Measured on an endless line: on the terminal's own, nothing is ever wider than the terminal.
        endless = console.options.update(max_width=10_000)
        for shown, place in ((_SHOWN, True), ((), True), ((), False)):  # the final table has the figures
            table = self._table(shown, place)
            if Measurement.get(console, endless, table).minimum <= console.width:
                break
        return Group(table, self._bars)

    def _table(self, shown: Sequence[tuple[str, str, int]], place: bool) -> Table:
        """Each method's new edits, with these figures, and where it is working."""
        titles = ("new edits", *[one[1] for one in shown], *(["now at"] if place else []))
        longest = max(map(len, self._rows), default=0)
        names = Column("method", overflow="fold", min_width=min(longest, 24))
        table = Table(names, *[Column(title, no_wrap=title != "now at", overflow="fold") for title in titles])
        for method, rows in self._rows.items():
            good = [row.figures for row in rows if row.error is None]
            means = [mean_of(good, key) for key, _, _ in shown]
            cells = [
                "-" if m is None else f"{m:.{digits}f}"
                for m, (_, _, digits) in zip(means, shown, strict=True)
            ]
            at = "\n".join(
                f"{job.clip.name} ({worker})" if worker else job.clip.name
                for worker, job in self.at.items() if job.method.label == method
            )  # fmt: skip
            failed = len(rows) - len(good)
            new = f"{len(good)}, {failed} failed" if failed else str(len(good))
            table.add_row(method, new, *cells, *([at] if place else []))
        return table


def _figures(row: ResultRow) -> str:
    said = [
        f"{title} {value:.{digits}f}"
        for key, title, digits in _SHOWN
        if (value := row.figures.get(key)) is not None
    ]
    return ", ".join(said)


@contextmanager
def watcher(screen: Screen, methods: Sequence[str], seconds: float | None = None) -> Iterator[Watcher]:
    """The display of the progress; silences libraries. ``seconds`` is the estimate for everything."""
    if not debugging():
        hush()
    if not screen.shows_bars:
        yield Lines(screen, methods, seconds)
        return
    board = Board(screen, methods, seconds)
    with board.live:
        yield board
