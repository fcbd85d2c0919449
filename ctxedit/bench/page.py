"""The page: every edit next to its source, the other methods' and the true edit, with its figures."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ctxedit.bench.results import ResultRow
from ctxedit.bench.subject import REFERENCES
from ctxedit.metrics import metrics

#: Videos are written into the page, so that one file can be sent and opened anywhere: those of the built-in
#: models have some 10 kB. Above this size the page would be too large for browsers, so it links to the files
#: instead.
INLINE_BYTES = 48 << 20
_MARK = "__DATA__"


def page(
    out: Path,
    rows: Sequence[ResultRow],
    methods: Sequence[str],
    about: Sequence[str],
    title: str = "Comparison of editing methods",
) -> str:
    """The page as HTML, without external resources.

    Args:
        out: the bench's folder, in which the page is written.
        rows: of all methods and references.
        methods: in the order of their columns.
        about: sentences for the head.
        title: the page's heading.
    """
    references = [name for name in REFERENCES if any(row.method == name for row in rows)]
    data = {
        "title": title,
        "about": list(about),
        "figures": [figure.table() for figure in metrics()],
        "methods": list(methods),
        "references": references,
        "videos": videos(out, {row.video for row in rows if row.video}),
        "items": _items(rows, [*references[:1], *methods, *references[1:]]),
    }
    return fill("page.html", data)


def fill(template: str, data: dict[str, Any]) -> str:
    """A template of this package with its data, escaped so that it cannot end the script element."""
    text = resources.files("ctxedit.bench").joinpath(template).read_text(encoding="utf-8")
    before, after = text.split(_MARK)
    return before + json.dumps(data, ensure_ascii=False).replace("<", "\\u003c") + after


def videos(out: Path, names: Iterable[str]) -> dict[str, str]:
    """Each video's URL by its path: a data URL, or the path if the videos are too large together."""
    present = sorted(name for name in names if (out / name).is_file())
    if sum((out / name).stat().st_size for name in present) > INLINE_BYTES:
        return {name: _address(name) for name in present}
    return {name: data_url(out / name) for name in present}


def data_url(path: Path) -> str:
    """An mp4 as a data URL."""
    return "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def _address(name: str) -> str:
    return quote(Path(name).as_posix())


def _items(rows: Sequence[ResultRow], order: Sequence[str]) -> list[dict[str, Any]]:
    """One item per clip and target, with a cell for each method that has a row."""
    items: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        item = items.setdefault(
            (row.clip, row.target),
            {"clip": row.clip, "kind": row.kind, "prompt": row.prompt, "target": row.target, "cells": []},
        )
        item["cells"].append(
            {
                "method": row.method,
                "video": row.video,
                "error": row.error,
                "figures": row.figures,
                "seconds": {stage: cost["seconds"] for stage, cost in row.costs.items()},
            }
        )
    for item in items.values():
        item["cells"].sort(key=lambda cell: order.index(cell["method"]))
    return list(items.values())
