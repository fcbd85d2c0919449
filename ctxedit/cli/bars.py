"""Progress bars that are readable on a terminal of any width."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Column


def folding(text: str) -> TextColumn:
    """A progress bar's text that wraps on a narrow terminal."""
    return TextColumn(text, markup=False, table_column=Column(overflow="fold"))


def bars(
    console: Console, count: type[ProgressColumn], *more: ProgressColumn, transient: bool = False
) -> Progress:
    """Progress bars that never truncate numbers: if space is short, the bar shrinks, then texts wrap.

    Args:
        console: where they are drawn.
        count: the column that says how much is done.
        more: columns at the end.
        transient: remove the bars when they are done.
    """
    bar = BarColumn(None, table_column=Column(min_width=4, max_width=40))
    numbers = (kind(table_column=Column(no_wrap=True)) for kind in (count, TimeRemainingColumn))
    return Progress(folding("{task.description}"), bar, *numbers, *more, console=console, transient=transient)
