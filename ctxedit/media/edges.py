"""Edges of pictures, as ControlNets that were trained on Canny edges want them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ctxedit.errors import ConfigError


def canny(frames: NDArray[np.uint8], low: int = 100, high: int = 200) -> NDArray[np.uint8]:
    """Canny edges (Canny 1986), white on black, the same in all three channels.

    Args:
        frames: RGB uint8 (F, H, W, 3).
        low, high: thresholds on the Sobel gradient's magnitude (L1 norm, OpenCV's scale): an edge begins
            above ``high`` and goes on above ``low``.

    Returns:
        uint8 (F, H, W, 3) in {0, 255}.

    Raises:
        ConfigError: OpenCV is missing or broken.
    """
    try:
        import cv2
    except ImportError as error:
        raise ConfigError(
            f"Canny edges need OpenCV: {error}", "pip install opencv-python-headless"
        ) from error
    edges = [cv2.Canny(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), low, high) for frame in frames]
    return np.stack(edges)[..., None].repeat(3, -1).astype(np.uint8)
