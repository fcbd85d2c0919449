"""Windows: a clip too long for one pass of the network, as overlapping pieces of equal length."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """Frames ``start`` to ``stop`` (exclusive) of a clip; the first ``shared`` are in the window before."""

    start: int
    stop: int
    shared: int = 0

    @property
    def span(self) -> slice:
        """The window's frames, as an index into the clip's."""
        return slice(self.start, self.stop)

    @property
    def fresh(self) -> slice:
        """The frames that no earlier window has, as an index into the clip's."""
        return slice(self.start + self.shared, self.stop)

    @property
    def weights(self) -> tuple[float, ...]:
        """This window's share in each shared frame; the window before has the rest.

        They rise evenly from above 0 to below 1, so that no frame's result changes hands at once.
        """
        return tuple((i + 1) / (self.shared + 1) for i in range(self.shared))


def plan_windows(frames: int, size: int, overlap: int) -> tuple[Window, ...]:
    """As few windows as cover a clip, all of one length, spread evenly.

    Args:
        frames: of the clip, at least 1.
        size: the most frames in a window, above ``overlap``.
        overlap: the fewest frames that neighbouring windows share.

    Returns:
        One window of all frames where they fit. Otherwise a window of 25 frames' clip may be much shorter
        than a ``size`` of 24: two windows of 14 cost less than two of 24.
    """
    if frames <= size:
        return (Window(0, frames),)
    count = -(-(frames - overlap) // (size - overlap))
    length = -(-(frames + (count - 1) * overlap) // count)
    starts = [i * (frames - length) // (count - 1) for i in range(count)]
    stops = [0, *(start + length for start in starts)]
    return tuple(Window(a, a + length, max(0, before - a)) for a, before in zip(starts, stops, strict=False))
