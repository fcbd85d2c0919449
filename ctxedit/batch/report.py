"""A batch's report: ``report.json``, ``report.md`` and ``index.html``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from ctxedit.bench import page, tables
from ctxedit.bench.delivery import deliver
from ctxedit.bench.results import ResultRow
from ctxedit.bench.subject import REFERENCES, Bench
from ctxedit.media.temporary import atomic
from ctxedit.metrics import Metric, metrics
from ctxedit.runs import versions

#: Folder of the edits, inside the batch's.
EDITS = "edits"


@dataclass(frozen=True)
class ReportFiles:
    """Paths of a batch's report."""

    json: Path
    markdown: Path
    page: Path


def files_in(out: Path) -> ReportFiles:
    """Paths of the report of a batch in ``out``."""
    return ReportFiles(out / "report.json", out / "report.md", out / "index.html")


def write(batch: Bench, rows: Sequence[ResultRow]) -> dict[str, Any]:
    """Write the report from the rows; returns the contents of ``report.json``.

    Args:
        batch: what was run.
        rows: as :func:`ctxedit.bench.runner.run` returns them.
    """
    own = [row for row in rows if row.method not in REFERENCES]
    done = [row for row in own if row.error is None]
    failed = [row for row in own if row.error is not None]
    about = _about(batch, done, failed)
    whole = {
        "about": about,
        "preset": batch.methods[0].label,
        "edits": [_edit(row) for row in done],
        "failed": [{"clip": r.clip, "target": r.target, "error": r.error} for r in failed],
        "versions": versions(),
    }
    files = files_in(batch.out)
    _put(files.json, json.dumps(whole, ensure_ascii=False, indent=1, allow_nan=False))
    _put(files.markdown, _markdown(about, done, failed))
    labels = [method.label for method in batch.methods]
    _put(files.page, page.page(batch.out, rows, labels, about, "Batch of edits"))
    for file in astuple(files):
        deliver(batch, file.name)
    return whole


def _about(batch: Bench, done: Sequence[ResultRow], failed: Sequence[ResultRow]) -> list[str]:
    targets = sum(len(clip.targets) for clip in batch.clips)
    said = [
        f"Clips: {len(batch.clips)}; edits: {len(done)} of {targets}, {len(failed)} failed.",
        f"Preset {batch.methods[0].label}, seed {batch.methods[0].config.seed}.",
    ]
    places = sorted(
        {f"{row.facts['model']} on {row.facts['device']} in {row.facts['dtype']}" for row in done}
    )
    return said + ([f"Model: {'; '.join(places)}."] if places else [])


def _edit(row: ResultRow) -> dict[str, Any]:
    """One edit as JSON; paths are relative to the report."""
    return {
        "clip": row.clip, "prompt": row.prompt, "target": row.target, "video": row.video,
        "figures": row.figures, "seconds": _seconds(row), "run": f"runs/{row.facts['run']}",
    }  # fmt: skip


def _seconds(row: ResultRow) -> float:
    """Over all stages; the clip's own stages are counted for each of its targets."""
    return sum(cost["seconds"] for cost in row.costs.values())


def _markdown(about: Sequence[str], done: Sequence[ResultRow], failed: Sequence[ResultRow]) -> str:
    shown = [m for m in metrics() if any(row.figures.get(m.key) is not None for row in done)]
    parts = ["# Batch of edits", "", *about, ""]
    if failed:
        rows = [["clip", "target", "error"], *[[r.clip, r.target, str(r.error)] for r in failed]]
        parts += ["## Failed", "", tables.markdown(rows), "", "Run the same command again to retry them.", ""]
    if done:
        rows = [["clip", "target", *[m.title for m in shown], "seconds", "video"]]
        for row in done:
            cells = [_figure(row.figures.get(m.key), m) for m in shown]
            rows.append(
                [row.clip, row.target, *cells, f"{_seconds(row):.1f}", f"[{row.video}](<{row.video}>)"]
            )
        parts += ["## Edits", "", tables.markdown(rows), ""]
    return "\n".join(parts)


def _figure(value: float | None, metric: Metric) -> str:
    return "-" if value is None else metric.shown(value)


def _put(path: Path, text: str) -> None:
    """Reports are derived from the results, which are kept: they are rewritten without asking."""
    with atomic(path, True) as temporary:
        temporary.write_text(text, encoding="utf-8")
