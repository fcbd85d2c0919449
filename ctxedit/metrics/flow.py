"""Warp error: does the edit move as the source does?

Optical flow of the source says where each pixel goes; the edit's frame, carried along it, should be the
edit's next frame (Lai et al. 2018, "Learning blind video temporal consistency", section 4.2). Pixels that are
covered or uncovered have no counterpart and do not count: flow there and back again does not return
(Sundaram et al. 2010, section 4; Ruder et al. 2016, eq. 5).
"""

from __future__ import annotations

from typing import Any, cast

import cv2
import numpy as np
from numpy.typing import NDArray

#: Of the forward-backward check: |f + b|² may reach 0.01 (|f|² + |b|²) + 0.5 square pixels.
_RELATIVE, _ABSOLUTE = 0.01, 0.5
#: DIS matches patches of 8 pixels over a pyramid: smaller pictures are enlarged first.
_LEAST = 128


def optical_flow(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Where each pixel of ``first`` is in ``second``: (H, W, 2) as (dx, dy) pixels, by dense inverse search.

    Args:
        first, second: RGB uint8 (H, W, 3).
    """
    height, width = first.shape[:2]
    scale = max(1.0, _LEAST / min(height, width))
    size = (round(width * scale), round(height * scale))
    grey: list[Any] = [cv2.cvtColor(np.ascontiguousarray(x), cv2.COLOR_RGB2GRAY) for x in (first, second)]
    if scale > 1:
        grey = [cv2.resize(x, size, interpolation=cv2.INTER_CUBIC) for x in grey]
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    search.setFinestScale(0)
    flow: Any = search.calc(grey[0], grey[1], cast(Any, None))  # OpenCV makes the array
    if scale > 1:
        flow = cv2.resize(flow, (width, height), interpolation=cv2.INTER_LINEAR)
        flow = flow * np.array([width / size[0], height / size[1]], np.float32)
    return np.asarray(flow, np.float32)


def warp(image: NDArray[np.float32], flow: NDArray[np.float32]) -> NDArray[np.float32]:
    """The picture that has at x what ``image`` (H, W) or (H, W, C) has at x + flow(x); bilinear."""
    height, width = flow.shape[:2]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    moved = cv2.remap(
        image, x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return np.asarray(moved, np.float32)


def visible(there: NDArray[np.float32], back: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which pixels (H, W) have a counterpart: inside the other frame, and back from it to where they were.

    Args:
        there: flow (H, W, 2) of these pixels to the other frame.
        back: flow of the other frame to this one.
    """
    height, width = there.shape[:2]
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    at_x, at_y = x + there[..., 0], y + there[..., 1]
    inside = (at_x >= 0) & (at_x <= width - 1) & (at_y >= 0) & (at_y <= height - 1)
    returned = warp(back, there)
    gap = ((there + returned) ** 2).sum(-1)
    size = (there**2).sum(-1) + (returned**2).sum(-1)
    return np.asarray(inside & (gap <= _RELATIVE * size + _ABSOLUTE))


def warp_error(source: NDArray[np.uint8], edit: NDArray[np.uint8]) -> float | None:
    """Mean squared error of the edit's frames, carried along the source's flow, against the next ones.

    Args:
        source, edit: RGB uint8 (F, H, W, 3) of one shape.

    Returns:
        At least 0, with pixels in [0, 1]; None for one frame, or where no pixel has a counterpart.
    """
    if source.shape != edit.shape or source.ndim != 4 or source.shape[-1] != 3:
        raise ValueError(f"want two clips (F, H, W, 3), got {source.shape}, {edit.shape}")
    total, count = 0.0, 0
    for t in range(len(source) - 1):
        # The flow of the next frame's pixels back to this one's: each of them is looked up, none is missed.
        back, there = optical_flow(source[t + 1], source[t]), optical_flow(source[t], source[t + 1])
        seen = visible(back, there)
        carried = warp(edit[t].astype(np.float32) / 255, back)
        wrong = (carried - edit[t + 1].astype(np.float32) / 255) ** 2
        total, count = total + float(wrong[seen].sum(dtype=np.float64)), count + 3 * int(seen.sum())
    return total / count if count else None
