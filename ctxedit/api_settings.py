"""The settings that every verb of the Python API takes."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ctxedit.config import Config, environment, load
from ctxedit.editing.reporter import Reporter
from ctxedit.errors import InputError
from ctxedit.media.sources import check_exists
from ctxedit.runs import Run
from ctxedit.stages.prepare import fit_span
from ctxedit.tables import DEFAULT_PRESET

PathLike = str | Path
Settings = Config | Mapping[str, Any] | None


def settings(preset: str = DEFAULT_PRESET, config: Settings = None) -> Config:
    """All settings: a preset overridden by ``config``.

    Args:
        preset: a preset's name, or the path of a TOML file.
        config: a nested table, or a :class:`Config` that is taken as it is.

    Raises:
        ConfigError: unknown preset, key or value.
    """
    return config if isinstance(config, Config) else load(preset, flags=config)


def opened_run(run: Run | PathLike) -> Run:
    """The run itself, or the run in a folder; raises InputError for anything else."""
    if isinstance(run, Run):
        return run
    if not isinstance(run, (str, Path)):
        raise InputError(f"the run is {type(run).__name__}", "give what `tune` returned, or a run folder")
    return Run(Path(run))


def fitted(clip: Path, chosen: Config, given: Settings, teller: Reporter) -> Config:
    """Settings with as many frames as the clip has, unless the caller gave their number."""
    if isinstance(given, Config):
        return chosen
    named = {**(given or {}).get("clip", {}), **environment(os.environ).get("clip", {})}
    span, note = fit_span(check_exists(clip), chosen.clip, named)
    if note is not None:
        teller.say(note)
    return dataclasses.replace(chosen, clip=span)
