"""Augmentation of drawn frames for the judges, which score decoded images."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def degrade(image: Tensor, rng: np.random.Generator, noise: float) -> Tensor:
    """Blur half of the images by a random amount, and add noise, as a decoder does.

    Args:
        image: (3, H, W) in [-1, 1].
        rng: of all random numbers.
        noise: highest standard deviation of the noise.
    """
    if rng.random() < 0.5:
        blurred = F.avg_pool2d(F.pad(image[None], (1, 1, 1, 1), mode="replicate"), 3, 1)[0]
        image = torch.lerp(image, blurred, float(rng.random()))
    sample = torch.from_numpy(rng.standard_normal(image.shape, np.float32))
    return image + noise * float(rng.random()) * sample
