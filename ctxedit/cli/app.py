"""The Typer application with all its commands. Each command has its own file."""

from __future__ import annotations

import inspect
import re
from functools import lru_cache
from typing import Annotated, Any

import typer

from ctxedit import __version__
from ctxedit.cli import (
    batch,
    bench,
    caption,
    compare,
    edit,
    env,
    eval,
    models,
    narrow_help,
    presets,
    runs,
    show,
    t2i,
    train,
    tune,
)
from ctxedit.cli import run as run_command
from ctxedit.cli.command_lines import refuse_clip, refuse_empty, refuse_extra_arguments, usage_of
from ctxedit.cli.failures import Interrupted
from ctxedit.cli.output import put
from ctxedit.cli.spread import help_unless_called, spread

app = typer.Typer(
    name="ctxedit",
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="A setting comes from the first of: flag, CTXEDIT_* variable, --config, preset, default. "
    "CTXEDIT_DEBUG=1 shows tracebacks.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        put(f"ctxedit {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", "-V", callback=_print_version, is_eager=True, help="Print version."),
    ] = False,
) -> None:
    """Edit a video with words.

    To begin: `ctxedit run CLIP "a panda walking on the beach"` goes through all steps.
    """
    help_unless_called(context)


_VERBS = (
    ("run", run_command.run), ("caption", caption.caption), ("tune", tune.tune), ("edit", edit.edit),
    ("batch", batch.batch), ("t2i", t2i.t2i), ("train", train.train), ("compare", compare.compare),
    ("show", show.show), ("env", env.env),
)  # fmt: skip
for _name, _verb in _VERBS:
    app.command(_name)(spread(_verb))


@app.command("help")
def help_(
    command: Annotated[
        list[str] | None, typer.Argument(metavar="COMMAND...", help="A command.", show_default=False)
    ] = None,
) -> None:
    """Print the help of a command: `ctxedit help run`."""
    build().main([*(command or []), "--help"], prog_name="ctxedit", standalone_mode=False)


app.add_typer(eval.app, name="eval")
app.add_typer(bench.app, name="bench")
app.add_typer(runs.app, name="runs")
app.add_typer(presets.app, name="presets")
app.add_typer(models.app, name="models")


@lru_cache(maxsize=1)
def build() -> Any:
    """The whole command, with help texts in their final form; built once, because it takes Typer 30 ms."""
    command = typer.main.get_command(app)
    _finish(command)
    return command


def _finish(command: Any) -> None:
    """Adapt help and the answers to extra arguments and empty names, of a command and of those in it."""
    _finish_help(command)
    for parameter in command.params:
        refuse_empty(parameter)
    commands = getattr(command, "commands", {})
    if not commands:
        refuse_extra_arguments(command)
    for inner in commands.values():
        _finish(inner)


def _finish_help(command: Any) -> None:
    """Use the full width, escape ``[default: …]`` so that it is not markup, show no type for flags."""
    if command.help:
        command.help = re.sub(r"(?<!\n)\n(?!\n)", " ", inspect.cleandoc(command.help))
    if narrow := narrow_help.is_narrow():
        command.format_help = lambda context, formatter: formatter.write(
            narrow_help.help_of(command, context)
        )
    for parameter in command.params:
        if getattr(parameter, "help", None) and not narrow:
            parameter.help = parameter.help.replace("[default", r"\[default")
        if parameter.param_type_name == "argument":
            parameter.get_usage_pieces = lambda context, argument=parameter: [usage_of(argument)]
        if getattr(parameter, "is_flag", False):
            _hide_type(parameter)
        else:
            _plain_type(parameter)
    help_option = command.get_help_option
    command.get_help_option = lambda context: _hide_type(help_option(context))


def _plain_type(parameter: Any) -> None:
    """Show the type of a single value for options that take several."""
    shown = parameter.bare_type
    parameter.bare_type = lambda: re.sub(r"^list\[(.+)\]$", r"\1", shown())


def _hide_type(switch: Any) -> Any:
    switch.display_type_rich = lambda ctx: None
    return switch


def run(arguments: list[str]) -> int:
    """Run one command line; returns the exit code, raises what went wrong."""
    command = build()
    if arguments and not arguments[0].startswith("-") and arguments[0] not in command.commands:
        refuse_clip(arguments)
    code = command.main(arguments, prog_name="ctxedit", standalone_mode=False)
    if code == Interrupted.exit_code:  # Typer swallows Ctrl-C
        raise KeyboardInterrupt
    return code if isinstance(code, int) else 0
