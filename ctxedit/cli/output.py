"""Output: the result on stdout, messages on stderr, ``--json`` as one object."""

from __future__ import annotations

import codecs
import errno
import io
import json
import math
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from ctxedit.cli.failures import Failure, StdoutClosed
from ctxedit.files import printable, visible

#: Most characters in an error's line.
_LONGEST = 1000
#: Replacements of typographic characters that a stream's encoding lacks.
_PLAIN = {
    "…": "...", "×": "x", "“": '"', "”": '"', "‘": "'", "’": "'", "–": "-", "—": "-", "→": "->", "²": "2",
    "−": "-", "≤": "<=", "≥": ">=", "·": ".",
}  # fmt: skip


def debugging() -> bool:
    """Whether ``CTXEDIT_DEBUG`` asks for tracebacks and libraries' warnings."""
    return os.environ.get("CTXEDIT_DEBUG", "") not in ("", "0")


def put(text: str) -> None:
    """Print a result on stdout; raises StdoutClosed when its reader has closed it."""
    try:
        print(text, flush=True)
    except BrokenPipeError as error:
        raise StdoutClosed from error
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EBADF):  # Windows' broken pipe; a closed stdout
            raise StdoutClosed from error
        raise


def lenient_streams() -> None:
    """Let stdout and stderr accept any text: characters that their encoding lacks are replaced or escaped."""
    codecs.register_error("ctxedit", _replacement)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="ctxedit")


def _replacement(error: UnicodeError) -> tuple[str | bytes, int]:
    """An error handler: plain characters for typographic ones, escapes for all others."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    plain = (_PLAIN.get(letter) or letter.encode("ascii", "backslashreplace").decode() for letter in text)
    return "".join(plain), error.end


class _Stderr(Console):
    """Messages; if their reader has closed the stream, or its disk is full, the work continues."""

    def on_broken_pipe(self) -> None:
        self.quiet = True

    def print(self, *objects: Any, **options: Any) -> None:
        try:
            super().print(*objects, **options)
        except OSError:
            self.on_broken_pipe()


def _stderr() -> Console:
    return _Stderr(stderr=True, highlight=False, soft_wrap=True)


class Screen:
    """The output of one command.

    Args:
        quiet: nothing on stderr but errors.
        json: the result is one JSON object.
    """

    def __init__(self, quiet: bool = False, json: bool = False) -> None:
        self.quiet, self.json = quiet, json
        self.console = _stderr()
        self._warned: set[str] = set()

    @property
    def shows_bars(self) -> bool:
        """Whether progress bars may be drawn."""
        return self.console.is_terminal and not self.quiet

    def say(self, text: str) -> None:
        """Print a line for the user."""
        if not self.quiet:
            self.console.print(Text(_lines(text)))

    def warn(self, text: str) -> None:
        """A warning; each is printed once."""
        if not self.quiet and text not in self._warned:
            self._warned.add(text)
            self.console.print(Text.assemble(("warning: ", "yellow"), _unbroken(text)))

    def result(self, text: str, table: Mapping[str, Any]) -> None:
        """The result: lines for people and pipes, or one JSON object."""
        put(to_json(table) if self.json else text)


def to_json(table: Mapping[str, Any]) -> str:
    """One JSON object; infinity becomes the text ``"inf"``, NaN null, paths text.

    What stdout cannot hold is escaped: every stream takes the object, and it stays JSON.
    """
    text = json.dumps(_plain(table), ensure_ascii=False, allow_nan=False, indent=2)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except (UnicodeEncodeError, LookupError):
        text = json.dumps(_plain(table), ensure_ascii=True, allow_nan=False, indent=2)
    return text


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def terminal_width() -> int | None:
    """Width of the terminal in columns; None if stdout is not a terminal."""
    if sys.stdout is None or not sys.stdout.isatty():
        return None
    return shutil.get_terminal_size().columns


def pairs(rows: Sequence[tuple[str, str]], whole: str = "") -> str:
    """Names and values in two columns; on a terminal the values wrap at spaces within their column.

    The value named ``whole`` does not wrap, so that a command can be copied.
    """
    longest = max((len(name) for name, _ in rows), default=0)
    room = terminal_width()
    lines = []
    for name, value in ((visible(name), visible(value)) for name, value in rows):
        folded = [value]
        if room is not None and name != whole:
            folded = textwrap.wrap(
                value, max(room - longest - 2, 12), break_long_words=False, break_on_hyphens=False
            )
        behind = "\n".ljust(longest + 3)
        lines.append(f"{name.ljust(longest)}  {behind.join(folded)}".rstrip())
    return "\n".join(lines)


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows as text in aligned columns; the first row is the heading.

    On a terminal that is too narrow for them as :func:`table_text`.
    """
    text, room = _aligned(rows), terminal_width()
    return text if room is None or max(map(len, text.split("\n"))) <= room else table_text(rows)


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    rows = [[visible(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Rows on stdout, as :func:`table_text`."""
    put(table_text(rows))


def table_text(rows: Sequence[Sequence[str]]) -> str:
    """Rows as a table; the first row is the heading. Nothing is ever cut.

    Off a terminal, aligned text. On one, a drawn table: texts wrap, numbers stay whole; where even that is
    too wide, the table is turned on its side, and where that is too wide as well, each row becomes a block
    of ``heading  value`` lines.
    """
    room = terminal_width()
    rows = [[visible(cell) for cell in row] for row in rows]
    if room is None:
        return _aligned(rows)
    for turned in (rows, list(zip(*rows, strict=True))):
        # A column of prose can wrap to about its longest word, any other cell has to stay on one line.
        prose = [any(" " in row[i].strip() for row in turned[1:]) for i in range(len(turned[0]))]
        if _least_width(turned, prose) <= room:
            return _drawn(turned, prose, room)
    return _blocks(rows)


def _drawn(rows: Sequence[Sequence[str]], prose: Sequence[bool], room: int) -> str:
    """A table with rules, the columns of prose wrapped."""
    from rich import box
    from rich.table import Table

    head, *body = rows
    lines = box.HEAVY_HEAD if (sys.stdout.encoding or "").lower().startswith("utf") else box.ASCII
    table = Table(box=lines)
    for cell, folds in zip(head, prose, strict=True):
        table.add_column(Text(cell), no_wrap=not folds, overflow="fold")
    for row in body:
        table.add_row(*[Text(cell) for cell in row])
    drawn = io.StringIO()
    Console(file=drawn, width=room, highlight=False).print(table)
    return drawn.getvalue().rstrip("\n")


def _least_width(rows: Sequence[Sequence[str]], prose: Sequence[bool]) -> int:
    """Minimum width of a drawn table in columns, including its rules."""
    head, *body = rows
    widths = [
        max(
            max(map(len, head[i].split()), default=0),
            *(_longest(row[i], prose[i]) for row in body),
            12 * prose[i],
        )
        for i in range(len(head))
    ]
    return sum(widths) + 3 * len(head) + 1


def _longest(cell: str, folds: bool) -> int:
    return max(map(len, cell.split()), default=0) if folds else len(cell)


def _blocks(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    return "\n\n".join(pairs(list(zip(head, row, strict=True))) for row in body)


def human_size(count: int) -> str:
    """Bytes as readable text, in powers of 1024: ``3.4 MiB``."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def print_failure(failure: Failure, as_json: bool) -> None:
    """The error on stderr, in one line and a hint; with ``--json`` one object on stdout too."""
    console = _stderr()
    style = "yellow" if failure.exit_code == 130 else "bold red"
    console.print(Text.assemble(("error: ", style), _line(failure.message)))
    if failure.hint:
        console.print(Text.assemble(("hint: ", "cyan"), _line(failure.hint)))
    if as_json:
        table = {"error": failure.message, "hint": failure.hint, "exit_code": failure.exit_code}
        put(to_json(table))


def _line(text: str) -> str:
    """One readable line of bounded length: an error may quote a value of megabytes."""
    line = _unbroken(text)
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]} …"


def _unbroken(text: str) -> str:
    return visible(" ".join(printable(text).split()))


def _lines(text: str) -> str:
    """A message as it can be printed safely; the ends of its lines stay."""
    return "\n".join(map(visible, text.split("\n")))


@contextmanager
def alone_with(output: Path, screen: Screen) -> Iterator[None]:
    """Hold an output; another process that is writing it is waited for, with a message."""
    from ctxedit.finished import writing

    told = f"another ctxedit is writing {output}: waiting for it to finish"
    with writing(output, lambda: screen.say(told)):
        yield


def finished_before(output: Path, key: str, overwrite: bool, screen: Screen) -> dict[str, Any] | None:
    """What was noted of an output that the same command has already written, with a message; else None.

    With ``overwrite`` (-y) always None.
    """
    from ctxedit.finished import finished

    facts = None if overwrite else finished(output, key)
    if facts is not None:
        screen.say(f"{output} exists already, made by the same command; use -y to redo it")
    return facts
