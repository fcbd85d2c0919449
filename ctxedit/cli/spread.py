"""The decorator that spreads groups of options over a command's signature."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any

import typer

from ctxedit.cli.failures import Carried
from ctxedit.cli.output import put


def spread(command: Callable[..., Any]) -> Callable[..., Any]:
    """Replace each parameter that is annotated with a group by the group's options.

    Typer sees the options; the command gets the groups, filled. The help shows a group's options in the
    panel that its class attribute ``panel`` names, if it has one.
    """
    signature = inspect.signature(command, eval_str=True)
    groups: dict[str, Any] = {
        p.name: p.annotation for p in signature.parameters.values() if dataclasses.is_dataclass(p.annotation)
    }
    parameters = [
        p.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for p in signature.parameters.values()
        if p.name not in groups
    ]
    for group in groups.values():
        hints = typing.get_type_hints(group, include_extras=True)
        if (panel := getattr(group, "panel", None)) is not None:
            for f in dataclasses.fields(group):
                hints[f.name].__metadata__[0].rich_help_panel = panel
        parameters += [
            inspect.Parameter(
                f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=hints[f.name]
            )
            for f in dataclasses.fields(group)
        ]

    @functools.wraps(command)
    def called(**values: Any) -> Any:
        for name, group in groups.items():
            values[name] = group(**{f.name: values.pop(f.name) for f in dataclasses.fields(group)})
        try:
            return command(**values)
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except BaseException as error:
            raise Carried(error) from error

    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {p.name: p.annotation for p in parameters}
    del called.__wrapped__
    return called


def help_unless_called(context: typer.Context) -> None:
    """Callback of a group of commands: without a command its help is printed."""
    if context.invoked_subcommand is None:
        put(context.get_help())
