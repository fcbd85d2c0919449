"""Figures of a run's edits, as the run keeps them: ``metrics.json``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ctxedit.media.temporary import atomic
from ctxedit.runs import Run


def plain_figures(row: Mapping[str, Any]) -> dict[str, Any]:
    """Figures as JSON can hold them: infinity becomes the text ``"inf"``."""
    return {k: str(v) if isinstance(v, float) and math.isinf(v) else v for k, v in row.items()}


def write_metrics(run: Run, rows: list[dict[str, Any]]) -> Path:
    """Put rows into the run's ``metrics.json``; the other videos' rows stay.

    Metrics of the same video that were not computed again stay too, unless they are of another CLIP or of
    other pixels (outside a mask, or all).
    """
    path = run.folder / "metrics.json"
    with run.noting():
        try:
            known = {row["video"]: row for row in json.loads(path.read_text(encoding="utf-8"))}
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            known = {}
        for row in rows:
            old = known.get(row["video"], {})
            same = all(old.get(key) == row.get(key) for key in ("clip_model", "clip_version", "outside_mask"))
            known[row["video"]] = {**old, **row} if same else row
        with atomic(path, True) as temporary:
            temporary.write_text(json.dumps(list(known.values()), indent=2, allow_nan=False) + "\n")
    return path
