"""The settings of a training task: its constructor's keyword arguments, checked before it is called.

A keyword argument's annotation says what a recipe may give: its type and, with ``Annotated``, its range. One
without an annotation takes anything.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Annotated, Any

from ctxedit.config import Length, Range, convert
from ctxedit.errors import ConfigError

Share = Annotated[float, Range(0, 1)]
#: Of a term of a loss.
LossWeight = Annotated[float, Range(0, 1_000_000)]
#: How many layers, draws or crops.
Count = Annotated[int, Range(1, 128)]
#: Channels of a network whose group norms have eight groups, of one whose have sixteen, and of any.
Channels8 = Annotated[int, Range(8, 8192, 8)]
Channels16 = Annotated[int, Range(16, 8192, 16)]
Channels = Annotated[int, Range(1, 8192)]
#: Most resolutions of a U-Net or an autoencoder; each halves the one before.
MAX_LEVELS = 6
Levels = Length(1, MAX_LEVELS)


def typed_settings(task: type, settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A recipe's ``[task]`` as keyword arguments for a task's constructor.

    Args:
        task: its class.
        settings: the recipe's table.
        name: the task's name, for messages.

    Raises:
        ConfigError: unknown or missing settings, one of another type, or one out of range.
    """
    parameters = inspect.signature(task).parameters.values()
    known = {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}
    names = f"[task] of {name} takes: {', '.join(known)}"
    if unknown := [key for key in settings if key not in known]:
        raise ConfigError(f"unknown setting task.{unknown[0]}", names)
    if missing := [key for key, p in known.items() if p.default is p.empty and key not in settings]:
        raise ConfigError(f"missing setting task.{missing[0]}", names)
    annotations = {p.name: p.annotation for p in known.values() if p.annotation is not p.empty}
    # The settings' annotations only: the others may name what is imported for type checkers alone.
    constructor: Any = inspect.getattr_static(task, "__init__")
    hints = typing.get_type_hints(
        SimpleNamespace(__annotations__=annotations), constructor.__globals__, include_extras=True
    )
    return {key: convert(value, hints.get(key, Any), f"task.{key}") for key, value in settings.items()}


def require(fits: bool, setting: str, value: Any, expected: str) -> None:
    """Raise ConfigError, naming a setting of ``[task]`` and what it must be, unless it fits the others."""
    if not fits:
        raise ConfigError(f"task.{setting} = {value!r}", f"must be {expected}")
