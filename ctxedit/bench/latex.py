"""The main table in LaTeX, for papers; needs the package booktabs."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ctxedit.bench.subject import REFERENCES
from ctxedit.bench.tables import ALL, Table
from ctxedit.metrics import Metric, metrics

_SPECIAL = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", "\u2212": "$-$", "\u00d7": r"$\times$",
}  # fmt: skip


def to_latex(methods: Sequence[Table]) -> str:
    """Means over all edits with half the width of their 95 % intervals; the best of each column is bold.

    References (``source``, ``ideal``) are set apart and are never bold.
    """
    shown = [m for m in metrics() if any(m.key in t["figures"].get(ALL, {}) for t in methods)]
    own = [table for table in methods if table["method"] not in REFERENCES]
    lines = [
        f"\\begin{{tabular}}{{l{'r' * len(shown)}}}",
        r"\toprule",
        " & ".join(["method", *[escape(m.title) + _arrow(m.better) for m in shown]]) + r" \\",
        r"\midrule",
    ]
    best = {m.key: _best(own, m.key, m.better) for m in shown}
    for table in sorted(methods, key=lambda one: one["method"] not in REFERENCES):
        if own and table is own[0] and len(own) < len(methods):
            lines.append(r"\midrule")
        found = table["figures"].get(ALL, {})
        cells = [
            _cell(found.get(m.key), m, table in own and _mean(table, m.key) == best[m.key]) for m in shown
        ]
        lines.append(" & ".join([escape(table["method"]), *cells]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def escape(text: str) -> str:
    """Text with LaTeX's special characters escaped."""
    return re.sub(r"[\\~^<>|&%$#_{}\u2212\u00d7]", lambda m: _SPECIAL.get(m[0], "\\" + m[0]), text)


def _arrow(better: str) -> str:
    return r" $\uparrow$" if better == "higher" else r" $\downarrow$"


def _mean(table: Table, key: str) -> float | None:
    found = table["figures"].get(ALL, {}).get(key)
    return None if found is None else float(found["mean"])


def _best(tables: Sequence[Table], key: str, better: str) -> float | None:
    means = [mean for table in tables if (mean := _mean(table, key)) is not None]
    return (max if better == "higher" else min)(means) if means else None


def _cell(found: Table | None, metric: Metric, bold: bool) -> str:
    if found is None:
        return "--"
    mean = metric.shown(found["mean"])
    if mean == "inf":
        mean = r"$\infty$"
    mean = rf"\textbf{{{mean}}}" if bold else mean
    if found["low"] is None or found["high"] is None:
        return mean
    return rf"{mean} {{\scriptsize $\pm$ {(found['high'] - found['low']) / 2:.{metric.digits}f}}}"
