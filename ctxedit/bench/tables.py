"""From rows to tables: each method's means with intervals, by kind of edit, and what the adapter changes."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

from ctxedit.bench.results import ResultRow
from ctxedit.bench.statistics import LEVEL, Interval, bootstrap
from ctxedit.metrics import Metric, metrics

#: After a preset's name: with the context adapter, and without it.
ADAPTER, NO_ADAPTER = "+adapter", "-adapter"
ALL = "all"
STAGES = ("tune", "invert", "edit")
_MIB = 1 << 20

Table = dict[str, Any]


def adapter_pairs(methods: Sequence[str]) -> list[tuple[str, str]]:
    """(X, X+adapter) and (X-adapter, X) of all methods that have both, at each point of a sweep."""
    added = [(m, _named(m, ADAPTER)) for m in methods if _named(m, ADAPTER) in methods]
    return added + [(_named(m, NO_ADAPTER), m) for m in methods if _named(m, NO_ADAPTER) in methods]


def _named(method: str, suffix: str) -> str:
    preset, space, point = method.partition(" ")
    return f"{preset}{suffix}{space}{point}"


def summary(rows: Sequence[ResultRow], methods: Sequence[str]) -> list[Table]:
    """One table per method: counts, errors, costs, and ``figures`` by kind (``all`` and each) and key."""
    out = []
    for method in methods:
        own = [row for row in rows if row.method == method]
        good = [row for row in own if row.error is None]
        kinds = [ALL, *dict.fromkeys(row.kind for row in good)]
        figures = {kind: _intervals([row for row in good if kind in (ALL, row.kind)]) for kind in kinds}
        out.append(
            {
                "method": method,
                "edits": len(good),
                "failed": len(own) - len(good),
                "figures": figures,
                "costs": costs(good),
            }
        )
    return out


def _intervals(rows: Sequence[ResultRow]) -> Table:
    found: Table = {}
    for figure in metrics():
        having = [(v, row.clip) for row in rows if (v := row.figures.get(figure.key)) is not None]
        interval = bootstrap([v for v, _ in having], [clip for _, clip in having])
        if interval is not None:
            found[figure.key] = asdict(interval)
    return found


def differences(rows: Sequence[ResultRow], pairs: Iterable[tuple[str, str]]) -> list[Table]:
    """For each (before, after): the mean of after − before over the same edits, by kind and key."""
    out = []
    for before, after in pairs:
        first, second = (
            {(r.clip, r.target): r for r in rows if r.method == m and r.error is None}
            for m in (before, after)
        )
        both = [(first[at], second[at]) for at in first if at in second]
        kinds = [ALL, *dict.fromkeys(a.kind for a, _ in both)]
        figures = {kind: _paired([(a, b) for a, b in both if kind in (ALL, a.kind)]) for kind in kinds}
        out.append({"before": before, "after": after, "edits": len(both), "figures": figures})
    return out


def _paired(both: Sequence[tuple[ResultRow, ResultRow]]) -> Table:
    found: Table = {}
    for figure in metrics():
        having = [
            (after - before, a.clip)
            for a, b in both
            if (before := a.figures.get(figure.key)) is not None
            and (after := b.figures.get(figure.key)) is not None
        ]
        interval = bootstrap([v for v, _ in having], [clip for _, clip in having])
        if interval is not None:
            found[figure.key] = asdict(interval)
    return found


def costs(rows: Sequence[ResultRow]) -> Table:
    """Mean costs: tuning and inversion per clip, editing per edit; None without any."""
    per_clip = list({row.clip: row for row in rows}.values())
    found: Table = {}
    for stage in STAGES:
        spent = [r.costs[stage] for r in (rows if stage == "edit" else per_clip) if stage in r.costs]
        found[stage] = {
            "seconds": _mean(c["seconds"] for c in spent),
            "evaluations": _mean(c["evaluations"] for c in spent),
            "peak_bytes": max((c["peak_bytes"] for c in spent), default=None),
        }
    steps = [r.costs["tune"] for r in per_clip if "tune" in r.costs]
    passes = sum(c["evaluations"] for c in steps)
    # One network pass per step, even if a tuning was interrupted and repeated a few.
    found["seconds_a_step"] = sum(c["seconds"] for c in steps) / passes if passes else None
    found["trained"] = next((r.facts["trained"] for r in rows if "trained" in r.facts), None)
    return found


def _mean(values: Iterable[float]) -> float | None:
    listed = list(values)
    return sum(listed) / len(listed) if listed else None


def to_csv(methods: Sequence[Table]) -> str:
    """One line per method, kind and figure: mean, low, high, count."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["method", "kind", "figure", "mean", "low", "high", "edits", "clips"])
    for table in methods:
        for kind, figures in table["figures"].items():
            for key, i in figures.items():
                writer.writerow(
                    [table["method"], kind, key, i["mean"], i["low"], i["high"], i["count"], i["groups"]]
                )
    return stream.getvalue()


def to_markdown(methods: Sequence[Table], changes: Sequence[Table], about: Sequence[str]) -> str:
    """The tables in Markdown: all edits, by kind, the effect of the adapter, costs."""
    parts = ["# Comparison", "", *about, "", _explained(methods), ""]
    parts += ["## All edits", "", _figures(methods, ALL)]
    for kind in dict.fromkeys(k for t in methods for k in t["figures"] if k != ALL):
        parts += ["", f"## Kind: {kind}", "", _figures(methods, kind)]
    for change in changes:
        heading = f"## {change['after']} minus {change['before']}, on the same edits"
        parts += ["", heading, "", _change(change)]
    return "\n".join([*parts, "", "## Costs", "", cost_table(methods), ""])


def _explained(methods: Sequence[Table]) -> str:
    shown = [f for f in metrics() if any(f.key in t["figures"].get(ALL, {}) for t in methods)]
    said = "; ".join(f"{f.title}: {f.about} ({'↑' if f.better == 'higher' else '↓'})" for f in shown)
    return (
        f"Mean [{LEVEL:.0%} interval: bootstrap over clips]. {said}. "
        "`source` is the unedited clip, `ideal` the true edit."
    )


def _figures(methods: Sequence[Table], kind: str) -> str:
    shown = [f for f in metrics() if any(f.key in t["figures"].get(kind, {}) for t in methods)]
    rows = [["method", "edits", *[f.title for f in shown]]]
    for table in methods:
        found = table["figures"].get(kind, {})
        count = max((i["count"] for i in found.values()), default=0)
        failed = f" ({table['failed']} failed)" if kind == ALL and table["failed"] else ""
        cells = [_interval(found.get(f.key), f) for f in shown]
        rows.append([table["method"], f"{count}{failed}", *cells])
    return markdown(rows)


def _change(change: Table) -> str:
    rows = [["figure", "better", *change["figures"]]]
    for figure in metrics():
        found = {kind: figures.get(figure.key) for kind, figures in change["figures"].items()}
        if any(found.values()):
            cells = [_interval(i, figure, "+") for i in found.values()]
            rows.append([figure.title, figure.better, *cells])
    return markdown(rows)


def cost_table(methods: Sequence[Table]) -> str:
    """The paper's Table 5, extended: parameters, seconds, passes, memory."""
    heading = ["method", "trained parameters", "s / tuning step", "tuning s", "inversion s", "s / edit"]
    rows = [[*heading, "passes: tuning", "inversion", "edit", "peak MiB"]]
    for table in methods:
        cost = table["costs"]
        if not any(cost[stage]["seconds"] for stage in STAGES):
            continue
        peaks = [cost[stage]["peak_bytes"] for stage in STAGES if cost[stage]["peak_bytes"]]
        trained = cost["trained"]
        rows.append(
            [
                table["method"],
                "-" if trained is None else f"{trained:,}",
                _number(cost["seconds_a_step"], 3),
                *[_number(cost[stage]["seconds"], 1) for stage in STAGES],
                *[_number(cost[stage]["evaluations"], 0) for stage in STAGES],
                _number(max(peaks) / _MIB if peaks else None, 0),
            ]
        )
    return markdown(rows)


def costs_markdown(methods: Sequence[Table], pairs: Sequence[tuple[str, str]], about: Sequence[str]) -> str:
    """Only the cost table, with the adapter's share for every method measured with and without it."""
    parts = ["# Costs", "", *about, "", cost_table(methods), ""]
    by_name = {table["method"]: table["costs"] for table in methods}
    rows = [["adapter added to", "trained parameters", "s / tuning step", "s / edit"]]
    for before, after in pairs:
        a, b = by_name[before], by_name[after]
        rows.append(
            [
                before,
                _ratio(a["trained"], b["trained"], lambda v: f"{v:,}"),
                _ratio(a["seconds_a_step"], b["seconds_a_step"], lambda v: f"{v:.3f}"),
                _ratio(a["edit"]["seconds"], b["edit"]["seconds"], lambda v: f"{v:.2f}"),
            ]
        )
    return "\n".join([*parts, markdown(rows), ""] if len(rows) > 1 else parts)


def _ratio(a: float | None, b: float | None, say: Callable[[float], str]) -> str:
    if a is None or b is None:
        return f"{'-' if a is None else say(a)} → {'-' if b is None else say(b)}"
    return f"{say(a)} → {say(b)}" + (f" (× {b / a:.2f})" if a else "")


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is the heading."""
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def _interval(found: Table | None, figure: Metric, sign: str = "") -> str:
    if found is None:
        return "-"
    i = Interval(**found)
    mean = figure.shown(i.mean, sign)
    if i.low is None or i.high is None:
        return mean
    return f"{mean} [{figure.shown(i.low, sign)}, {figure.shown(i.high, sign)}]" if mean != "inf" else mean


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"
