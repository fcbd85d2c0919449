"""Ranges of settings, written as annotations: ``steps: Annotated[int, Range(1)]``."""

from __future__ import annotations

import math
from collections.abc import Sized
from dataclasses import dataclass


@dataclass(frozen=True)
class Range:
    """The range of a number, both ends included; infinity and NaN are never in it.

    Attributes:
        low, high: the ends.
        multiple: the number is a multiple of this; 0 for any number.
    """

    low: float = -math.inf
    high: float = math.inf
    multiple: int = 0

    def holds(self, value: float) -> bool:
        """Whether a number is in the range."""
        inside = math.isfinite(value) and self.low <= value <= self.high
        return inside and not (self.multiple and value % self.multiple)

    def __str__(self) -> str:
        ends = {
            (True, True): f"from {_number(self.low)} to {_number(self.high)}",
            (True, False): f"at least {_number(self.low)}",
            (False, True): f"at most {_number(self.high)}",
            (False, False): "finite",
        }[math.isfinite(self.low), math.isfinite(self.high)]
        return f"a multiple of {self.multiple}, {ends}" if self.multiple else ends


def _number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:g}"


@dataclass(frozen=True)
class Length:
    """How many entries a list may have, both ends included."""

    low: int
    high: int

    def holds(self, value: Sized) -> bool:
        """Whether a list has as many entries."""
        return self.low <= len(value) <= self.high

    def __str__(self) -> str:
        return f"a list of {self.low} to {self.high}"
