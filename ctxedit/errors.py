"""One small tree of errors. Each carries the exit code of the process and, where there is one, a hint.

Exit codes: 1 unexpected, 2 usage or configuration, 3 input, 4 weights, 5 memory or device,
6 output exists or cannot be written, 7 numerics, 130 interrupted.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CtxeditError(Exception):
    """Root of every error that ctxedit raises on purpose.

    Args:
        message: one line, said to the person after ``error:``.
        hint: one line, what to do about it, said after ``hint:``.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigError(CtxeditError):
    """A flag, a preset, a key or a value that does not fit."""

    exit_code = 2


class InputError(CtxeditError):
    """A clip, an image, a mask or a prompt that cannot be used."""

    exit_code = 3


class WeightsError(CtxeditError):
    """A checkpoint that is missing, refused or broken."""

    exit_code = 4


class ResourceError(CtxeditError):
    """Not enough memory, or no such device."""

    exit_code = 5


class OutputError(CtxeditError):
    """An output that exists already, or a place that cannot be written."""

    exit_code = 6


class NumericsError(CtxeditError):
    """A NaN or infinity where a number was due."""

    exit_code = 7


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is most like ``name``, ignoring case; None if none is like it."""
    by_lower = {one.lower(): one for one in known}
    near = difflib.get_close_matches(name.lower(), by_lower, 1)
    return by_lower[near[0]] if near else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The beginning of a hint: ``"did you mean 'run'? "``, or nothing where no known name is like it."""
    found = nearest(name, known)
    return f"did you mean {found!r}? " if found else ""


def counted(count: int, what: str) -> str:
    """A number with its noun, in the singular or the plural: ``1 frame``, ``8 frames``."""
    return f"{count} {what}{'' if count == 1 else 's'}"
