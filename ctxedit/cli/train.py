"""``ctxedit train``: train one of the built-in models, or all of them, from a recipe."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ctxedit.cli.failures import resumable
from ctxedit.cli.options import MessageOptions
from ctxedit.cli.output import Screen, columns, pairs
from ctxedit.cli.output_options import DryRunOption, OverwriteOption
from ctxedit.editing.paths import Input, Paths
from ctxedit.errors import ConfigError, counted
from ctxedit.files import TEXT_LIMIT, check_file
from ctxedit.media.temporary import check_writable

if TYPE_CHECKING:
    from ctxedit.training.job import Training, TrainOptions
    from ctxedit.training.loop import Done

_TRAINING = "Training"


def _option(*names: str, **more: Any) -> Any:
    return typer.Option(*names, rich_help_panel=_TRAINING, show_default=False, **more)


Name = Annotated[
    str | None,
    typer.Argument(
        metavar="RECIPE",
        help="A built-in recipe, a TOML file, or all: every recipe in order.",
        show_default=False,
    ),
]
List = Annotated[bool, _option("--list", help="List the built-in recipes.")]
Out = Annotated[
    Path | None,
    _option("--out", metavar="DIR", help="Folder for the trained models. [default: weights-RECIPE]"),
]
State = Annotated[
    Path | None,
    _option("--state", metavar="DIR", help="Folder for the resumable state. [default: OUT/.state]"),
]
Data = Annotated[
    Path | None,
    _option("--data", metavar="PATH", help="Folder of images and captions, or webdataset shards."),
]
Steps = Annotated[
    int | None, _option("--steps", min=1, help="Total number of steps. [default: the recipe's]")
]
Warm = Annotated[bool, _option("--warm", help="Start from the weights in OUT, or else the built-in ones.")]
Device = Annotated[str, _option("--device", help="auto, cpu, cuda or mps. [default: auto]")]
Precision = Annotated[
    Literal["no", "fp16", "bf16"] | None,
    _option("--precision", help="Mixed precision. [default: the recipe's]"),
]
Passes = Annotated[
    int, _option("--passes", min=1, help="Split each step into N passes to save memory (not for CLIP).")
]
Board = Annotated[
    Path | None, _option("--tensorboard", metavar="DIR", help="Folder for TensorBoard event files.")
]
Record = Annotated[
    bool, _option("--record", help="Write training.json for weights made from --state, without training.")
]


def train(
    dry: DryRunOption,
    overwrite: OverwriteOption,
    messages: MessageOptions,
    name: Name = None,
    list_: List = False,
    out: Out = None,
    state: State = None,
    data: Data = None,
    steps: Steps = None,
    warm: Warm = False,
    device: Device = "auto",
    precision: Precision = None,
    passes: Passes = 1,
    tensorboard: Board = None,
    record_: Record = False,
) -> None:
    """Train one part of the models from a recipe, or all of them, and print the folder of the weights.

    An interrupted training resumes. With several GPUs or processes:
    `torchrun --nproc_per_node N -m ctxedit train RECIPE`.
    """
    screen = Screen(messages.quiet, messages.json)
    if list_:
        show_recipes(screen)
        return
    if name is None:
        raise ConfigError("no recipe", "choose one of `ctxedit train --list`, or a TOML file")

    from ctxedit.models.quiet import hush
    from ctxedit.training import policy
    from ctxedit.training.job import Training, TrainOptions

    if name.endswith(".toml"):
        check_file(Path(name), "recipe", TEXT_LIMIT, ConfigError)
    chosen = policy.Request(name, data, steps, precision, passes).recipes()
    out = out or Path(f"weights-{policy.ALL if name == policy.ALL else chosen[0].name}")
    state = state or out / ".state"
    trainings = [Training(recipe, state, out) for recipe in chosen]
    several = name == policy.ALL
    _check_places(name, data, trainings, out, state)
    if record_:
        _write_records(screen, several, trainings)
        return
    _check_tensorboard(tensorboard)
    yes = overwrite.yes
    if dry.dry_run:
        hush()
        plans = [one.plan(policy.restarts(one, yes, chosen), device) for one in trainings]
        _show_plans(screen, several, plans)
        return
    for one in trainings:
        policy.check_overwrite(one, yes, chosen)
    tables = []
    with resumable(state):
        for one in trainings:  # what has to restart depends on what was trained before it
            restart, again = policy.restarts(one, yes, chosen), yes and len(chosen) == 1
            tables.append(_train(one, TrainOptions(warm, restart, again, device, tensorboard), screen))
    if not _silent():
        _result(screen, several, tables, [str(table["weights"]) for table in tables])


def _check_tensorboard(folder: Path | None) -> None:
    if folder is not None:
        from ctxedit.training.progress_log import check_tensorboard

        check_tensorboard()


def _write_records(screen: Screen, several: bool, trainings: list[Training]) -> None:
    from ctxedit.training import policy

    wanted = [one for one in trainings if not several or policy.has_own_weights(one)]
    paths = [one.write_record() for one in wanted]
    _result(screen, several, [{"record": path} for path in paths], map(str, paths))


def _check_places(name: str, data: Path | None, trainings: list[Training], out: Path, state: Path) -> None:
    """Check that no input would be overwritten and that the outputs can be written."""
    inputs = [Input(Path(name), "recipe")] if name.endswith(".toml") else []
    inputs += [Input(data, "data")] if data is not None else []
    written = (*(("weights", training.weights) for training in trainings), ("state", state))
    Paths(tuple(inputs), written).check()
    for place in (out, state):
        check_writable(place / ".ctxedit", True)


def _table(training: Training, done: Done) -> dict[str, Any]:
    images = done.step * training.recipe.schedule.images
    return {
        "weights": training.weights, "part": training.recipe.part, "steps": done.step,
        "images": images, "seconds": done.seconds, "bad": done.bad,
    }  # fmt: skip


def _result(screen: Screen, several: bool, tables: list[dict[str, Any]], texts: Iterable[str]) -> None:
    """Print; the JSON object is the recipe's table, or for ``all`` a list of them."""
    screen.result("\n".join(texts), {"parts": tables} if several else tables[0])


def _train(training: Training, options: TrainOptions, screen: Screen) -> dict[str, Any]:
    """Train one part and report the result."""
    from ctxedit.cli.progress import teller
    from ctxedit.models.quiet import hush

    hush()
    screen = Screen(quiet=True) if _silent() else screen
    part, steps = training.recipe.part, training.recipe.schedule.steps
    start = 0 if options.restart else training.steps_done(screen.warn)
    if start >= steps:
        screen.say(f"{part}: trained already, {counted(start, 'step')}; use -y to train it again")
    elif start:
        screen.say(f"{part}: resuming at step {start} of {steps}")
    elif training.continues is not None:
        screen.say(f"{part}: starting from {training.initial_weights(options.restart)}")
    name = f"train {part}" if start < steps else f"export {part}"
    with teller(screen).task(name, max(0, steps - start)) as progress:

        def report(row: dict[str, float]) -> None:
            known = {k: v for k, v in row.items() if k not in ("step", "seconds_left", "images_per_second")}
            note = ", ".join(f"{k} {v:.4g}" for k, v in known.items())
            progress(int(row["step"]) - start, note)

        done = training.run(report, options, screen.say)
    _warn_of_bad_samples(done, screen)
    return _table(training, done)


def _silent() -> bool:
    """Of several processes only the first prints."""
    return os.environ.get("RANK", "0") != "0"


def _warn_of_bad_samples(done: Done, screen: Screen) -> None:
    if done.bad and not _silent():
        shown = [f"{name} ({why})" for name, why in list(done.bad.items())[:5]]
        more = ", …" if len(done.bad) > len(shown) else ""
        count = "1 bad sample was" if len(done.bad) == 1 else f"{len(done.bad)} bad samples were"
        screen.warn(f"{count} left out: {', '.join(shown)}{more}")


def _show_plans(screen: Screen, several: bool, plans: list[dict[str, Any]]) -> None:
    texts = [pairs(_plan_rows(table)) for table in plans]
    _result(screen, several, plans, ["\n\n".join(texts)])


def _plan_rows(plan: dict[str, Any]) -> list[tuple[str, str]]:
    """A plan for people: what is trained, on what, for how long, and where it goes."""
    data, done = plan["data"], plan["first step"]
    if plan["pictures"] != "endless":
        data += f", {counted(plan['pictures'], 'image')}"
    if plan["bad"]:
        data += f" ({plan['bad']} unusable, left out)"
    steps = f"{plan['steps']:,}" + (f" ({done:,} done)" if done else "")
    rows = {
        "part": plan["part"], "trains": plan["about"], "parameters": f"{plan['parameters']:,}", "data": data,
        "steps": f"{steps}, on {plan['images']:,} images", "weights": plan["weights"], "state": plan["state"],
        "starts from": plan.get("starts from"),
    }  # fmt: skip
    return [(name, value) for name, value in rows.items() if value]


def show_recipes(screen: Screen) -> None:
    """List the built-in recipes, with the training time of the shipped weights where it was recorded."""
    from ctxedit.models.weights import BUILTIN_FOLDER
    from ctxedit.training import recipe as recipes
    from ctxedit.training import record

    found: list[dict[str, Any]] = []
    for name in recipes.names():
        one = recipes.resolve(name)
        records = record.history(BUILTIN_FOLDER / one.folder)
        meant = (one.part, record.describe_data(one))
        known = next((made for made in records if (made.get("part"), made.get("data")) == meant), {})
        found.append(
            {
                "recipe": name, "part": one.part, "about": one.about, "steps": one.schedule.steps,
                "images": one.schedule.steps * one.schedule.images, "data": record.describe_data(one),
                "seconds": known.get("seconds"), "device": known.get("device"),
            }
        )  # fmt: skip
    rows = [("recipe", "steps", "images", "took", "data", "trains")]
    for f in found:
        took = f"{f['seconds'] / 60:.0f} min, {f['device']}" if f["seconds"] else "?"
        rows.append((f["recipe"], f"{f['steps']:,}", f"{f['images']:,}", took, f["data"], f["about"]))
    screen.result(columns(rows), {"recipes": found})
