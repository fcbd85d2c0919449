"""A grid of settings: every point of it is a method of its own."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ctxedit.config import Config
from ctxedit.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class Axis:
    """One setting and the values it takes; ``key`` as in ``--set``, e.g. ``edit.guidance``."""

    key: str
    values: tuple[Any, ...]


def parse(text: str) -> Axis:
    """``KEY=A,B,C`` with TOML values, or bare words.

    Raises:
        ConfigError: no key, no value, or one value twice.
    """
    key, equals, listed = (part.strip() for part in text.partition("="))
    if not (key and equals and listed):
        raise ConfigError(f"--sweep {text}", "it takes KEY=A,B,C, e.g. --sweep edit.guidance=3,5,7")
    try:
        values = tomllib.loads(f"values = [{listed}]")["values"]
    except tomllib.TOMLDecodeError:
        values = [word.strip() for word in listed.split(",") if word.strip()]
    if len(values) != len({repr(value) for value in values}):
        raise ConfigError(f"--sweep {text}: a value comes twice", "name each once")
    return Axis(key, tuple(values))


def points(config: Config, axes: Sequence[Axis]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every point of the grid for a method: what its label gets, and the nested table of its settings.

    An axis that means nothing to the method is left out of its grid: a length or rate of a tuning that it
    does not have, the adapter's or the control's settings where there is none. The last axis moves fastest,
    so what needs no new tuning should come last.
    """
    meant = [axis for axis in axes if _means_something(config, axis.key)]
    for values in itertools.product(*(axis.values for axis in meant)):
        table: dict[str, Any] = {}
        for axis, value in zip(meant, values, strict=True):
            *tables, name = axis.key.split(".")
            place = table
            for part in tables:
                place = place.setdefault(part, {})
            place[name] = value
        yield "".join(f" {axis.key}={_word(value)}" for axis, value in zip(meant, values, strict=True)), table


def _means_something(config: Config, key: str) -> bool:
    has = {
        "tune": config.tune.steps > 0,
        "adapter": config.adapter.enabled or key == "adapter.enabled",
        "control": config.control.kind != "none",
        "invert": config.edit.start != "noise",
    }
    return has.get(key.split(".")[0], True) and (key != "tune.adapter_lr" or config.adapter.enabled)


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
