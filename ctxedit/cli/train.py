"""``ctxedit train``: train one of the models' parts from a recipe."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ctxedit.cli.failures import resumable
from ctxedit.cli.options import Dry, Overwrite, Talk
from ctxedit.cli.output import Screen, columns
from ctxedit.errors import ConfigError, InputError, OutputError

if TYPE_CHECKING:
    from ctxedit.bundled.training.loop import Done
    from ctxedit.bundled.training.recipe import Recipe

_TRAINING = "Training"
#: Stands for every built-in recipe, in the order in which each builds on those before.
ALL = "all"
#: Learn from the drawn world alone, whose answers it knows.
_DRAWN_ONLY = ("judge", "composition-judge")


def _option(*names: str, **more: Any) -> Any:
    return typer.Option(*names, rich_help_panel=_TRAINING, show_default=False, **more)


Name = Annotated[
    str | None,
    typer.Argument(
        metavar="RECIPE",
        help="A built-in recipe, a TOML file, or all: one after the other.",
        show_default=False,
    ),
]
List = Annotated[bool, _option("--list", help="List the built-in recipes.")]
Out = Annotated[
    Path | None, _option("--out", metavar="DIR", help="Folder of models the weights go to. (weights-RECIPE)")
]
State = Annotated[
    Path | None, _option("--state", metavar="DIR", help="Where the resumable state lies. (OUT/.state)")
]
Pictures = Annotated[
    Path | None, _option("--data", metavar="PATH", help="Folder of pictures and captions, or tar shards.")
]
Steps = Annotated[int | None, _option("--steps", min=1, help="Steps in all. (the recipe's)")]
Warm = Annotated[bool, _option("--warm", help="Start from the weights in OUT, or the built-in ones.")]
Device = Annotated[str, _option("--device", help="auto, cpu, cuda, mps. (auto)")]
Precision = Annotated[
    Literal["no", "fp16", "bf16"] | None, _option("--precision", help="Mixed precision. (the recipe's)")
]
Passes = Annotated[
    int, _option("--passes", min=1, help="Take each step's samples in N passes: less memory; not CLIP's.")
]
Board = Annotated[
    Path | None, _option("--tensorboard", metavar="DIR", help="Write TensorBoard's event files there.")
]
Record = Annotated[
    bool, _option("--record", help="Train nothing; write training.json for weights made from --state.")
]


def train(
    dry: Dry,
    overwrite: Overwrite,
    talk: Talk,
    name: Name = None,
    list_: List = False,
    out: Out = None,
    state: State = None,
    data: Pictures = None,
    steps: Steps = None,
    warm: Warm = False,
    device: Device = "auto",
    precision: Precision = None,
    passes: Passes = 1,
    tensorboard: Board = None,
    record_: Record = False,
) -> None:
    """Train a part from a recipe, or all of them, resumable; prints the folder of the weights.

    Several GPUs, or processes: `torchrun --nproc_per_node N -m ctxedit train RECIPE`.
    """
    screen = Screen(talk.quiet, talk.json)
    if list_:
        show_recipes(screen)
        return
    if name is None:
        raise ConfigError("no recipe", "name one of `ctxedit train --list`, or a TOML file")

    from ctxedit.bundled.training import recipe as recipes
    from ctxedit.bundled.training import record

    chosen = [one.in_passes(passes) for one in _recipes(name, data, _schedule(steps, precision))]
    if os.environ.get("WORLD_SIZE", "1") != "1" and len({one.schedule.precision for one in chosen}) > 1:
        # Accelerate keeps one precision for as long as its processes live.
        raise ConfigError("recipes of several precisions on several processes", "choose one with --precision")
    out = out or Path(f"weights-{ALL if name == ALL else chosen[0].name}")
    state = state or out / ".state"
    if record_:
        paths = [record.of_existing(one, state, out) for one in chosen if _can_record(one, state, out, name)]
        _result(screen, name, [{"record": path} for path in paths], map(str, paths))
        return
    if tensorboard is not None:
        from ctxedit.bundled.training.meter import check_tensorboard

        check_tensorboard()
    if dry.dry_run:
        _show_plans(screen, name, chosen, state, out, overwrite.yes)
        return
    for one in chosen:
        _refuse_existing(one, state, out, overwrite.yes, chosen)
    tables = []
    with resumable(state):
        for one in chosen:
            anew = _anew(one, state, out, overwrite.yes, chosen)
            again = overwrite.yes and len(chosen) == 1
            done = _train(one, state, out, recipes.Options(warm, anew, again, device, tensorboard), screen)
            tables.append(_told(one, out, done))
            _tell_bad(done, screen)
    if not _silent():
        _result(screen, name, tables, [str(table["weights"]) for table in tables])


def _recipes(name: str, data: Path | None, schedule: dict[str, Any]) -> list[Recipe]:
    """The recipes that a name stands for, with what was asked besides."""
    from ctxedit.bundled.training import recipe as recipes

    names = [name]
    if name == ALL:
        # A part's own recipe; others of it, which go on from there, are asked for by name alone.
        names = [n for n in recipes.names() if recipes.resolve(n).part == n]
        names = [n for n in names if data is None or n not in _DRAWN_ONLY]
    return [recipes.resolve(n).changed(schedule, _data(data)) for n in names]


def _told(recipe: Recipe, out: Path, done: Done) -> dict[str, Any]:
    return {
        "weights": out / recipe.folder, "part": recipe.part, "steps": done.step,
        "images": done.step * recipe.schedule.images, "seconds": done.seconds, "bad": done.bad,
    }  # fmt: skip


def _result(screen: Screen, name: str, tables: list[dict[str, Any]], texts: Iterable[str]) -> None:
    """One recipe's table is the JSON object itself; of all of them it holds a list."""
    screen.result("\n".join(texts), {"parts": tables} if name == ALL else tables[0])


def _schedule(steps: int | None, precision: str | None) -> dict[str, Any]:
    asked = {"steps": steps, "precision": precision}
    return {key: value for key, value in asked.items() if value is not None}


def _data(path: Path | None) -> dict[str, Any]:
    """The ``[data]`` table that ``--data`` stands for."""
    if path is None:
        return {}
    shards = path.suffix == ".tar" or (path.is_dir() and any(path.glob("*.tar")))
    if not shards and not path.is_dir():
        raise InputError(f"no folder {path}", "--data is a folder of pictures and captions, or tar shards")
    return {"source": "webdataset" if shards else "folder", "path": str(path)}


def _can_record(recipe: Recipe, state: Path, out: Path, name: str) -> bool:
    """Of all parts, those that others took the place of, or that were not trained, have no record to make."""
    from ctxedit.bundled.training import onward

    if name != ALL:
        return True
    untrained = recipe.part in onward.PARTS and not (state / recipe.part / "state.pt").exists()
    return not untrained and onward.owner(recipe.part, out / recipe.folder, state) in (None, recipe.part)


def _anew(recipe: Recipe, state: Path, out: Path, yes: bool, chosen: list[Recipe]) -> bool:
    """Whether the state there is is to be forgotten: with ``yes`` one of another training.

    Without, too, if what it began with was trained further, and by this command: it is of no more use.
    """
    from ctxedit.bundled.training import onward, record
    from ctxedit.bundled.training.recipe import check_same

    place, folder = state / recipe.part, out / recipe.folder
    stale = onward.is_stale(recipe.part, place, folder)
    base = onward.PARTS.get(recipe.part)
    if stale and record.owner_of(folder) == base and base in (one.part for one in chosen):
        return True
    try:
        check_same(recipe, place)
    except ConfigError:
        return yes
    return yes and (stale or not (place / "state.pt").exists())


def _refuse_existing(recipe: Recipe, state: Path, out: Path, yes: bool, chosen: list[Recipe]) -> None:
    """Weights that are not this training's own are not written over unasked.

    Where the part that goes on from another's weights is asked for together with that, they are its own.
    """
    from ctxedit.bundled.training import onward, record

    folder, parts = out / recipe.folder, [one.part for one in chosen]
    if yes or not any(folder.glob("*.safetensors")) or onward.PARTS.get(recipe.part) in parts:
        return
    owner = record.owner_of(folder) or recipe.part
    begun = (state / recipe.part / "state.pt").exists()
    if begun and (owner == recipe.part or owner in parts or recipe.part in onward.PARTS):
        return
    if recipe.part in onward.PARTS:
        raise OutputError(f"{folder} holds weights already", "pass -y to go on from them, in their place")
    raise OutputError(f"{folder} holds weights already", "name another --out, or pass -y to replace them")


def _train(recipe: Recipe, state: Path, out: Path, options: Any, screen: Screen) -> Done:
    from ctxedit.bundled.training import onward
    from ctxedit.bundled.training import recipe as recipes
    from ctxedit.bundled.training.loop import read_state
    from ctxedit.cli.progress import hush, teller

    hush()
    screen = Screen(quiet=True) if _silent() else screen
    saved = None if options.anew else read_state(state / recipe.part / "state.pt")
    start = int(saved["step"]) if saved else 0
    del saved
    if start:
        screen.say(f"{recipe.part}: goes on at step {start} of {recipe.schedule.steps}")
    elif recipe.part in onward.PARTS:
        origin = onward.origin(recipe.part, state / recipe.part, out, recipe.folder, options.anew)
        screen.say(f"{recipe.part}: goes on from {origin}")
    total = max(0, recipe.schedule.steps - start)
    with teller(screen).task(f"train {recipe.part}", total) as progress:

        def report(row: dict[str, float]) -> None:
            known = {k: v for k, v in row.items() if k not in ("step", "seconds_left", "images_per_second")}
            note = ", ".join(f"{k} {v:.4g}" for k, v in known.items())
            progress(int(row["step"]) - start, note)

        return recipes.run(recipe, state, out, report, options)


def _silent() -> bool:
    """Of several processes one talks."""
    return os.environ.get("RANK", "0") != "0"


def _tell_bad(done: Done, screen: Screen) -> None:
    if done.bad and not _silent():
        shown = [f"{name} ({why})" for name, why in list(done.bad.items())[:5]]
        more = ", …" if len(done.bad) > len(shown) else ""
        screen.warn(f"{len(done.bad)} bad in the data, left out: {', '.join(shown)}{more}")


def _show_plans(screen: Screen, name: str, chosen: list[Recipe], state: Path, out: Path, yes: bool) -> None:
    plans = [plan(one, state, out, _anew(one, state, out, yes, chosen)) for one in chosen]
    texts = ["\n".join(f"{k:<14}{v}" for k, v in table.items()) for table in plans]
    _result(screen, name, plans, ["\n\n".join(texts)])


def plan(recipe: Recipe, state: Path, out: Path, anew: bool = False) -> dict[str, Any]:
    """What a training would do, with ``anew`` forgetting its state. The part is built, nothing is written."""
    import tempfile

    from ctxedit.bundled.training import onward
    from ctxedit.bundled.training import recipe as recipes
    from ctxedit.bundled.training.loop import read_state
    from ctxedit.bundled.training.parts import view
    from ctxedit.bundled.training.record import describe_data
    from ctxedit.cli.progress import hush

    hush()
    with tempfile.TemporaryDirectory() as folder:
        task = recipes.make_task(recipe, view(out, Path(folder)))
    if not anew:
        recipes.check_same(recipe, state / recipe.part)
        onward.check(recipe.part, state / recipe.part, out / recipe.folder)
    saved = None if anew else read_state(state / recipe.part / "state.pt")
    listing = getattr(getattr(task, "data", None), "listing", None)
    table = {
        "part": recipe.part,
        "about": recipe.about,
        "parameters": sum(p.numel() for p in task.model.parameters() if p.requires_grad),
        "data": describe_data(recipe),
        "pictures": "endless" if listing is None else len(listing.entries),
        "bad": 0 if listing is None else len(listing.bad),
        "steps": recipe.schedule.steps,
        "begins at": int(saved["step"]) if saved else 0,
        "images": recipe.schedule.steps * recipe.schedule.images,
        "weights": str(out / recipe.folder),
        "state": str(state / recipe.part),
    }
    if recipe.part in onward.PARTS:
        table["goes on from"] = str(onward.origin(recipe.part, state / recipe.part, out, recipe.folder, anew))
    return table


def show_recipes(screen: Screen) -> None:
    """The built-in recipes; the time is of the shipped weights, where their record knows it."""
    from ctxedit.bundled.training import recipe as recipes
    from ctxedit.bundled.training import record
    from ctxedit.models.weights import BUILTIN_FOLDER

    found = []
    for name in recipes.names():
        one = recipes.resolve(name)
        made = record.sittings(BUILTIN_FOLDER / one.folder)
        meant = (one.part, record.describe_data(one))
        known = next((s for s in made if (s.get("part"), s.get("data")) == meant), {})
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
