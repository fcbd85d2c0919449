"""``ctxedit presets``: list, show and copy."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import tomli_w
import typer

from ctxedit import config
from ctxedit.cli.failures import work_begins
from ctxedit.cli.options import MessageOptions
from ctxedit.cli.output import Screen, pairs
from ctxedit.cli.output_options import OverwriteOption
from ctxedit.cli.spread import help_unless_called, spread
from ctxedit.tables import BASE, preset_table, read_table

app = typer.Typer(help="List presets, print one, or copy one to edit.")
Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="Preset name.", show_default=False, autocompletion=config.preset_names
    ),
]
Destination = Annotated[
    Path | None,
    typer.Argument(
        metavar="PATH", help="Destination file or folder. [default: ./NAME.toml]", show_default=False
    ),
]

app.callback(invoke_without_command=True)(help_unless_called)


@app.command("ls")
@spread
def ls(messages: MessageOptions) -> None:
    """List the presets."""
    tables = {name: preset_table(name) for name in config.preset_names()}
    about = {name: str(table.get("about", "")) for name, table in tables.items()}
    Screen(messages.quiet, messages.json).result(
        pairs(list(about.items())),
        {"presets": [{"name": name, "about": text} for name, text in about.items()]},
    )


@app.command("show")
@spread
def show(name: Name, messages: MessageOptions) -> None:
    """Print a preset as TOML, including what it inherits from another preset."""
    path, whole = config.preset_path(name), preset_table(name)
    text, own = path.read_text(encoding="utf-8"), read_table(path)
    if BASE in own:
        said = f"# {path.name} changes the preset {own[BASE]}; both together:\n"
        text = said + tomli_w.dumps(whole)
    Screen(messages.quiet, messages.json).result(
        text.rstrip("\n"), {"name": name, "path": path, "toml": text, "table": whole}
    )


@app.command("cp")
@spread
def cp(name: Name, overwrite: OverwriteOption, messages: MessageOptions, path: Destination = None) -> None:
    """Copy a preset for editing and print the path of the copy. Use it with --preset FILE.toml."""
    from ctxedit.editing.paths import Input, Paths
    from ctxedit.media.temporary import atomic

    source = config.preset_path(name)
    target = path or Path(f"{source.stem}.toml")
    if os.path.isdir(target):
        target = target / f"{source.stem}.toml"
    Paths((Input(source, "preset"),), (("copy", target),)).check()
    work_begins()
    with atomic(target, overwrite.yes) as temporary:
        temporary.write_bytes(source.read_bytes())
    Screen(messages.quiet, messages.json).result(str(target), {"name": name, "path": target})
