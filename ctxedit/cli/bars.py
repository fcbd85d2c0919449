"""Progress bars that are readable on a terminal of any width."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Column


def folding(text: str) -> TextColumn:
    """A text of a bar that folds where the terminal is narrow."""
    return TextColumn(text, markup=False, table_column=Column(overflow="fold"))


def bars(
    console: Console, count: type[ProgressColumn], *more: ProgressColumn, transient: bool = False
) -> Progress:
    """Progress bars whose numbers are whole at any width: first the bar gets shorter, then the texts fold.

    Args:
        console: where they are drawn.
        count: the column that says how much is done.
        more: columns at the end.
        transient: take the bars away when they are done.
    """
    bar = BarColumn(None, table_column=Column(min_width=4, max_width=40))
    numbers = (kind(table_column=Column(no_wrap=True)) for kind in (count, TimeRemainingColumn))
    return Progress(folding("{task.description}"), bar, *numbers, *more, console=console, transient=transient)
