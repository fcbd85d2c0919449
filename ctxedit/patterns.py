"""Which frames a frame attends to: a registry of patterns, each a function of the settings and the length.

A new pattern is one decorated function. Packages may add some through the entry-point group
``ctxedit.patterns``; its entries are imported when a pattern is first looked for, and register themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Protocol

from ctxedit import plugins
from ctxedit.errors import ConfigError

#: The entry-point group of patterns that other packages add.
PLUGINS = "ctxedit.patterns"

#: For each frame of a clip the distinct frames that it attends to.
Attended = tuple[tuple[int, ...], ...]


class Settings(Protocol):
    """What a pattern reads of the settings' ``attention`` table."""

    @property
    def frames(self) -> str:
        """The pattern's name."""

    @property
    def window(self) -> int:
        """How many frames at most, for patterns that look back."""

    @property
    def key_frame(self) -> int:
        """Index of the key frame; negative is the middle one."""


Pattern = Callable[[Settings, int], Attended]

_PATTERNS: dict[str, Pattern] = {}


def pattern(name: str) -> Callable[[Pattern], Pattern]:
    """Decorator: the setting ``attention.frames = name`` uses this function."""

    def add(function: Pattern) -> Pattern:
        _PATTERNS[name] = function
        return function

    return add


def pattern_names() -> list[str]:
    """All patterns there are: ctxedit's own first, then those that were registered later."""
    _import_plugins()
    return list(_PATTERNS)


def attended_frames(config: Settings, count: int) -> Attended:
    """For each of ``count`` frames the distinct frames that it attends to.

    Raises:
        ConfigError: an unknown pattern, or one that does not fit a clip of this length.
    """
    if config.frames not in pattern_names():
        raise ConfigError(
            f"attention.frames = {config.frames!r} is not a pattern", f"use one of: {', '.join(_PATTERNS)}"
        )
    return _PATTERNS[config.frames](config, count)


@pattern("causal")
def _causal(config: Settings, count: int) -> Attended:
    """The frame itself and the ``window − 1`` before it (ContextDiff)."""
    return tuple(tuple(range(max(0, i - config.window + 1), i + 1)) for i in range(count))


@pattern("sparse-causal")
def _sparse_causal(config: Settings, count: int) -> Attended:
    """The first and the previous frame (Tune-A-Video)."""
    return tuple(tuple(sorted({0, max(0, i - 1)})) for i in range(count))


@pattern("key-frame")
def _key_frame(config: Settings, count: int) -> Attended:
    """One frame for all (FateZero's middle frame, ControlVideo's first)."""
    key = (count - 1) // 2 if config.key_frame < 0 else config.key_frame
    if key >= count:
        raise ConfigError(f"attention.key_frame = {key}, but the clip has {count} frames")
    return ((key,),) * count


@pattern("none")
def _none(config: Settings, count: int) -> Attended:
    """The frame itself."""
    return tuple((i,) for i in range(count))


@lru_cache(maxsize=1)
def _import_plugins() -> None:
    for _ in plugins.load(PLUGINS, "attention", ConfigError):
        pass  # each registers itself
