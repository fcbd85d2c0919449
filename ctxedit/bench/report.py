"""Writes the outputs of a comparison: tables, costs, errors, the page."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctxedit.bench import latex, page, tables
from ctxedit.bench.results import ResultRow, row_of
from ctxedit.bench.subject import IDEAL, SOURCE, Bench
from ctxedit.errors import InputError, counted
from ctxedit.files import read_json
from ctxedit.media.temporary import atomic
from ctxedit.runs import versions


@dataclass(frozen=True)
class ComparisonFiles:
    """What was written."""

    table_json: Path
    table_csv: Path
    table_markdown: Path
    table_latex: Path
    costs: Path
    page: Path


def files_in(out: Path) -> ComparisonFiles:
    """Paths of a bench's tables."""
    names = ("table.json", "table.csv", "table.md", "table.tex", "costs.md", "index.html")
    return ComparisonFiles(*(out / name for name in names))


def write(bench: Bench, rows: Sequence[ResultRow], compare: Sequence[tuple[str, str]] = ()) -> dict[str, Any]:
    """Write the tables and the page from the rows; returns the contents of ``table.json``.

    Args:
        bench: what was compared.
        rows: as :func:`ctxedit.bench.runner.run` gives them.
        compare: further pairs (before, after) whose difference is reported.
    """
    labels = [*(one.label for one in bench.externals), *(method.label for method in bench.methods)]
    named = [SOURCE, *[IDEAL] * any(row.method == IDEAL for row in rows), *labels]
    summary = tables.summary(rows, named)
    pairs = tables.adapter_pairs(labels)
    changes = tables.differences(rows, list(dict.fromkeys([*pairs, *compare])))
    about = _about(bench, rows)
    failed = [
        {"method": row.method, "clip": row.clip, "target": row.target, "error": row.error}
        for row in rows
        if row.error is not None
    ]
    whole = {
        "about": about, "methods": summary, "differences": changes, "failed": failed,
        "edits": [row.table() for row in rows], "versions": versions(),
    }  # fmt: skip
    files = files_in(bench.out)
    text = tables.to_markdown(summary, changes, about) + _failures(failed)
    _put(files.table_json, json.dumps(whole, ensure_ascii=False, indent=1, allow_nan=False))
    _put(files.table_csv, tables.to_csv(summary))
    _put(files.table_markdown, text)
    _put(files.table_latex, latex.to_latex(summary))
    _put(files.costs, tables.costs_markdown(summary, pairs, about))
    _put(files.page, page.page(bench.out, rows, labels, about))
    return whole


def read(out: Path) -> dict[str, Any]:
    """``table.json`` of a bench's folder; raises InputError where there is none."""
    path = files_in(out).table_json
    if not os.path.exists(path):
        raise InputError(f"{out} holds no comparison", "make one with `ctxedit bench --presets …`")
    table = read_json(path, "comparison's table", limit=1 << 30)
    if not isinstance(table, dict):
        raise InputError(f"{path} is broken", "run the same `ctxedit bench` again: it rewrites the file")
    return table


def edits_of(whole: dict[str, Any]) -> list[ResultRow]:
    """The rows that ``table.json`` holds; raises InputError for those of another version."""
    try:
        return [row_of(row) for row in whole["edits"]]
    except (KeyError, TypeError) as error:
        raise InputError("table.json is of another version", "run the same `ctxedit bench` again") from error


def _about(bench: Bench, rows: Sequence[ResultRow]) -> list[str]:
    """Methods, clips and settings of the comparison, in sentences."""
    own = [method.label for method in bench.methods]
    done = [row for row in rows if row.method in own and row.error is None]
    kinds = Counter(target.kind for clip in bench.clips for target in clip.targets)
    each = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    said = [f"Clips: {len(bench.clips)}; targets: {sum(kinds.values())} ({each})."]
    if done:
        facts = done[0].facts
        width, height = facts["size"]
        # A bench may have been resumed on another machine.
        places = Counter(f"{row.facts['device']} in {row.facts['dtype']}" for row in done)
        where = ", ".join(f"{place} ({counted(count, 'edit')})" if len(places) > 1 else place
                          for place, count in places.items())  # fmt: skip
        said.append(
            f"Model {facts['model']} on {where}, {counted(facts['frames'], 'frame')} at {width}×{height}, "
            f"seed {facts['seed']}; CLIP: {facts['clip_model']}."
        )
        if any(method.config.upscale.scale > 1 for method in bench.methods):
            said.append(f"Figures are measured at {width}×{height}; the videos are upscaled.")
    return said


def _failures(failed: Sequence[dict[str, Any]]) -> str:
    if not failed:
        return ""
    rows = [["method", "clip", "target", "error"]]
    rows += [[str(one[key]) for key in rows[0]] for one in failed]
    return "\n## Failed\n\n" + tables.markdown(rows) + "\n"


def _put(path: Path, text: str) -> None:
    """Tables are derived from the results, which are kept: they are rewritten without asking."""
    with atomic(path, True) as temporary:
        temporary.write_text(text, encoding="utf-8")
