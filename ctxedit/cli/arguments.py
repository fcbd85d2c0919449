"""From options to settings: a table of what was said, and nothing of what was not."""

from __future__ import annotations

import difflib
import json
import os
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from ctxedit import config as configuration
from ctxedit.cli.options import SettingOptions
from ctxedit.cli.output import Screen
from ctxedit.config import Config
from ctxedit.errors import ConfigError, InputError
from ctxedit.model_names import expanded
from ctxedit.renames import variable_of
from ctxedit.tables import DEFAULT_PRESET, merge_into, nested, parse, preset_files, read_table

#: Variables that are no settings.
VARIABLES = ("CTXEDIT_DEBUG", "CTXEDIT_OFFLINE", "CTXEDIT_PRESET", "CTXEDIT_RUNS")
#: Which settings an option stands for.
_KEYS: dict[str, tuple[str, ...]] = {
    "model": ("model",),
    "seed": ("seed",),
    "device": ("device",),
    "dtype": ("dtype",),
    "offload": ("offload",),
    "low_memory": ("low_memory",),
    "lora": ("lora",),
    "embedding": ("embedding",),
    "captioner": ("captioner",),
    "caption_by": ("caption_by",),
    "clip_model": ("clip_model",),
    "frames": ("clip.frames",),
    "start": ("clip.start",),
    "stride": ("clip.stride",),
    "size": ("clip.size",),
    "adapter": ("adapter.enabled",),
    "control": ("control.map",),
    "tune_steps": ("tune.steps",),
    "steps": ("edit.steps", "invert.steps"),
    "guidance": ("edit.guidance",),
    "round_trip": ("round_trip",),
    "negative_prompt": ("edit.negative_prompt",),
    "upscale": ("upscale.scale",),
    "upscaler": ("upscale.model",),
}


def table(base: SettingOptions, *groups: Any) -> dict[str, Any]:
    """The nested table of the options that were given; ``--set`` comes after named options.

    Raises:
        ConfigError: a ``--set`` that is no KEY=VALUE.
    """
    out: dict[str, Any] = {}
    for group in (base, *groups):
        for option in fields(group):
            value = getattr(group, option.name)
            if value is not None and value != []:
                if isinstance(value, Path):  # a setting outlives the folder that it was said in
                    value = str(expanded(value).absolute())
                for key in _KEYS.get(option.name, ()):
                    merge_into(out, nested(key, value))
                if option.name == "control":
                    merge_into(out, {"control": {"kind": "video"}})
                if option.name == "upscaler" and "scale" not in out.get("upscale", {}):
                    merge_into(out, {"upscale": {"scale": 4}})
    for text in base.set or []:
        merge_into(out, assignment(text))
    return out


def assignment(text: str) -> dict[str, Any]:
    """``KEY=VALUE`` as a nested table: a TOML value, or a bare word or path where it is none."""
    key, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not key:
        raise ConfigError(f"--set {text}", "use KEY=VALUE, e.g. --set fusion.blend=self")
    for written in (value, json.dumps(value)):
        try:
            return parse(f"{key} = {written}")
        except ValueError:
            continue
    raise ConfigError(
        f"--set {text}: {key!r} is not a key", "write it as in TOML: table.key, quotes around spaces"
    )


def settings(base: SettingOptions, screen: Screen, *groups: Any) -> Config:
    """Settings of a new run: flag, variable, --config, preset, default."""
    warn_of_variables(screen)
    flags = table(base, *groups)
    return configuration.load(base.preset or DEFAULT_PRESET, base.config, flags)


def fitted(config: Config, clip: Path, base: SettingOptions, screen: Screen, *groups: Any) -> Config:
    """Settings whose frames the clip has; numbers that a person gave stay, and may be refused."""
    from ctxedit.stages.prepare import fit_span

    tables = [read_table(base.config)] if base.config else []
    tables += [configuration.environment(os.environ), table(base, *groups)]
    given = {key for one in tables for key in one.get("clip", {})}
    span, note = fit_span(clip, config.clip, given)
    if note is not None:
        screen.say(note)
    return replace(config, clip=span)


def without_upscaling(config: Config) -> Config:
    """The settings of a command that judges images as the denoiser gives them."""
    return replace(config, upscale=configuration.UpscaleConfig())


def with_round_trip(config: Config) -> Config:
    """The settings of a command that says how well the clip comes back, unless they say otherwise."""
    return replace(config, round_trip="estimate") if config.round_trip == "auto" else config


def for_run(base: SettingOptions, screen: Screen, *groups: Any) -> dict[str, Any]:
    """What is laid over a run's own settings: flags over variables over --config; presets are not read again.

    Raises:
        ConfigError: ``--preset`` was given.
    """
    if base.preset is not None and "CTXEDIT_PRESET" not in os.environ:
        raise ConfigError(
            "--preset cannot change for a run", "tune again with it, or change settings with --set"
        )
    warn_of_variables(screen)
    out: dict[str, Any] = read_table(base.config) if base.config else {}
    merge_into(out, configuration.environment(os.environ))
    merge_into(out, table(base, *groups))
    return out


def warn_of_variables(screen: Screen) -> None:
    """Say which CTXEDIT_* variables mean nothing: a misspelt one would change nothing in silence."""
    known = {*VARIABLES, *map(variable_of, configuration.setting_names())}
    for name in sorted(os.environ):
        if name.startswith("CTXEDIT_") and name not in known:
            close = difflib.get_close_matches(name, sorted(known), 1)
            screen.warn(f"{name} is not a setting" + (f"; did you mean {close[0]}?" if close else ""))


def targets(arguments: list[str] | None, options: list[str] | None, output: Path | None = None) -> list[str]:
    """Target prompts, given as arguments or with ``--target``.

    Raises:
        ConfigError: none, or several with an ``output`` that names one file.
        InputError: an empty one.
    """
    found = [*(arguments or []), *(options or [])]
    if not found:
        raise ConfigError(
            "no target prompt", 'describe the edited clip: ctxedit run CLIP "a panda walking on the beach"'
        )
    for text in found:
        not_empty(text, "target")
    if output is not None and len(found) > 1:
        raise ConfigError(
            "--output names one file, and there are several targets", "leave it out: see --runs"
        )
    return found


def not_empty(text: str | None, what: str) -> None:
    """Raise InputError for a text of nothing but white space; None was not given."""
    if text is not None and not text.strip():
        raise InputError(f"the {what} is empty", "describe what the clip shows")


def existing(path: Path) -> Path:
    """The path; raises InputError when there is nothing, or nothing that can be reached."""
    from ctxedit.media.sources import check_exists

    return check_exists(path)


def sources(base: SettingOptions) -> tuple[Path, ...]:
    """The files that settings are read from: no output may take their place."""
    config = [base.config] if base.config is not None else []
    return (*config, *preset_files(base.preset or DEFAULT_PRESET))
