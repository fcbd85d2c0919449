"""Settings of a run with changes laid over them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ctxedit.config import BUILTIN, Config, absolute, lean, merge, validated
from ctxedit.errors import ConfigError
from ctxedit.model_names import is_own
from ctxedit.runs import Run

#: What tuning depends on: an edit cannot change it.
_FIXED = ("model", "lora", "embedding", "dtype", "clip", "attention", "adapter", "control", "tune")


def rebased(run: Run, table: Mapping[str, Any]) -> Config:
    """A run's settings with a table laid over them; a ``builtin`` table acts as in a preset.

    Raises:
        ConfigError: unknown key or value, or a setting that tuning depends on was changed.
    """
    plain = {k: v for k, v in table.items() if k not in ("about", BUILTIN)}
    config = merge(run.config, plain)
    if is_own(run.config.model) and isinstance(table.get(BUILTIN), Mapping):
        config = merge(config, table[BUILTIN], f"{BUILTIN}.")
    lower = lean(config)  # a run's precision is that of its tuning
    config = absolute(dataclasses.replace(lower, dtype=config.dtype, tune=config.tune))
    for name in _FIXED:
        old, new = getattr(run.config, name), getattr(config, name)
        if old == new:
            continue
        if dataclasses.is_dataclass(old):
            key = next(
                f.name for f in dataclasses.fields(old) if getattr(old, f.name) != getattr(new, f.name)
            )
            name, old, new = f"{name}.{key}", getattr(old, key), getattr(new, key)
        raise ConfigError(
            f"{name} = {new!r}, but {run.folder} was tuned with {old!r}",
            "tune again with it, or leave it out; edits of a run may differ in edit, fusion, invert and seed",
        )
    return validated(config)
