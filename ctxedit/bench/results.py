"""The results file: one JSON row per edit, appended when it is done, so that no work is lost or repeated."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ctxedit.errors import InputError, OutputError

NAME = "results.jsonl"
#: Facts that are counted with.
_NUMBERS = ("frames", "seed", "trained")


@dataclass(frozen=True)
class ResultRow:
    """One edit.

    Attributes:
        key: a hash of everything that its figures depend on.
        method: the preset's label; ``source`` and ``ideal`` are references, not edits.
        clip, target, kind, prompt: as in the list.
        figures: by the metric's key.
        costs: of ``tune``, ``invert`` and ``edit``: seconds, peak_bytes, evaluations; absent if unknown.
        facts: device, frames, trained parameters, ….
        video: relative to the bench's folder, or None.
        error: why there is no edit, in one line, or None.
    """

    key: str
    method: str
    clip: str
    target: str
    kind: str
    prompt: str
    figures: dict[str, float | None] = field(default_factory=dict)
    costs: dict[str, dict[str, float]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    video: str | None = None
    error: str | None = None

    def table(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return asdict(self)


def row_of(table: Any) -> ResultRow:
    """A row from JSON; raises TypeError for anything else."""
    if not isinstance(table, dict):
        raise TypeError("a row is an object")
    row = ResultRow(**table)
    texts = (row.key, row.method, row.clip, row.target, row.kind, row.prompt)
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("a row's key and names must be text")
    if not all(text is None or isinstance(text, str) for text in (row.video, row.error)):
        raise TypeError("a row's video and error must be text")
    tables = (row.figures, row.costs, row.facts, *(row.costs.values() if isinstance(row.costs, dict) else ()))
    if not all(isinstance(table, dict) for table in tables):
        raise TypeError("a row's figures, costs and facts must be tables")
    numbers = [*row.figures.values(), *(row.facts[name] for name in _NUMBERS if name in row.facts)]
    numbers += [one for cost in row.costs.values() for one in cost.values()]
    if not all(one is None or (isinstance(one, (int, float)) and math.isfinite(one)) for one in numbers):
        raise TypeError("a row's figures and costs must be numbers")
    return row


class Results:
    """The file of a bench's folder.

    Args:
        folder: the bench's folder.

    Raises:
        InputError: the file is not one of ours. Lines that are not JSON were damaged, or truncated when a
            process died: they are ignored, and their edits are made again.

    Attributes:
        damaged: the number of such lines, except for a truncated last one.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self._rows: dict[str, ResultRow] = {}
        self.damaged = 0
        lines = self.path.read_bytes().split(b"\n") if self.path.is_file() else []
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = _row(line)
            except (ValueError, RecursionError):
                self.damaged += number < len(lines)
                continue
            if row is None:
                raise InputError(
                    f"{self.path}, line {number} is not a result", "delete the line, or choose another --out"
                )
            self._rows[row.key] = row
        if self.damaged and not self._rows:
            raise InputError(f"{self.path} holds no results", "delete it, or choose another --out")
        self._torn = bool(lines) and bool(lines[-1].strip())

    def done(self, key: str) -> ResultRow | None:
        """The finished edit of this key; a failed one is not finished."""
        row = self._rows.get(key)
        return row if row is not None and row.error is None else None

    def get(self, key: str) -> ResultRow | None:
        """The last row of this key, failed or not."""
        return self._rows.get(key)

    def add(self, row: ResultRow) -> None:
        """Append a row; it is on disk when this returns. Raises OutputError if it cannot be written."""
        text = json.dumps(row.table(), ensure_ascii=False, allow_nan=False)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as stream:
                # This row must not be appended to a partial line that a killed process left.
                stream.write("\n" * self._torn + text + "\n")
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise OutputError(f"{self.path} cannot be written: {error.strerror}", "check the disk") from error
        self._torn = False
        self._rows[row.key] = row


def _row(line: bytes) -> ResultRow | None:
    """The row in a line; None for other JSON. Raises ValueError for other text."""
    table = json.loads(line)
    try:
        return row_of(table)
    except TypeError:
        return None
