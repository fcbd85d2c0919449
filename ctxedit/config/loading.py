"""Settings from every source: presets, files, variables and flags."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from ctxedit.config.checks import validated
from ctxedit.config.merging import merge
from ctxedit.config.settings import Config
from ctxedit.errors import ConfigError
from ctxedit.model_names import BUILTIN, absolute_path, absolute_scaled, is_own
from ctxedit.renames import RENAMED, variable_of
from ctxedit.tables import DEFAULT_PRESET, parse, preset_table, read_table


def load(
    preset: str = DEFAULT_PRESET,
    file: Path | None = None,
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Config:
    """Settings from all sources, in the order of precedence of :mod:`ctxedit.config`.

    Args:
        preset: a preset's name or a path to one.
        file: a config file.
        flags: nested table of command-line options.
        environ: the process's environment (tests give their own).

    Raises:
        ConfigError: unknown preset, key or value.
    """
    tables = [preset_table(preset)] + ([read_table(file)] if file else [])
    tables += [environment(os.environ if environ is None else environ), dict(flags or {})]
    model = next((t["model"] for t in reversed(tables) if "model" in t), BUILTIN)
    config = Config()
    for table in tables:
        table = {key: value for key, value in table.items() if key != "about"}
        overlay = table.pop(BUILTIN, {})
        config = merge(config, table)
        if not isinstance(overlay, Mapping):
            raise ConfigError(f"{BUILTIN} is a table, not {overlay!r}")
        overlaid = merge(config, overlay, f"{BUILTIN}.")  # a wrong key is an error for every model
        config = overlaid if isinstance(model, str) and is_own(model) else config
    return validated(absolute(lean(config)))


def lean(config: Config) -> Config:
    """The settings with everything that ``low_memory`` implies."""
    if not config.low_memory:
        return config
    dtype = "half" if config.dtype == "auto" else config.dtype
    tune = replace(config.tune, gradient_checkpointing=True)
    return replace(config, offload=True, dtype=dtype, tune=tune)


def absolute(config: Config) -> Config:
    """The settings with relative paths of models made absolute."""
    control = replace(config.control, model=absolute_path(config.control.model))
    upscale = replace(config.upscale, model=absolute_path(config.upscale.model))
    model, captioner, clip = (
        absolute_path(name) for name in (config.model, config.captioner, config.clip_model)
    )
    lora = tuple(map(absolute_scaled, config.lora))
    embedding = tuple(map(absolute_path, config.embedding))
    config = replace(config, lora=lora, embedding=embedding, upscale=upscale)
    return replace(config, model=model, captioner=captioner, clip_model=clip, control=control)


def environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """Environment variables such as ``CTXEDIT_EDIT_GUIDANCE=5`` as a nested table of settings.

    Variables that are not settings (``CTXEDIT_DEBUG``, …) are ignored; old names of settings are refused.
    """
    for old, new in RENAMED.items():
        if (name := variable_of(old)) in environ:
            raise ConfigError(f"{name} is now called {variable_of(new)}", f"set {variable_of(new)} instead")
    out: dict[str, Any] = {}
    base = Config()
    for top in fields(Config):
        value = getattr(base, top.name)
        if not dataclasses.is_dataclass(value):
            _from_text(environ, f"CTXEDIT_{top.name.upper()}", value, out, top.name)
            continue
        inner: dict[str, Any] = {}
        for sub in fields(value):
            name = f"CTXEDIT_{top.name.upper()}_{sub.name.upper()}"
            _from_text(environ, name, getattr(value, sub.name), inner, sub.name)
        if inner:
            out[top.name] = inner
    return out


def _from_text(environ: Mapping[str, str], name: str, old: Any, out: dict[str, Any], key: str) -> None:
    if name not in environ:
        return
    text = environ[name]
    if isinstance(old, str):
        out[key] = text
        return
    try:
        out[key] = parse(f"v = {text}")["v"]
    except ValueError as error:
        raise ConfigError(f"{name}={text!r} is not a value", "write it as in a TOML file") from error
