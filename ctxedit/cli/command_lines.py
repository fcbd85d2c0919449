"""Command lines that do not parse, answered with one that does."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from ctxedit.errors import ConfigError

#: Typer's error for a command line that does not parse; its own copy of click is private.
UsageError: Any = typer.BadParameter.__base__
_EXAMPLE = "a panda walking on the beach"
#: The metavar that declares an option to be free text, whose own command says what an empty one means.
TEXT = "TEXT"


def taken(context: Any) -> str:
    """The arguments that a command takes: ``CLIP [TEXT...]``."""
    positional = (one for one in context.command.params if one.param_type_name == "argument")
    return " ".join(map(usage_of, positional))


def usage_of(argument: Any) -> str:
    """An argument in a usage line: ``CLIP``, or ``[TEXT...]`` where it may be left out.

    A metavar with brackets of its own stays as it is.
    """
    shown = str(argument.metavar or argument.name.upper())
    return shown if argument.required or "[" in shown else f"[{shown}]"


def refuse_empty(parameter: Any) -> None:
    """Have a parameter refuse the empty text, unless its metavar declares free text, or it takes no text.

    As a path it would be the current folder, and a script with an unset variable would work on that.
    """
    metavar = parameter.metavar or ""
    if parameter.bare_type() not in ("Path", "str") or TEXT in metavar:
        return
    process = parameter.process_value

    def process_value(context: Any, value: Any) -> Any:
        if value == "" or (isinstance(value, Sequence) and "" in value and not isinstance(value, str)):
            option = next((one for one in parameter.opts if one.startswith("-")), None)
            named = option or metavar or parameter.name.upper()
            raise ConfigError(f"{named} is empty", "give a value, or leave it out")
        return process(context, value)

    parameter.process_value = process_value


def refuse_clip(arguments: Sequence[str]) -> None:
    """Raise ConfigError, with the right command, where a clip is given in place of a command."""
    clip = Path(arguments[0])
    if clip.suffix and os.path.exists(clip):
        text = next((a for a in arguments[1:] if not a.startswith("-")), _EXAMPLE)
        call = shlex.join(["ctxedit", "run", arguments[0], text])
        raise ConfigError(f"{arguments[0]} is a clip, not a command", f"to edit it: {call}")


def refuse_extra_arguments(command: Any) -> None:
    """Have a command answer arguments that it does not take with the command line that may be meant."""
    parse = command.parse_args

    def parse_args(context: Any, arguments: list[str]) -> list[str]:
        given = list(arguments)
        context.allow_extra_args = True
        try:
            left: list[str] = parse(context, arguments)
        except UsageError as error:
            error.ctx = error.ctx or context  # an option without its value does not say whose it is
            raise
        if left and not context.resilient_parsing:
            raise _extra(context, given, left)
        return left

    command.parse_args = parse_args


def _extra(context: Any, given: list[str], left: list[str]) -> ConfigError:
    noun = "argument" if len(left) == 1 else "arguments"
    return ConfigError(f"unexpected {noun} {', '.join(map(repr, left))}", _meant(context, given, left))


def _meant(context: Any, given: list[str], left: list[str]) -> str:
    """A hint: the command line without the extra arguments, or with them where they belong."""
    path, parameters = context.command_path.split(), context.command.params
    positional = [one for one in parameters if one.param_type_name == "argument"]
    kept = list(given)
    for one in left:
        kept.reverse()
        kept.remove(one)  # the last one of its kind
        kept.reverse()
    plain = f"`{' '.join(path)}` takes {taken(context) or 'no arguments'}: see `{' '.join(path)} --help`"
    clip = str(context.params.get("clip", "")) if positional and positional[0].name == "clip" else ""
    if any(os.path.lexists(one) for one in left):
        swapped = clip and not os.path.lexists(clip) and len(left) == 1
        return f"the clip comes first: {shlex.join([*path, left[0]])}" if swapped else plain
    text, prompted = " ".join(left), any(one.partition("=")[0] == "--prompt" for one in given)
    if any("--prompt" in one.opts for one in parameters) and not prompted:
        hint = f"to say what the clip shows: {shlex.join([*path, *kept, '--prompt', text])}"
    elif positional and positional[-1].name == "text":
        words = str(context.params["text"])
        kept[kept.index(words)] = f"{words} {text}"
        return f"put the text in quotes: {shlex.join([*path, *kept])}"
    elif clip:
        hint = ""
    else:
        return plain
    edit = shlex.join(["ctxedit", "run", clip, text])
    return f"{hint}; to edit it: {edit}".removeprefix("; ") if clip else hint
