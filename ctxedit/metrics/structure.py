"""Structure distance: was the layout kept, regardless of appearance?

Self-similarity of deep patch descriptors tells where things are more than what they look like (Shechtman and
Irani 2007; Tumanyan et al. 2022, "Splicing ViT features", section 3.2). The distance of two pictures is the
mean squared difference of their self-similarity matrices, as benchmarks of editing report it. The
descriptors are, as there, the keys of the last self-attention; but of the CLIP in use and not of DINO, so
that no further checkpoint is needed: figures of different networks do not compare. Appearance still counts:
another colour or style alone gives a distance above 0, but less than the same object in another place.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from ctxedit.errors import NumericsError
from ctxedit.models.clip import ClipScorer


def self_similarity(descriptors: Tensor) -> Tensor:
    """Cosines (F, M, M) between the patches of each frame, from descriptors (F, M, D)."""
    if descriptors.ndim != 3 or not descriptors.numel():
        raise ValueError(f"want descriptors (F, M, D), got {tuple(descriptors.shape)}")
    if not bool(descriptors.isfinite().all()):
        raise NumericsError("NaN or infinity in a patch descriptor")
    unit = normalize(descriptors.double(), dim=-1)
    return unit @ unit.transpose(1, 2)


def structure_distance(source: Tensor, edit: Tensor) -> float:
    """Mean squared difference of self-similarities, over frames and pairs of patches; 0 (same layout) to 4.

    Args:
        source, edit: patch descriptors (F, M, D) of the same frames.
    """
    if source.shape[:2] != edit.shape[:2]:
        raise ValueError(f"want as many frames and patches, got {source.shape[:2]}, {edit.shape[:2]}")
    return float((self_similarity(source) - self_similarity(edit)).square().mean())


def patch_descriptors(scorer: ClipScorer, frames: NDArray[np.uint8]) -> Tensor:
    """RGB uint8 (F, H, W, 3) to the keys of CLIP's image patches (F, M, D), the class token left out."""
    return scorer.image_keys(frames)[:, 1:]
