"""``ctxedit show``: how a file was made, from its embedded metadata."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer

from ctxedit.cli import arguments
from ctxedit.cli.options import MessageOptions
from ctxedit.cli.output import Screen, pairs
from ctxedit.errors import CtxeditError, InputError

File = Annotated[
    Path,
    typer.Argument(
        metavar="FILE", help="A video, GIF, image or folder of frames that ctxedit wrote.", show_default=False
    ),
]
_LABELS = {
    "target": "target", "text": "text", "prompt": "prompt", "preset": "preset", "model": "model",
    "seed": "seed", "tuning_seed": "tuned with", "adapter": "adapter",
}  # fmt: skip


def show(file: File, messages: MessageOptions) -> None:
    """Show how a file was made, and the command that makes it again."""
    screen = Screen(messages.quiet, messages.json)
    arguments.existing(file)
    if (file / "run.toml").is_file():
        raise InputError(f"{file} is a run, not a file", f"ctxedit runs show {shlex.quote(str(file))}")

    from ctxedit.provenance import commands

    facts = facts_in(file)
    clip = _source_near(file, facts.get("source", {}))
    try:
        again = commands(facts, clip)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{file}: its ctxedit metadata is damaged", "the file was changed after ctxedit wrote it"
        ) from error
    screen.result(_lines(file, facts, clip, again), {"file": file, **facts, "commands": again})


def facts_in(file: Path) -> dict[str, Any]:
    """The embedded record of how a file was made.

    Raises:
        InputError: it cannot be read, or has no such record.
    """
    from ctxedit.media.embed import embedded
    from ctxedit.provenance import from_text

    facts = from_text(embedded(file))
    if facts is None:
        raise InputError(
            f"{file} does not say how it was made",
            "not written by ctxedit, written with --no-metadata, or stripped of metadata by another program",
        )
    return facts


def _source_near(file: Path, source: Any) -> str | None:
    """The source clip: one with its name and content in the current folder, beside the file, or in a run."""
    from ctxedit.contents import fingerprint

    if not isinstance(source, dict) or not isinstance(source.get("name"), str):
        return None
    name = Path(source["name"]).name
    for path in chain((Path(name), file.parent / name), _clips_of_runs(file, name)):
        try:
            if (path.is_file() or path.is_dir()) and fingerprint(path) == source.get("blake2b"):
                return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
        except CtxeditError:
            continue
    return None


def _clips_of_runs(file: Path, name: str) -> Iterator[Path]:
    """Clips of this name that runs were made of: of those in the usual folder, and of the file's own run."""
    from ctxedit.cli.runs import found
    from ctxedit.runs import Run

    usual, own = Path(os.environ.get("CTXEDIT_RUNS", "runs")), file.absolute().parents[1:3]
    for folder, _ in chain.from_iterable(map(found, (usual, *own))):
        try:
            clip = Run(folder).clip
        except CtxeditError:
            continue
        if clip.name == name:
            yield clip


def _lines(file: Path, facts: dict[str, Any], clip: str | None, again: list[str]) -> str:
    rows = [("file", str(file)), ("made by", f"ctxedit {facts['ctxedit']}")]
    if isinstance(source := facts.get("source"), dict):
        where = clip or f"{source.get('name')}, not found here"
        rows.append(("source", f"{where} (BLAKE2b {source.get('blake2b')})"))
    rows += [("of", str(part.get("label"))) for part in facts.get("of", [])]
    rows += [("shows", ", ".join(map(str, facts["labels"])))] if facts.get("labels") else []
    rows += [(label, str(facts[key])) for key, label in _LABELS.items() if facts.get(key, "") != ""]
    rows += [("setting", f"{key} = {value}") for key, value in facts.get("settings", {}).items()]
    rows += [("option", f"{key} = {value}") for key, value in facts.get("output", {}).items()]
    rows += [("again", line) for line in again]
    return pairs(rows, whole="again")
