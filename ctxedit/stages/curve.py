"""How a tuning went: loss, shift and CLIP-text of edits over its steps, as CSV and picture (figure 11)."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctxedit.media.temporary import atomic

#: A log's figures, with what the picture calls them.
_FIGURES = {"loss": "loss", "shift": "‖shift‖ / ‖signal‖", "clip_text": "CLIP-text of an edit"}
#: Steps that the loss is averaged over: each is of one random level.
_SMOOTH = 10

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Files:
    """Where a curve lies."""

    table: Path
    picture: Path


def read_log(file: Path) -> list[dict[str, Any]]:
    """The rows that tuning wrote, in order; a line that a kill cut short ends them."""
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def write(logs: Mapping[str, Sequence[Row]], folder: Path) -> Files:
    """Write ``curve.csv`` and ``curve.png``.

    Args:
        logs: a name (``with adapter``) and the rows of each tuning: step, loss, shift, clip_text or None.
        folder: where to.
    """
    files = Files(folder / "curve.csv", folder / "curve.png")
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["tuning", "step", *_FIGURES])
    for name, rows in logs.items():
        for row in rows:
            values = [row.get(k) for k in _FIGURES]
            table.writerow([name, row["step"], *("" if v is None else f"{v:.6g}" for v in values)])
    with atomic(files.table, True) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")
    with atomic(files.picture, True) as temporary:
        _draw(logs, temporary)
    return files


def _draw(logs: Mapping[str, Sequence[Row]], path: Path) -> None:
    """One panel for each figure that any tuning has."""
    # The object interface: no display is asked for, and no global state is left.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [k for k in _FIGURES if any(row.get(k) is not None for rows in logs.values() for row in rows)]
    figure = Figure(figsize=(4.2 * len(shown), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, key in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        for name, rows in logs.items():
            points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
            if not points:
                continue
            steps, values = zip(*points, strict=True)
            if key == "clip_text":
                axes.plot(steps, values, marker="o", label=name)
            else:
                (line,) = axes.plot(steps, values, alpha=0.25)
                axes.plot(steps, _smooth(values), color=line.get_color(), label=name)
        axes.set(xlabel="tuning step", title=_FIGURES[key])
        axes.grid(alpha=0.3)
    figure.axes[0].legend()
    figure.savefig(path, format="png", dpi=110)


def _smooth(values: Sequence[float]) -> list[float]:
    """The mean of each value and those up to ``_SMOOTH − 1`` before it."""
    windows = (values[max(0, i - _SMOOTH + 1) : i + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]
