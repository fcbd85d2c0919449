"""When frames are shown: frame rates, uneven timing, and how long a choice of frames lasts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import numpy as np

FOLDER_FPS = Fraction(8)
"""Frame rate given to folders and single images, which have none of their own."""


class Clock(Protocol):
    """What is known of when the frames of a file are shown; see :class:`ctxedit.media.timeline.Timeline`."""

    @property
    def pts(self) -> np.ndarray | None: ...
    @property
    def count(self) -> int: ...
    @property
    def end(self) -> int | None: ...
    @property
    def time_base(self) -> Fraction: ...
    @property
    def start_time(self) -> Fraction: ...
    @property
    def declared_rates(self) -> tuple[Fraction | None, ...]: ...
    @property
    def literal(self) -> bool:
        """Whether the stamps are the truth, as in a GIF, rather than a frame rate rounded to a clock."""
        ...


@dataclass(frozen=True)
class Span:
    """When chosen frames are shown.

    Attributes:
        start: seconds from the beginning of the file to the first frame, as FFmpeg's ``-ss`` counts.
        seconds: until the frame after the last one would be shown.
        fps: frames a second; the average where `durations` is given.
        durations: seconds that each frame stays, where they differ; None where they do not.
    """

    start: float
    seconds: float
    fps: Fraction
    durations: tuple[Fraction, ...] | None = None


def varies(clock: Clock) -> bool:
    """Whether frames are unevenly spaced in time, beyond a container's rounding (Matroska: 1 ms)."""
    if clock.pts is None or clock.count < 2:
        return False
    steps = np.diff(clock.pts)
    if clock.literal and clock.end is not None:
        steps = np.append(steps, clock.end - clock.pts[-1])
    return len(steps) > 1 and not _even(steps, clock)


def frame_rate(clock: Clock) -> Fraction:
    """The exact rate. Equal steps of a fine clock give it exactly; a coarse clock (Matroska's milliseconds)
    only bounds it, and the container's declared rate that agrees with the measured one is taken. Uneven
    steps have an average only."""
    declared = [rate for rate in clock.declared_rates if rate and 0 < rate <= 1000]
    if clock.pts is None or (clock.count < 2 and not clock.literal):
        return declared[0] if declared else FOLDER_FPS
    uneven = varies(clock)
    steps = np.diff(clock.pts)
    if len(steps) and not uneven and _exact(steps, clock):
        return 1 / (int(steps[0]) * clock.time_base)
    length = _length(clock)
    if length and (clock.literal or uneven):
        return clock.count / length
    span = int(clock.pts[-1] - clock.pts[0]) * clock.time_base
    return _fitting(clock, (clock.count - 1) / span, span) if span else FOLDER_FPS


def duration(clock: Clock, fps: Fraction) -> float:
    """Seconds from the first frame's start to the last one's end."""
    if clock.pts is None:
        return float(clock.count / fps)
    span = int(clock.pts[-1] - clock.pts[0]) * clock.time_base
    return float(_length(clock) or span + 1 / fps)


def span(clock: Clock, indices: Sequence[int], stride: int, fps: Fraction) -> Span:
    """When the frames of rising `indices`, `stride` apart, are shown.

    Args:
        fps: the file's rate, used wherever its frames are evenly spaced.
    """
    length = len(indices) * stride
    if clock.pts is None:
        return Span(float(indices[0] / fps), float(length / fps), fps / stride)
    start = max(0.0, float(int(clock.pts[indices[0]]) * clock.time_base - clock.start_time))
    if not varies(clock):
        return Span(start, float(length / fps), fps / stride)
    following = indices[0] + length
    end = int(clock.pts[following]) if following < clock.count else _end(clock)
    steps = np.diff([*(int(clock.pts[index]) for index in indices), end])
    seconds = int(steps.sum()) * clock.time_base
    if not _even(steps, clock):
        kept = tuple(int(step) * clock.time_base for step in steps)
        return Span(start, float(seconds), len(indices) / seconds, kept)
    measured = len(indices) / seconds
    rate = measured if _exact(steps, clock) else _fitting(clock, measured, seconds)
    return Span(start, float(seconds), rate)


def _even(steps: np.ndarray, clock: Clock) -> bool:
    """Whether steps of the clock are one and the same, but for the clock's rounding."""
    tolerance = max(1.0, 0.0015 / float(clock.time_base))
    return bool(np.abs(steps - np.median(steps)).max() <= tolerance)


def _exact(steps: np.ndarray, clock: Clock) -> bool:
    fine = clock.literal or clock.time_base <= Fraction(1, 8000)
    return bool(fine and steps.min() == steps.max())


def _fitting(clock: Clock, measured: Fraction, seconds: Fraction) -> Fraction:
    """The declared rate that agrees with what was measured over `seconds`, else the latter."""
    slack = max(2 * clock.time_base / seconds, Fraction(1, 2000))
    for rate in clock.declared_rates:
        if rate and 0 < rate <= 1000 and abs(rate / measured - 1) <= slack:
            return rate
    return measured.limit_denominator(1001)


def _end(clock: Clock) -> int:
    """The timestamp at which the last frame ends; if the container does not give it, a usual step later."""
    assert clock.pts is not None
    if clock.end is not None and clock.end > clock.pts[-1]:
        return clock.end
    return int(clock.pts[-1]) + max(1, int(np.median(np.diff(clock.pts))))


def _length(clock: Clock) -> Fraction | None:
    """Seconds from the first frame's start to the last one's end, where the container says the latter."""
    if clock.pts is None or clock.end is None or clock.end <= clock.pts[-1]:
        return None
    return (clock.end - int(clock.pts[0])) * clock.time_base
