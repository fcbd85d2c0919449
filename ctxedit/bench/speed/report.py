"""The results of a measurement: JSON, a Markdown table and a plot."""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ctxedit.bench.speed import ways
from ctxedit.bench.speed.measure import Measured, SpeedPlan, SpeedRow
from ctxedit.media.temporary import atomic
from ctxedit.models.device import name_of
from ctxedit.runs import versions
from ctxedit.tables import DEFAULT_PRESET

_TITLES = {"edit": "Edit: inversion and sampling of one clip", "tune": "Tuning: one step"}


@dataclass(frozen=True)
class SpeedFiles:
    """Paths of the results."""

    json: Path
    markdown: Path
    plot: Path


def files_in(folder: Path) -> SpeedFiles:
    """The files of a measurement in a folder."""
    return SpeedFiles(folder / "speed.json", folder / "speed.md", folder / "speed.png")


def table(plan: SpeedPlan, measured: Measured) -> dict[str, Any]:
    """Everything as one JSON object; rates in operations per second, memory in bytes."""
    rows = [_row(row, measured) for row in measured.rows]
    return {
        "about": {
            "device": name_of(measured.device), "processor": _processor(),
            "threads": torch.get_num_threads(), "dtype": str(measured.dtype).removeprefix("torch."),
            "versions": versions(), **{k: v for k, v in asdict(plan).items() if k not in ("device", "dtype")},
        },
        "limits": asdict(measured.limits),
        "rows": rows,
        "ratios": _ratios(rows),
    }  # fmt: skip


def _row(row: SpeedRow, measured: Measured) -> dict[str, Any]:
    if row.error:
        return {"task": row.task, "way": row.way, "error": row.error}
    times = row.totals
    phases = {name: statistics.median(run[name] for run in row.seconds) for name in row.seconds[0]}
    rate = row.counts.flops / row.median
    return {
        "task": row.task, "way": row.way, "dtype": row.precision,
        "seconds": {"median": row.median, "least": min(times), "most": max(times), "runs": times},
        "processor_seconds": statistics.median(row.processor_seconds), "stored_bytes": row.stored_bytes,
        "phases": phases, "passes": round(row.counts.passes, 3), "flops": row.counts.flops,
        "peak_bytes": row.counts.peak_bytes, "rate": rate, "share": rate / measured.limits.mixed,
        "share_of_square": rate / measured.limits.square,
    }  # fmt: skip


def _ratios(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Ratios of seconds and memory between ways, mostly others divided by ctxedit's."""
    pairs = {
        f"{ways.STORED} / {ways.STORED_HERE}": ("edit", ways.STORED, ways.STORED_HERE),
        f"{ways.STORED} / {DEFAULT_PRESET}": ("edit", ways.STORED, DEFAULT_PRESET),
        f"{ways.DIFFUSERS} / {DEFAULT_PRESET}": ("edit", ways.DIFFUSERS, DEFAULT_PRESET),
        f"{ways.PLAIN} / {DEFAULT_PRESET}, tuning": ("tune", ways.PLAIN, DEFAULT_PRESET),
        f"{DEFAULT_PRESET} / {ways.SECOND_ORDER}": ("edit", DEFAULT_PRESET, ways.SECOND_ORDER),
        f"{DEFAULT_PRESET} / {ways.PARTLY_GUIDED}": ("edit", DEFAULT_PRESET, ways.PARTLY_GUIDED),
        f"{DEFAULT_PRESET} / {ways.FEW_FRAMES}, tuning": ("tune", DEFAULT_PRESET, ways.FEW_FRAMES),
    }
    known = {(row["task"], row["way"]): row for row in rows if "seconds" in row}
    found = {}
    for title, (task, above, below) in pairs.items():
        if (a := known.get((task, above))) and (b := known.get((task, below))):
            found[title] = {
                "seconds": a["seconds"]["median"] / b["seconds"]["median"],
                "processor_seconds": a["processor_seconds"] / b["processor_seconds"],
                "memory": a["peak_bytes"] / b["peak_bytes"],
            }
    return found


def _processor() -> str:
    """The processor's product name, if the system reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def write(folder: Path, found: dict[str, Any]) -> SpeedFiles:
    """Write the three files; those of an earlier measurement are replaced.

    Raises:
        OutputError: the folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = files_in(folder)
    with atomic(files.json, True) as temporary:
        temporary.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    with atomic(files.markdown, True) as temporary:
        temporary.write_text(markdown(found), encoding="utf-8")
    with atomic(files.plot, True) as temporary:
        _draw(found, temporary)
    return files


def markdown(found: dict[str, Any]) -> str:
    """The results as a page."""
    about, most = found["about"], found["limits"]
    size = f"{about['frames']} frames of {about['size']}×{about['size']}, {about['steps']} steps"
    model = f"{about['random']} with random weights" if about["random"] else about["model"]
    device = about["device"] if about["device"] != "cpu" else about["processor"]
    lines = [
        "# Speed", "",
        f"{model}, {size}, on {device} ({about['threads']} threads, {about['dtype']}); "
        f"{_runs(about['repeats'])}.", "",
        "| alone, in the same shapes | Gflop/s |", "|---|---|",
        *(f"| {name} | {most[key] / 1e9:,.0f} |" for name, key in (
            ("matrix products of the linear layers", "product"), ("convolutions", "convolution"),
            ("both, weighted as in the network: the limit", "mixed"), ("one large square product", "square"),
        )),
    ]  # fmt: skip
    for task, title in _TITLES.items():
        rows = [row for row in found["rows"] if row["task"] == task]
        if rows:
            lines += ["", f"## {title}", "", *_markdown_rows(rows)]
    if found["ratios"]:
        lines += ["", "| ratio | seconds | processor seconds | memory |", "|---|---|---|---|"]
        lines += [
            f"| {k} | {v['seconds']:.2f} | {v['processor_seconds']:.2f} | {v['memory']:.1f} |"
            for k, v in found["ratios"].items()
        ]
    lines += [
        "", "Passes are of the network over the whole clip. Memory is the peak memory of tensors beyond the "
        "weights. The shares are of the limit above, and of the large square product: operations counted, "
        "divided by seconds.", "",
    ]  # fmt: skip
    if stored := [row for row in found["rows"] if row.get("stored_bytes")]:
        sizes = "; ".join(f"{row['way']}: {row['stored_bytes'] / 2**20:,.0f} MiB" for row in stored)
        lines += [f"Part of that memory are stored attention maps, in proportion to the steps: {sizes}.", ""]
    return "\n".join(lines)


def _runs(repeats: int) -> str:
    """How the seconds were measured."""
    if not repeats:
        return "one run of each, timed while its work was counted"
    return f"medians of {repeats} interleaved runs (minimum to maximum)"


def cells(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """The rows as text, with a header."""
    shares = ("of the limit", "of a square")
    out = [["way", "seconds", "processor s", "passes", "Tflop", "Gflop/s", *shares, "memory, MiB"]]
    for row in rows:
        if "error" in row:
            out.append([row["way"], row["error"], *["-"] * 7])
            continue
        s = row["seconds"]
        out.append([
            row["way"], f"{s['median']:.2f} ({s['least']:.2f} to {s['most']:.2f})",
            f"{row['processor_seconds']:.2f}", f"{row['passes']:g}", f"{row['flops'] / 1e12:.3g}",
            f"{row['rate'] / 1e9:,.0f}", f"{row['share']:.0%}", f"{row['share_of_square']:.0%}",
            f"{row['peak_bytes'] / 2**20:,.0f}",
        ])  # fmt: skip
    return out


def _markdown_rows(rows: Sequence[dict[str, Any]]) -> list[str]:
    head, *rest = cells(rows)
    return [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rest)]


def _draw(found: dict[str, Any], path: Path) -> None:
    """Seconds of every way, one panel for each task; whiskers from the least to the most."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = {t: [r for r in found["rows"] if r["task"] == t and "seconds" in r] for t in _TITLES}
    panels = {task: rows for task, rows in panels.items() if rows}
    heights = [len(rows) for rows in panels.values()]
    figure = Figure(figsize=(8, 1.5 + 0.34 * sum(heights)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(panels), 1, squeeze=False, gridspec_kw={"height_ratios": heights})
    for (task, rows), axis in zip(panels.items(), axes[:, 0], strict=True):
        rows = rows[::-1]
        medians = [row["seconds"]["median"] for row in rows]
        spread = [
            [m - row["seconds"]["least"] for m, row in zip(medians, rows, strict=True)],
            [row["seconds"]["most"] - m for m, row in zip(medians, rows, strict=True)],
        ]
        axis.barh([row["way"] for row in rows], medians, xerr=spread, color="#4477aa", ecolor="#222222")
        axis.set(title=_TITLES[task], xlabel="seconds")
        axis.grid(axis="x", alpha=0.3)
    figure.savefig(path, format="png", dpi=110)
