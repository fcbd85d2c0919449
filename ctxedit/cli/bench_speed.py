"""``ctxedit bench speed``: measures editing and tuning on this machine, alongside other implementations."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ctxedit import config as configuration
from ctxedit.cli import arguments
from ctxedit.cli.failures import work_begins
from ctxedit.cli.options import MessageOptions
from ctxedit.cli.output import Screen, print_table
from ctxedit.cli.spread import spread
from ctxedit.errors import ConfigError
from ctxedit.tables import merge_into, preset_names

Presets = Annotated[
    str | None,
    typer.Option("--presets", metavar="A,B,C", help="Presets to measure. [default: all]", show_default=False),
]
Model = Annotated[str, typer.Option("--model", help="A model, as for `ctxedit run`.")]
Random = Annotated[
    Literal["sd14", "tiny"] | None,
    typer.Option(
        "--random",
        help="Measure a network of this size with random weights instead of a model.",
        show_default=False,
    ),
]
Frames = Annotated[int, typer.Option("--frames", min=1, help="Frames of the clip.")]
Side = Annotated[
    int | None,
    typer.Option(
        "--size",
        min=8,
        help="Side of the clip in pixels. [default: 64, with --random 256]",
        show_default=False,
    ),
]
Steps = Annotated[int, typer.Option("--steps", min=1, help="Steps of inversion and sampling.")]
TuneSteps = Annotated[int, typer.Option("--tune-steps", min=1, help="Tuning steps to measure.")]
Repeats = Annotated[
    int,
    typer.Option(
        "--repeats", min=0,
        help="Timed runs of each implementation, after one that counts its work; with 0, that one is timed.",
    ),
]  # fmt: skip
Only = Annotated[
    list[str] | None,
    typer.Option(
        "--only", metavar="TEXT", show_default=False,
        help="Measure only rows of the table with TEXT in their name. Repeatable.",
    ),
]  # fmt: skip
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps.")]
Dtype = Annotated[
    Literal["auto", "float32", "float16", "bfloat16"],
    typer.Option("--dtype", help="Numeric precision."),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a setting of every preset. Repeatable.",
        show_default=False,
    ),
]
Out = Annotated[
    Path,
    typer.Option("--out", "-o", metavar="DIR", help="Output folder. [default: speed]", show_default=False),
]


@spread
def speed(
    messages: MessageOptions,
    presets: Presets = None,
    model: Model = configuration.BUILTIN,
    random: Random = None,
    frames: Frames = 8,
    size: Side = None,
    steps: Steps = 10,
    tune_steps: TuneSteps = 4,
    repeats: Repeats = 3,
    only: Only = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    set_: Set = None,
    out: Out = Path("speed"),
) -> None:
    """Measure every preset, FateZero's stored maps and diffusers' pipeline on this machine, side by side.

    All use the same weights and steps. Time (median and spread), network passes, operations, the fraction
    of this machine's measured limit (matrix products and convolutions alone) and memory are written to
    speed.json, speed.md and speed.png in --out. Tuning is measured per step, alongside a plain training loop.
    """
    screen = Screen(messages.quiet, messages.json)
    if random is not None and model != configuration.BUILTIN:
        raise ConfigError("--random and --model exclude each other", "leave out one of them")
    names = arguments.split_names(presets) if presets else tuple(preset_names())
    if not names:
        raise ConfigError("no preset is named", "--presets contextdiff,fatezero")
    side = size or (256 if random else 64)
    settings: dict[str, Any] = {}
    for text in set_ or []:
        merge_into(settings, arguments.assignment(text))
    for name in names:
        configuration.load(name, flags=settings)  # refused before torch is imported

    from ctxedit.bench.speed import measure, report

    plan = measure.SpeedPlan(
        names, model, random, frames, side, steps, tune_steps, repeats, device, dtype,
        settings, tuple(only or ()),
    )  # fmt: skip
    work_begins()
    found = report.table(plan, measure.run(plan, screen.say))
    files = report.write(out, found)
    _show(screen, found, files)


def _show(screen: Screen, found: dict[str, Any], files: Any) -> None:
    from ctxedit.bench.speed import report

    if screen.json:
        screen.result("", {**found, **{f"{k}_file": str(v) for k, v in dataclasses.asdict(files).items()}})
        return
    head, *rows = report.cells(found["rows"])
    tasks = [row["task"] for row in found["rows"]]
    print_table([["task", *head], *([task, *row] for task, row in zip(tasks, rows, strict=True))])
    screen.say(f"limits, ratios and a plot: {files.markdown}, {files.plot}")
