"""Convert command-line options to settings. Options that were not given change nothing."""

from __future__ import annotations

import difflib
import json
import os
import shlex
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from ctxedit import config as configuration
from ctxedit.cli.options import SettingOptions
from ctxedit.cli.output import Screen
from ctxedit.config import Config
from ctxedit.errors import ConfigError, InputError
from ctxedit.files import expanded
from ctxedit.renames import variable_of
from ctxedit.tables import DEFAULT_PRESET, merge_into, nested, parse, preset_files, read_table

#: CTXEDIT_* environment variables that are not settings.
VARIABLES = ("CTXEDIT_DEBUG", "CTXEDIT_OFFLINE", "CTXEDIT_PRESET", "CTXEDIT_RUNS")
#: Words that mean nothing on their own: as targets they are parts of an unquoted text.
_NO_TARGETS = frozenset(("a", "an", "the", "on", "in", "at", "of", "with", "and", "is", "to", "into"))
#: What an empty text should say.
_MEANT = {"target": "what the edited clip should show", "text": "what the image should show"}
#: The settings that each option sets.
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
    """The options that were given, as a nested table of settings; ``--set`` overrides named options.

    Raises:
        ConfigError: a ``--set`` that is not KEY=VALUE; an upscaler that would not be used.
    """
    out: dict[str, Any] = {}
    for group in (base, *groups):
        for option in fields(group):
            value = getattr(group, option.name)
            if value is not None and value != []:
                if isinstance(value, Path):  # runs may be resumed from another folder
                    value = str(expanded(value).absolute())
                for key in _KEYS.get(option.name, ()):
                    merge_into(out, nested(key, value))
                if option.name == "control":
                    merge_into(out, {"control": {"kind": "video"}})
                if option.name == "upscaler" and "scale" not in out.get("upscale", {}):
                    merge_into(out, {"upscale": {"scale": 4}})
    for text in base.set or []:
        merge_into(out, assignment(text))
    upscale = out.get("upscale", {})
    if upscale.get("scale") == 1 and "model" in upscale:
        raise ConfigError("an upscaler is named, and --upscale 1 leaves it out", "give only one of the two")
    return out


def assignment(text: str) -> dict[str, Any]:
    """``KEY=VALUE`` as a nested table. The value is TOML, or else taken as text."""
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
    """Settings of a new run, in order of precedence: flags, variables, --config, preset, defaults."""
    warn_of_variables(screen)
    flags = table(base, *groups)
    return configuration.load(base.preset or DEFAULT_PRESET, base.config, flags)


def fitted(config: Config, clip: Path, base: SettingOptions, screen: Screen, *groups: Any) -> Config:
    """Settings with no more frames than the clip has; a number given by the user is kept."""
    from ctxedit.stages.prepare import fit_span

    tables = [read_table(base.config)] if base.config else []
    tables += [configuration.environment(os.environ), table(base, *groups)]
    given = {key for one in tables for key in one.get("clip", {})}
    span, note = fit_span(clip, config.clip, given)
    if note is not None:
        screen.say(note)
    return replace(config, clip=span)


def without_upscaling(config: Config) -> Config:
    """The settings of a command that evaluates images as the denoiser generates them, without upscaling."""
    return replace(config, upscale=configuration.UpscaleConfig())


def with_round_trip(config: Config) -> Config:
    """Settings with ``round_trip = "auto"`` resolved for commands that report the round trip."""
    return replace(config, round_trip="estimate") if config.round_trip == "auto" else config


def for_run(base: SettingOptions, screen: Screen, *groups: Any) -> dict[str, Any]:
    """Settings that override a run's own: flags over variables over --config. Presets are not read again.

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
    """Warn of unknown CTXEDIT_* variables: a misspelt one would otherwise be ignored silently."""
    known = {*VARIABLES, *map(variable_of, configuration.setting_names())}
    for name in sorted(os.environ):
        if name.startswith("CTXEDIT_") and name not in known:
            close = difflib.get_close_matches(name, sorted(known), 1)
            screen.warn(f"{name} is not a setting" + (f"; did you mean {close[0]}?" if close else ""))


def targets(
    arguments: list[str] | None,
    options: list[str] | None,
    output: Path | None = None,
    clip: Path | None = None,
) -> list[str]:
    """Target prompts, given as arguments or with ``--target``.

    ``clip`` is the argument before them; without them it may be the text, and the clip is missing.

    Raises:
        ConfigError: none, or several with an ``output`` that names one file.
        InputError: an empty one.
    """
    found = [*(arguments or []), *(options or [])]
    if not found and clip is not None and " " in str(clip) and not os.path.lexists(clip):
        raise ConfigError("no clip", f"the clip comes first: ctxedit run CLIP {shlex.quote(str(clip))}")
    if not found:
        raise ConfigError(
            "no target prompt", 'describe the edited clip: ctxedit run CLIP "a panda walking on the beach"'
        )
    for text in found:
        not_empty(text, "target")
    if len(found) > 1 and any(text.lower() in _NO_TARGETS for text in found):
        raise ConfigError(
            f"{len(found)} target prompts, {', '.join(found)[:80]}: put each prompt in quotes",
            f'ctxedit run CLIP "{" ".join(found)}"',
        )
    found = list(dict.fromkeys(found))  # duplicate targets give one edit
    if output is not None and len(found) > 1:
        raise ConfigError(
            "--output names one file, but there are several targets", "leave it out: see --runs"
        )
    return found


def seed_of_choice(seed: int) -> int:
    """A seed as NumPy takes it, which chooses images and captions and knows no negative ones."""
    return seed % 2**64


def split_names(text: str) -> tuple[str, ...]:
    """The names in a list separated by commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def not_empty(text: str | None, what: str) -> None:
    """Raise InputError for a blank text; None means that it was not given."""
    if text is not None and not text.strip():
        raise InputError(f"the {what} is empty", f"describe {_MEANT.get(what, 'what the clip shows')}")


def existing(path: Path, texts: Sequence[str] = ()) -> Path:
    """The path itself; raises InputError if it does not exist or cannot be reached.

    ``texts`` are the other arguments: if one of them is a file, the order is wrong.
    """
    from ctxedit.media.sources import check_exists

    if not os.path.lexists(path) and (files := [text for text in texts if os.path.isfile(text)]):
        raise InputError(
            f"{path} does not exist",
            f"the clip comes first, then the text: {files[0]} {shlex.quote(str(path))}",
        )
    return check_exists(path)


def sources(base: SettingOptions) -> tuple[Path, ...]:
    """The files that settings are read from; outputs must not overwrite them."""
    config = [base.config] if base.config is not None else []
    return (*config, *preset_files(base.preset or DEFAULT_PRESET))
