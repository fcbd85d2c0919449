"""A grid of settings: every point is a separate method."""

from __future__ import annotations

import copy
import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ctxedit.config import Config, merge
from ctxedit.errors import ConfigError
from ctxedit.tables import merge_into, nested

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class Axis:
    """One setting and the values it takes; ``key`` as in ``--set``, e.g. ``edit.guidance``."""

    key: str
    values: tuple[Any, ...]


def parse(texts: Sequence[str]) -> list[Axis]:
    """Each text is ``KEY=A,B,C`` with TOML values, or bare words.

    Raises:
        ConfigError: no key, no value, a value or a key twice, one key inside another.
    """
    axes = [_axis(text) for text in texts]
    for one, other in itertools.combinations(axes, 2):
        if f"{one.key}.".startswith(f"{other.key}.") or f"{other.key}.".startswith(f"{one.key}."):
            raise ConfigError(f"--sweep: {one.key} and {other.key} overlap", "name each setting once")
    return axes


def _axis(text: str) -> Axis:
    key, equals, listed = (part.strip() for part in text.partition("="))
    try:
        values = tomllib.loads(f"values = [{listed}]")["values"]
    except tomllib.TOMLDecodeError:
        values = [word.strip() for word in listed.split(",") if word.strip()]
    if not (key and equals and values):
        raise ConfigError(f"--sweep {text}", "it takes KEY=A,B,C, e.g. --sweep edit.guidance=3,5,7")
    if len(values) != len({repr(value) for value in values}):
        raise ConfigError(f"--sweep {text}: a value is repeated", "name each once")
    return Axis(key, tuple(values))


def points(config: Config, axes: Sequence[Axis]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every point of the grid for a method: the suffix of its label, and the nested table of its settings.

    An axis without effect at a point is left out there: tuning steps or rates if the method does not tune,
    settings of an adapter or control that it does not have. The last axis varies fastest, so settings that
    need no new tuning should come last.

    Raises:
        ConfigError: a setting or a value that does not exist.
    """
    if not axes:
        yield "", {}
        return
    axis, rest = axes[0], axes[1:]
    tables = [nested(axis.key, value) for value in axis.values]
    changed = [merge(config, table) for table in tables]  # rejects unknown settings, left out or not
    if not _means_something(config, axis.key):
        yield from points(config, rest)
        return
    for value, table, here in zip(axis.values, tables, changed, strict=True):
        for suffix, more in points(here, rest):
            whole = copy.deepcopy(table)
            merge_into(whole, more)
            yield f" {axis.key}={_word(value)}{suffix}", whole


def _means_something(config: Config, key: str) -> bool:
    has = {
        "tune": config.tune.steps > 0,
        "adapter": config.adapter.enabled or key == "adapter.enabled",
        "control": config.control.kind != "none" or key == "control.kind",
        "invert": config.edit.start != "noise",
    }
    return has.get(key.split(".")[0], True) and (key != "tune.adapter_lr" or config.adapter.enabled)


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
