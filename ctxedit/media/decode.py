"""Frames out of a video file, decoded by their place in time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.filter
import numpy as np
from PIL import Image

from ctxedit.errors import InputError
from ctxedit.media.container import DAMAGED, opened
from ctxedit.media.hdr import to_bt709
from ctxedit.media.stills import flatten
from ctxedit.media.timeline import Timeline


def rgb_frames(
    path: Path, timeline: Timeline, indices: Sequence[int], background: int = 255
) -> Iterator[np.ndarray]:
    """The frames of these rising indices as (H, W, 3) uint8 RGB: upright, in square pixels.

    Raises:
        InputError: a frame cannot be decoded.
    """
    places = range(timeline.count) if timeline.pts is None else timeline.pts
    frames: Iterator[tuple[int, Any]] = iter(())
    last: int | None = None
    for index in indices:
        want = int(places[index])
        # Deinterlacing looks at the frame before as well, wherever decoding begins.
        starts, keyframe = _starts(timeline, int(places[max(0, index - timeline.interlaced)]))
        frame = None
        # Going on decoding is right unless a whole group of pictures can be skipped.
        if last is not None and (keyframe is None or keyframe <= last):
            frame = _find(frames, want)
        while frame is None and starts:
            frames = _decode(path, starts.pop(0), keyframe)
            if timeline.interlaced:
                frames = _deinterlaced(frames)
            frame = _find(frames, want)
        if frame is None:
            raise InputError(f"frame {index} of {path} cannot be decoded", DAMAGED)
        last = want
        yield _finish(frame, timeline, background)


def _starts(timeline: Timeline, want: int) -> tuple[list[int | None], int | None]:
    """Stamps to seek so as to reach `want`, best first (None: the beginning), and the key frame before it.

    Containers seek by the one stamp or by the other, and those without an index (MPEG-TS) may land too
    late: then one begins earlier.
    """
    if timeline.pts is None:
        return [None], None
    place = int(np.searchsorted(timeline.keyframes, want, side="right")) - 1
    starts: list[int | None] = [int(timeline.keyframes[place]), int(timeline.keyframes_dts[place])]
    starts += [int(timeline.keyframes_dts[place - back]) for back in (1, 3) if place >= back]
    return [*starts, None], int(timeline.keyframes[place])


def _find(frames: Iterator[tuple[int, Any]], want: int) -> Any:
    """The frame at index `want`, or None if the frames have passed it."""
    for place, frame in frames:
        if place >= want:
            return frame if place == want else None
    return None


def _decode(path: Path, start: int | None, keyframe: int | None) -> Iterator[tuple[int, Any]]:
    """Decode from the stamp `start` on (None: from the beginning): place and frame.

    The place is the time stamp; without a `keyframe`, where stamps cannot be relied on, the frame's number.
    Nothing comes when the seek landed after the key frame: pictures that lean on it would be wrong without
    a sign.
    """
    with opened(path) as (container, stream, decoder):
        if start is not None:
            container.seek(start, stream=stream, backward=True, any_frame=False)
        count = 0
        landed = start is None
        for packet in container.demux(stream):
            if not landed and not packet.is_keyframe:
                continue
            if not landed and (packet.pts is None or keyframe is None or packet.pts > keyframe):
                return
            landed = True
            for frame in decoder.decode(packet):
                if keyframe is None:
                    yield count, frame
                elif frame.pts is not None:
                    yield frame.pts, frame
                count += 1


def _deinterlaced(frames: Iterator[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
    """Progressive frames at the same places, by FFmpeg's bwdif, which gives one for each and lags by one.

    Frames that are not marked as interlaced pass as they are.
    """
    places: deque[int] = deque()
    graph: Any = None
    layout: tuple[int, int, str] | None = None
    for place, frame in frames:
        now = (frame.width, frame.height, frame.format.name)
        if now != layout:
            if graph is not None:
                graph.push(None)
                yield from _pulled(graph, places)
            graph, layout = _bwdif(frame), now
        places.append(place)
        graph.push(frame)
        yield from _pulled(graph, places)
    if graph is not None:
        graph.push(None)
        yield from _pulled(graph, places)


def _bwdif(frame: Any) -> Any:
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=frame.width,
        height=frame.height,
        format=frame.format,
        time_base=frame.time_base or Fraction(1, 1000),
    )
    graph.link_nodes(
        source, graph.add("bwdif", "mode=send_frame:parity=auto:deint=interlaced"), graph.add("buffersink")
    ).configure()
    return graph


def _pulled(graph: Any, places: deque[int]) -> Iterator[tuple[int, Any]]:
    while places:
        try:
            frame = graph.pull()
        except (BlockingIOError, EOFError):
            return
        yield places.popleft(), frame


def _finish(frame: Any, timeline: Timeline, background: int) -> np.ndarray:
    # swscale takes matrix and range from the frame (BT.601 where unsaid) and rounds 10 bits to 8. Its quick
    # way for 4:2:0 is about one level dark; it is the one that decord has, and so both give the same frames.
    if timeline.has_alpha:
        image = flatten(frame.to_ndarray(format="rgba"), background)
    elif timeline.colours is not None:
        image = to_bt709(frame.to_ndarray(format="rgb48le"), timeline.transfer, timeline.primaries)
    else:
        image = frame.to_ndarray(format="rgb24")
    if (image.shape[1], image.shape[0]) != timeline.square_size:
        image = np.asarray(Image.fromarray(image).resize(timeline.square_size, Image.Resampling.LANCZOS))
    return np.ascontiguousarray(timeline.orientation.apply(image))
