"""Values out of range, and settings that contradict each other."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

from ctxedit.config.settings import Config
from ctxedit.errors import ConfigError
from ctxedit.patterns import pattern_names

#: Whether a setting is in its range, its dotted name, and the range in words.
_Check = tuple[bool, str, str]


def validated(config: Config) -> Config:
    """The config itself, or ConfigError for a value out of range."""
    for part in (_clip, _attention, _adapter, _control, _tuning, _sampling, _fusion, _upscaling):
        for good, name, expected in part(config):
            if not good:
                value: Any = functools.reduce(getattr, name.split("."), config)
                shown = list(value) if isinstance(value, tuple) else value
                raise ConfigError(f"{name} = {shown}", f"it must be {expected}")
    if config.control.map and config.control.kind != "video":
        raise ConfigError(
            f"control.map is given, but control.kind is {config.control.kind!r}",
            'a map that you bring is of kind "video"',
        )
    if config.edit.start == "inversion" and config.edit.steps != config.invert.steps:
        raise ConfigError(
            f"edit.steps = {config.edit.steps} but invert.steps = {config.invert.steps}",
            "sampling from an inversion uses its noise levels: make them equal",
        )
    return config


def _clip(config: Config) -> Iterator[_Check]:
    clip, window = config.clip, config.window
    yield -(2**63) <= config.seed < 2**63, "seed", "from -2**63 to 2**63 - 1"
    end = clip.start + clip.frames * clip.stride
    yield end < 2**53, "clip.frames", "less, with this clip.stride and clip.start"
    yield clip.frames >= 0, "clip.frames", "0 (all of the clip) or more"
    yield clip.stride >= 1, "clip.stride", "at least 1"
    yield clip.start >= 0, "clip.start", "0 or more"
    yield clip.size >= 0, "clip.size", "0 (the model's) or pixels"
    yield window.overlap >= 0, "window.overlap", "0 or more"
    yield window.size > window.overlap, "window.size", "above window.overlap"


def _attention(config: Config) -> Iterator[_Check]:
    attention = config.attention
    yield attention.window >= 1, "attention.window", "at least 1"
    yield attention.min_channels >= 0, "attention.min_channels", "0 (all layers) or more"
    yield attention.temporal_conv_rank >= 0, "attention.temporal_conv_rank", "0 (none) or more"
    known = pattern_names()
    yield attention.frames in known, "attention.frames", f"one of {', '.join(known)}"


def _adapter(config: Config) -> Iterator[_Check]:
    adapter = config.adapter
    yield 1 <= adapter.heads <= 1024, "adapter.heads", "from 1 to 1024"
    # Rows and columns have sines and cosines each: a width is a multiple of 4.
    divides = 0 < adapter.width <= 65536 and adapter.width % math.lcm(max(1, adapter.heads), 4) == 0
    yield divides, "adapter.width", "a multiple of adapter.heads and of 4, at most 65536"
    yield 1 <= adapter.blocks <= 1024, "adapter.blocks", "from 1 to 1024"
    yield 1 <= adapter.patch <= 1024, "adapter.patch", "from 1 to 1024"
    yield adapter.window >= 1, "adapter.window", "at least 1"
    yield 0 <= adapter.bound < math.inf, "adapter.bound", "0 (free) or more"


def _control(config: Config) -> Iterator[_Check]:
    control = config.control
    yield 0 <= control.scale < math.inf, "control.scale", "0 or more"
    yield control.low >= 0, "control.low", "0 or more"
    yield control.low <= control.high, "control.high", "control.low or more"


def _tuning(config: Config) -> Iterator[_Check]:
    tune = config.tune
    yield tune.steps >= 0, "tune.steps", "0 or more"
    yield tune.frames >= 0, "tune.frames", "0 (all) or more"
    yield 0 < tune.lr < math.inf, "tune.lr", "above 0"
    yield 0 <= tune.adapter_lr < math.inf, "tune.adapter_lr", "0 (as tune.lr) or more"
    yield 0 <= tune.weight_decay < math.inf, "tune.weight_decay", "0 or more"
    yield tune.max_grad_norm >= 0, "tune.max_grad_norm", "0 (off) or more"
    yield tune.save_every >= 1, "tune.save_every", "at least 1"


def _sampling(config: Config) -> Iterator[_Check]:
    edit, invert = config.edit, config.invert
    yield 1 <= edit.steps <= 1000, "edit.steps", "1 to 1000"
    yield 1 <= invert.steps <= 1000, "invert.steps", "1 to 1000"
    refined = "invert.fixed_point_iterations"
    yield invert.fixed_point_iterations >= 0, refined, "0 or more"
    simple = invert.solver == "ddim" or invert.fixed_point_iterations == 0
    yield simple, refined, f"0 with invert.solver = {invert.solver}"
    yield 0 <= edit.guidance < math.inf, "edit.guidance", "0 or more"
    shares = edit.guidance_interval
    ordered = len(shares) == 2 and 0 <= shares[0] <= shares[1] <= 1
    yield ordered, "edit.guidance_interval", "two shares in order, e.g. [0.2, 0.8]"
    yield edit.cache_interval >= 1, "edit.cache_interval", "1 (off) or more"
    yield 0 <= edit.eta <= 1, "edit.eta", "0 to 1"
    deterministic = edit.solver == "ddim" or edit.eta == 0
    yield deterministic, "edit.eta", f"0 with edit.solver = {edit.solver}"
    yield 0 < edit.strength <= 1, "edit.strength", "above 0, up to 1"


def _fusion(config: Config) -> Iterator[_Check]:
    fusion = config.fusion
    yield 0 <= fusion.self_replace_steps <= 1, "fusion.self_replace_steps", "0 to 1"
    yield 0 <= fusion.cross_replace_steps <= 1, "fusion.cross_replace_steps", "0 to 1"
    yield 0 < fusion.mask_resolution <= 1, "fusion.mask_resolution", "above 0, up to 1"
    yield 0 < fusion.max_resolution <= 1, "fusion.max_resolution", "above 0, up to 1"
    yield 0 <= fusion.mask_threshold < 1, "fusion.mask_threshold", "0 to 1"
    finite = all(map(math.isfinite, fusion.word_weights.values()))
    yield finite, "fusion.word_weights", "finite weights"


def _upscaling(config: Config) -> Iterator[_Check]:
    upscale = config.upscale
    yield upscale.scale in (1, 4), "upscale.scale", "1 (none) or 4"
    yield 0 <= upscale.steps <= 1000, "upscale.steps", "0 (the model's default) to 1000"
    yield -1 <= upscale.noise_level < 1000, "upscale.noise_level", "-1 (the model's default) to 999"
    scale = upscale.guidance_scale
    yield 0 <= scale < math.inf, "upscale.guidance_scale", "0 (the model's default) or more"
