"""Merging a nested table of values into settings, with their types checked."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Collection, Mapping
from dataclasses import fields, replace
from typing import Annotated, Any, Literal, TypeVar

from ctxedit.config.ranges import Length, Range
from ctxedit.config.settings import setting_names
from ctxedit.errors import ConfigError, did_you_mean
from ctxedit.model_names import BUILTIN, LARGEST
from ctxedit.renames import current_name

_T = TypeVar("_T")
#: How an error message names the type of a setting.
_KINDS = {float: "a number", int: "a whole number", bool: "true or false", str: "text"}


def merge(config: _T, table: Mapping[str, Any], where: str = "") -> _T:
    """A copy of a settings dataclass with the table's values; ConfigError for unknown keys and types."""
    hints = typing.get_type_hints(type(config), include_extras=True)
    names = {f.name for f in fields(config)}  # type: ignore[arg-type]
    changes: dict[str, Any] = {}
    for key, value in table.items():
        if key not in names:
            raise _unknown(f"{where}{key}", names)
        old = getattr(config, key)
        if dataclasses.is_dataclass(old):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{where}{key} is a table, not {value!r}")
            changes[key] = merge(old, value, f"{where}{key}.")
        else:
            changes[key] = convert(value, hints[key], f"{where}{key}")
    return replace(config, **changes)  # type: ignore[type-var]


def _unknown(name: str, known: Collection[str]) -> ConfigError:
    """The error for an unknown key: its new name if it was renamed, else the most similar one."""
    overlay = f"{BUILTIN}." if name.startswith(f"{BUILTIN}.") else ""
    plain = name.removeprefix(overlay)
    if (new := current_name(plain)) != plain:
        return ConfigError(f"{name} is now called {overlay}{new}", f"write {overlay}{new} instead of {name}")
    guess = did_you_mean(plain, setting_names()).replace("'", f"'{overlay}", 1)
    return ConfigError(f"unknown key {name}", f"{guess}known here: {', '.join(sorted(known))}")


def convert(value: Any, hint: Any, where: str) -> Any:
    """A value from a table as the type that a setting's annotation asks for.

    Args:
        value: as TOML gives it.
        hint: ``bool``, ``int``, ``float``, ``str``, ``Literal``, an optional one, a list, tuple or mapping of
            these, ``Any``, or an ``Annotated`` one with a :class:`~ctxedit.config.ranges.Range` or
            :class:`~ctxedit.config.ranges.Length`.
        where: the setting's dotted name.

    Raises:
        ConfigError: another type, or a value out of range.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _in_range(convert(value, args[0], where), args[1:], where)
    if origin is Literal:
        if value not in args:
            guess = did_you_mean(str(value), map(str, args))
            raise ConfigError(f"{where} = {value!r}", f"{guess}one of: {', '.join(map(str, args))}")
        return value
    if origin in (typing.Union, types.UnionType):
        return None if value is None else convert(value, args[0], where)
    if origin in (tuple, list) and isinstance(value, (list, tuple)):
        return origin(convert(v, args[0], f"{where}[{i}]") for i, v in enumerate(value))
    if origin in (dict, Mapping) and isinstance(value, Mapping):
        return {str(k): convert(v, args[1], f"{where}.{k}") for k, v in value.items()}
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        # Ranges refuse infinity and NaN where they are wrong.
        if abs(value) > LARGEST and value not in (math.inf, -math.inf):
            raise ConfigError(f"{where} is too large a number", f"must be below {LARGEST}")
        return float(value)
    if hint is int and type(value) is int and not -(2**63) <= value < 2**63:
        raise ConfigError(f"{where} = {value}", "must be from -2**63 to 2**63 - 1")
    if hint is Any or (isinstance(hint, type) and type(value) is hint):
        return value
    raise ConfigError(f"{where} = {value!r}", f"must be {_kind(hint)}")


def _in_range(value: Any, rules: Collection[Any], where: str) -> Any:
    for rule in rules:
        if value is None or not isinstance(rule, (Range, Length)) or rule.holds(value):
            continue
        raise ConfigError(f"{where} = {value!r}", f"must be {rule}")
    return value


def _kind(hint: Any) -> str:
    """A setting's type, as an error message names it."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _kind(args[0])
    if origin in (tuple, list):
        return "a list of numbers" if _kind(args[0]) in (_KINDS[int], _KINDS[float]) else "a list"
    if origin in (dict, Mapping):
        return "a table"
    return _KINDS.get(hint, f"a {getattr(hint, '__name__', hint)}")
