"""The Typer application: which commands there are. Each one lives in a file of its own."""

from __future__ import annotations

from typing import Annotated

import typer

from ctxedit import __version__
from ctxedit.cli import bench, caption, edit, env, eval, models, presets, t2i, train, tune
from ctxedit.cli import run as run_command
from ctxedit.cli.failures import Interrupted
from ctxedit.cli.options import help_unless_called, spread

app = typer.Typer(
    name="ctxedit",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Settings: flag, CTXEDIT_* variable, --config, preset, default. CTXEDIT_DEBUG=1 shows tracebacks.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"ctxedit {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Edit a video with words."""
    help_unless_called(context)


_VERBS = (
    ("run", run_command.run), ("caption", caption.caption), ("tune", tune.tune), ("edit", edit.edit),
    ("t2i", t2i.t2i), ("train", train.train), ("env", env.env),
)  # fmt: skip
for _name, _verb in _VERBS:
    app.command(_name)(spread(_verb))
app.add_typer(eval.app, name="eval")
app.add_typer(bench.app, name="bench")
app.add_typer(presets.app, name="presets")
app.add_typer(models.app, name="models")


def run(arguments: list[str]) -> int:
    """Run one command line; returns the exit code, raises what went wrong."""
    code = typer.main.get_command(app).main(arguments, prog_name="ctxedit", standalone_mode=False)
    if code == Interrupted.exit_code:  # Typer swallows Ctrl-C
        raise KeyboardInterrupt
    return code if isinstance(code, int) else 0
