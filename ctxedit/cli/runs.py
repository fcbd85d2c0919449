"""``ctxedit runs``: find, look at and remove run folders."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ctxedit.cli.options import MessageOptions
from ctxedit.cli.output import Screen, human_size, pairs, print_table
from ctxedit.cli.output_options import RemoveOption, RunsOptions
from ctxedit.cli.spread import help_unless_called, spread
from ctxedit.errors import ConfigError, CtxeditError, InputError, OutputError
from ctxedit.provenance import changed_settings, distinct_labels
from ctxedit.runs import Run

app = typer.Typer(help="List runs, show one, and remove those that are no longer needed.")
app.callback(invoke_without_command=True)(help_unless_called)

_UNITS = {"h": 3600, "d": 86400, "w": 7 * 86400}


def _folders() -> list[str]:
    return [str(folder) for folder, _ in found(Path("runs"))]


Folder = Annotated[
    Path,
    typer.Argument(metavar="RUN", help="Run folder.", show_default=False, autocompletion=_folders),
]
Folders = Annotated[
    list[Path],
    typer.Argument(metavar="RUN...", help="Run folders.", show_default=False, autocompletion=_folders),
]


@dataclass(frozen=True)
class Summary:
    """One run for a list. ``bytes`` is what its folder takes on disk; ``used`` is seconds since the epoch."""

    folder: Path
    clip: Path
    prompt: str | None
    preset: str
    edits: tuple[str, ...]
    bytes: int
    used: float

    def table(self) -> dict[str, Any]:
        """As plain values for JSON; the time in ISO 8601."""
        used = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(self.used))
        return {**vars(self), "used": used}


@app.command("ls")
@spread
def ls(place: RunsOptions, messages: MessageOptions) -> None:
    """List the runs, the most recently used first."""
    screen = Screen(messages.quiet, messages.json)
    rows = _summaries(place.runs, screen)
    if screen.json:
        screen.result("", {"runs": [row.table() for row in rows]})
        return
    if not rows:
        screen.say(f"no runs in {place.runs}")
        return
    head = ("run", "clip", "prompt", "preset", "edits", "size", "last used")
    print_table([head, *(_cells(row) for row in rows)])


@app.command("show")
@spread
def show(run: Folder, place: RunsOptions, messages: MessageOptions) -> None:
    """Show one run: its clip, prompt, settings that differ from the preset, and edits."""
    screen = Screen(messages.quiet, messages.json)
    opened = Run(_located(run, place.runs))
    summary = _summary(opened)
    edits = _edits(opened)
    changed = _changed(opened)
    facts = [
        ("run", str(opened.folder)), ("clip", str(summary.clip)), ("prompt", summary.prompt or "-"),
        ("preset", summary.preset), ("size", human_size(summary.bytes)), ("last used", _ago(summary.used)),
        *(("setting", f"{key} = {value}") for key, value in changed.items()),
        *(("edit", f"{e['label']}: {e['video']}{'' if e['exists'] else ' (missing)'}") for e in edits),
    ]  # fmt: skip
    table = {**summary.table(), "settings": changed, "edits": edits}
    screen.result(pairs(facts), table)


@app.command("rm")
@spread
def rm(names: Folders, place: RunsOptions, messages: MessageOptions, removal: RemoveOption) -> None:
    """Remove runs with all their edits. Edits written elsewhere with -o stay."""
    screen = Screen(messages.quiet, messages.json)
    folders = [_located(run, place.runs) for run in names]
    _confirm(screen, folders, removal.yes)
    _remove(screen, folders)


@app.command("prune")
@spread
def prune(
    place: RunsOptions, messages: MessageOptions, removal: RemoveOption,
    older: Annotated[
        str | None, typer.Option("--older", metavar="AGE", help="Runs not used for this long: 12h, 30d, 8w."),
    ] = None,
    no_edits: Annotated[bool, typer.Option("--no-edits", help="Runs without any edit.")] = False,
    keep: Annotated[
        int | None, typer.Option("--keep", min=0, metavar="N", help="All but the N most recently used runs."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be removed.")] = False,
) -> None:  # fmt: skip
    """Remove old runs. With several conditions, a run must meet all of them."""
    screen = Screen(messages.quiet, messages.json)
    if older is None and keep is None and not no_edits:
        raise ConfigError("prune needs a condition", "--older 30d, --keep 10 or --no-edits")
    rows = _summaries(place.runs, screen)
    if keep is not None:
        rows = rows[keep:]
    if older is not None:
        before = time.time() - _seconds(older)
        rows = [row for row in rows if row.used < before]
    rows = [row for row in rows if not (no_edits and row.edits)]
    folders = [row.folder for row in rows]
    if not folders:
        screen.say("no run meets the conditions")
    if dry_run or not folders:
        screen.result("\n".join(map(str, folders)), {"remove": folders})
        return
    _confirm(screen, folders, removal.yes)
    _remove(screen, folders)


def found(root: Path) -> Iterator[tuple[Path, float]]:
    """Run folders below ``root`` with the time each was last changed, the newest first."""
    files = [(file.parent, file.stat().st_mtime) for file in root.glob("*/run.toml")]
    yield from sorted(files, key=lambda pair: pair[1], reverse=True)


def _summaries(root: Path, screen: Screen) -> list[Summary]:
    rows = []
    for folder, _ in found(root):
        try:
            rows.append(_summary(Run(folder)))
        except CtxeditError as error:
            screen.warn(f"{folder} cannot be read: {error.message}")
    return rows


def _summary(run: Run) -> Summary:
    facts = [run.facts(name)["target"] for name in run.edits()]
    size = sum(f.lstat().st_size for f in run.folder.rglob("*") if f.is_file())
    used = (run.folder / "run.toml").stat().st_mtime
    return Summary(
        run.folder, run.clip, run.facts("caption").get("text"), run.preset, tuple(facts), size, used
    )


def _cells(row: Summary) -> tuple[str, ...]:
    return (
        row.folder.name, row.clip.name, row.prompt or "-", row.preset, str(len(row.edits)),
        human_size(row.bytes), _ago(row.used),
    )  # fmt: skip


def _edits(run: Run) -> list[dict[str, Any]]:
    """A run's edits; the labels name the settings in which edits with the same target differ."""
    facts = [run.facts(name) for name in run.edits()]
    labels = distinct_labels([f["target"] for f in facts], [f.get("settings", {}) for f in facts])
    return [
        {
            "target": f["target"], "label": label, "video": f.get("video"),
            "settings": f.get("settings", {}), "exists": "video" in f and Path(f["video"]).exists(),
        }
        for f, label in zip(facts, labels, strict=True)
    ]  # fmt: skip


def _changed(run: Run) -> dict[str, Any]:
    """Settings of a run that differ from its preset's."""
    try:
        changed = changed_settings(run.config, run.preset)
        # How the inversion is reported changes no result.
        return {key: value for key, value in changed.items() if key != "round_trip"}
    except ConfigError:  # the preset is broken
        return {}


def _located(run: Path, root: Path) -> Path:
    """A run named by its path, or by its name in the folder for runs."""
    for folder in (run, root / run):
        if (folder / "run.toml").is_file():
            return folder
    raise InputError(f"{run} is not a run folder", "see `ctxedit runs ls`")


def _confirm(screen: Screen, folders: list[Path], yes: bool) -> None:
    """Ask before removing; without a terminal, ``-y`` is needed."""
    if yes:
        return
    total = human_size(sum(_summary(Run(folder)).bytes for folder in folders))
    what = f"{len(folders)} {'run' if len(folders) == 1 else 'runs'} ({total})"
    if not screen.console.is_terminal:
        raise ConfigError(f"this removes {what}", "add -y to confirm")
    typer.confirm(f"Remove {what}?", abort=True, err=True)


def _remove(screen: Screen, folders: list[Path]) -> None:
    for folder in folders:
        if Run.in_use(folder):
            raise OutputError(
                f"another ctxedit is working in {folder}; nothing was removed", "wait for it to finish"
            )
    for folder in folders:
        try:
            if folder.is_symlink():
                # What it names may be somebody else's, or in use under its own name.
                screen.warn(f"{folder} is a link: the folder that it names is kept: {folder.resolve()}")
                folder.unlink()
            else:
                shutil.rmtree(folder)
        except OSError as error:
            raise OutputError(f"{folder} cannot be removed: {error.strerror}") from error
    screen.result("\n".join(map(str, folders)), {"removed": folders})


def _seconds(age: str) -> float:
    if not (parsed := re.fullmatch(r"(\d+(?:\.\d+)?)([hdw])", age)):
        raise ConfigError(f"--older {age}", "a number and h, d or w: 12h, 30d, 8w")
    return float(parsed[1]) * _UNITS[parsed[2]]


def _ago(then: float) -> str:
    """How long ago, for people."""
    seconds = max(0.0, time.time() - then)
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if (count := int(seconds // length)) >= 1:
            return f"{count} {unit}{'' if count == 1 else 's'} ago"
    return "just now"
