"""How good an edit is, as pure functions of embeddings and pixels. Nothing is multiplied by 100.

Embeddings are CLIP's, one row a frame; their length does not matter, and cosines lie in [−1, 1]. ``None``
means that a figure has no meaning for this clip, such as agreement between frames where there is one frame.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d, normalize

from ctxedit.errors import NumericsError

_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2  # Wang et al. 2004, with pixels in [0, 1]

Pixels = np.ndarray | Tensor


def clip_text(image_emb: Tensor, text_emb: Tensor) -> float:
    """CLIP-text: mean cosine between each frame ``(F, D)`` and the prompt ``(D,)`` or ``(1, D)``."""
    return float((_unit(image_emb) @ _one(text_emb)).mean())


def clip_temp(image_emb: Tensor) -> float | None:
    """CLIP-temp as the paper has it: mean cosine over all pairs of frames ``i < j``. None for one frame."""
    unit = _unit(image_emb)
    count = len(unit)
    if count < 2:
        return None
    # Off-diagonal sum from the sum of all rows: |Σ u|² counts each pair twice, and each frame with itself.
    total = unit.sum(0).square().sum() - unit.square().sum()
    return float(total / (count * (count - 1)))


def clip_temp_consecutive(image_emb: Tensor) -> float | None:
    """Mean cosine between each frame and the next, as many repositories report it. None for one frame."""
    unit = _unit(image_emb)
    return float((unit[:-1] * unit[1:]).sum(-1).mean()) if len(unit) > 1 else None


def frame_accuracy(image_emb: Tensor, target_emb: Tensor, source_emb: Tensor) -> float:
    """The part of the frames, in [0, 1], nearer to the target prompt than to the source prompt."""
    unit = _unit(image_emb)
    return float((unit @ _one(target_emb) > unit @ _one(source_emb)).double().mean())


#: Stands for the infinite PSNR of equal pixels in means and in files.
PSNR_MOST = 100.0


def psnr(a: Pixels, b: Pixels, keep: Pixels | None = None) -> float | None:
    """Peak signal-to-noise ratio in dB, of one mean squared error over all compared pixels of the clip.

    Args:
        a, b: ``(F, H, W, 3)``, uint8, or floats in [0, 1].
        keep: boolean ``(F, H, W)``, the pixels to compare; all of them unless given.

    Returns:
        Infinity for equal pixels, None where ``keep`` leaves nothing.
    """
    one, two, kept = _pair(a, b, keep)
    if kept is not None and not bool(kept.any()):
        return None
    # A frame at a time: doubles of a whole clip would take eight times its memory.
    total, count = 0.0, 0
    for index in range(len(one)):
        wrong = (_scaled(one[index]) - _scaled(two[index])).square()
        wrong = wrong if kept is None else wrong[kept[index]]
        total, count = total + float(wrong.sum()), count + wrong.numel()
    return -10 * math.log10(total / count) if total > 0 else math.inf


def ssim(a: Pixels, b: Pixels, keep: Pixels | None = None) -> float | None:
    """Structural similarity (Wang et al. 2004): Gaussian 11×11 window, σ 1.5, mean over channels and frames.

    As scikit-image's with ``gaussian_weights=True, use_sample_covariance=False``: the five pixels at each
    border, where the window does not fit, do not count.

    Args:
        a, b: ``(F, H, W, 3)``, uint8, or floats in [0, 1]; at least 11 pixels a side.
        keep: boolean ``(F, H, W)``: the mean is taken over these places of the similarity map. A window
            reaches five pixels beyond its place, so a change inside the mask still shows that far outside it.

    Returns:
        At most 1. None where ``keep`` leaves nothing; a frame where it leaves nothing does not count.
    """
    one, two, kept = _pair(a, b, keep)
    if min(one.shape[1:3]) < _WINDOW:
        raise ValueError(f"SSIM wants at least {_WINDOW} pixels a side, got {tuple(one.shape[1:3])}")
    edge = _WINDOW // 2
    means = []
    for index in range(len(one)):
        similar = ssim_map(*(_scaled(frame[index]).movedim(-1, 0) for frame in (one, two)))
        if kept is not None:
            similar = similar[:, kept[index, edge:-edge, edge:-edge]]
        if similar.numel():
            means.append(float(similar.mean()))
    return sum(means) / len(means) if means else None


def ssim_map(x: Tensor, y: Tensor) -> Tensor:
    """``(..., H, W)`` in [0, 1] to the similarity ``(..., H − 10, W − 10)``; gradients flow through it."""
    mx, my, xx, yy, xy = (_blur(part) for part in (x, y, x * x, y * y, x * y))
    vx, vy, cov = xx - mx * mx, yy - my * my, xy - mx * my
    return ((2 * mx * my + _C1) * (2 * cov + _C2)) / ((mx * mx + my * my + _C1) * (vx + vy + _C2))


def _blur(image: Tensor) -> Tensor:
    """Weighted mean of each whole window of ``(..., H, W)``, rows then columns."""
    place = torch.arange(_WINDOW, dtype=image.dtype, device=image.device) - _WINDOW // 2
    weights = torch.exp(-place.square() / (2 * _SIGMA**2))
    weights = weights / weights.sum()
    rows = conv2d(image.reshape(-1, 1, *image.shape[-2:]), weights.view(1, 1, -1, 1))
    blurred = conv2d(rows, weights.view(1, 1, 1, -1))
    return blurred.reshape(*image.shape[:-2], *blurred.shape[-2:])


def _unit(embeddings: Tensor) -> Tensor:
    if embeddings.ndim != 2 or not len(embeddings):
        raise ValueError(f"want embeddings (F, D), got {tuple(embeddings.shape)}")
    if not bool(embeddings.isfinite().all()):
        raise NumericsError("NaN or infinity in a CLIP embedding")
    return normalize(embeddings.double(), dim=-1)


def _one(embedding: Tensor) -> Tensor:
    if embedding.ndim == 2 and len(embedding) != 1:
        raise ValueError(f"want one text's embedding, got {len(embedding)}")
    return _unit(embedding.reshape(1, -1))[0]


def _pair(a: Pixels, b: Pixels, keep: Pixels | None) -> tuple[Tensor, Tensor, Tensor | None]:
    one, two = torch.as_tensor(a), torch.as_tensor(b)
    if one.shape != two.shape or one.ndim != 4 or not one.numel():
        raise ValueError(f"want two clips (F, H, W, 3), got {tuple(one.shape)}, {tuple(two.shape)}")
    if keep is None:
        return one, two, None
    kept = torch.as_tensor(keep)
    if kept.dtype != torch.bool or kept.shape != one.shape[:3]:
        raise ValueError(f"want a boolean mask {tuple(one.shape[:3])}, got {kept.dtype} {tuple(kept.shape)}")
    return one, two, kept


def _scaled(frame: Tensor) -> Tensor:
    """Doubles in [0, 1]."""
    if frame.dtype == torch.uint8:
        return frame.double() / 255
    if not frame.is_floating_point():
        raise ValueError(f"pixels are uint8, or floats in [0, 1], not {frame.dtype}")
    if not bool(frame.isfinite().all()):
        raise NumericsError("NaN or infinity in a frame")
    frame = frame.double()
    if float(frame.min()) < -1e-6 or float(frame.max()) > 1 + 1e-6:
        raise ValueError("pixels given as floats must lie in [0, 1]")
    return frame
