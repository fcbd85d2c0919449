"""Giving the frames of a written video their own times."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate
from pathlib import Path

import av

#: Ticks a second of each container's clock; an MP4's is fine enough for any source's.
_TICKS = {".gif": 100, ".webm": 1000, ".mkv": 1000}
_FINE = 90_000
#: Players show a GIF's frame of one tick ten times as long.
_LEAST = {".gif": 2}


def retime(video: Path, durations: Sequence[Fraction]) -> None:
    """Set how long each frame of a video is shown; its packets are kept as they are.

    Args:
        video: a file without B-frames or sound, one packet a frame. It is replaced.
        durations: seconds for each frame, above 0.

    Raises:
        av.FFmpegError, OSError: it cannot be read or written.
    """
    suffix = video.suffix.lower()
    rate = _TICKS.get(suffix, _FINE)
    stamps = _stamps(durations, rate, _LEAST.get(suffix, 1))
    options = {}
    if suffix in (".mp4", ".mov"):
        options = {"video_track_timescale": str(rate)}
    elif suffix == ".gif":
        options = {"final_delay": str(stamps[-1] - stamps[-2]), "loop": "0"}
    timed = video.with_name(f"{video.stem}.timed{video.suffix}")
    try:
        with (
            av.open(str(video.absolute())) as source,
            av.open(str(timed.absolute()), "w", options=options) as target,
        ):
            target.metadata.update(source.metadata)
            stream = target.add_stream_from_template(source.streams.video[0])
            stream.time_base = Fraction(1, rate)
            packets = (packet for packet in source.demux(video=0) if packet.size)
            for packet, start, end in zip(packets, stamps, stamps[1:], strict=False):
                packet.stream = stream
                packet.time_base = Fraction(1, rate)
                packet.pts = packet.dts = start
                packet.duration = end - start
                target.mux(packet)
        timed.replace(video)
    finally:
        timed.unlink(missing_ok=True)


def _stamps(durations: Sequence[Fraction], rate: int, least: int) -> list[int]:
    """When each frame begins, and when the last one ends, in ticks; rounded without the errors adding up."""
    stamps = [0]
    for end in accumulate(durations):
        stamps.append(max(round(end * rate), stamps[-1] + least))
    return stamps
