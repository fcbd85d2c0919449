"""Figures of an edit: does it say what was asked, does it hold together, was the rest kept."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ctxedit.models.clip import ClipScorer
from ctxedit.models.weights import own_part
from ctxedit.stages import metrics

#: The CLIP model for real checkpoints; the paper does not name its own.
CLIP = "openai/clip-vit-base-patch32"


@dataclass(frozen=True)
class Figures:
    """None where a figure does not apply (one frame, no source, nothing outside the mask).

    Attributes:
        clip_model: which CLIP the CLIP figures are of.
        clip_text: mean cosine of frames and prompt, in [−1, 1].
        clip_temp: mean cosine over all pairs of frames (the paper's).
        clip_temp_consecutive: over consecutive frames (what many repositories report).
        frame_accuracy: share of frames closer to the target than to the source prompt (FateZero's).
        psnr, ssim: of the edit against the source at working size; outside the mask where there is one.
    """

    clip_model: str
    clip_text: float
    clip_temp: float | None
    clip_temp_consecutive: float | None
    frame_accuracy: float | None = None
    psnr: float | None = None
    ssim: float | None = None
    outside_mask: bool = False

    def table(self) -> dict[str, Any]:
        """As a plain table."""
        return asdict(self)


def make_scorer(name: str, own: Path | None, device: torch.device, offline: bool) -> ClipScorer:
    """The CLIP by its setting: ``auto``, ``builtin``, a hub id or a folder.

    ``auto`` is the one beside the model where that is ctxedit's own, in the folder ``own``.
    """
    if found := own_part(name, own, "clip"):
        return ClipScorer(found[0], "cpu", torch.float32, name=found[1])
    return ClipScorer(CLIP if name == "auto" else name, device, torch.float32, offline)


def evaluate(
    frames: NDArray[np.uint8],
    prompt: str,
    scorer: ClipScorer,
    source: NDArray[np.uint8] | None = None,
    source_prompt: str | None = None,
    mask: NDArray[np.float32] | None = None,
) -> Figures:
    """Score an edit.

    Args:
        frames: RGB uint8 (F, H, W, 3).
        prompt: what it should show.
        scorer: the CLIP model.
        source: the clip it was made from, same shape; for psnr and ssim.
        source_prompt: for frame accuracy.
        mask: (F, H, W), above 0.5 where change was allowed: left out of psnr and ssim.
    """
    images = scorer.embed_images(frames)
    text = scorer.embed_texts([prompt])
    accuracy = None
    if source_prompt is not None and source_prompt != prompt:
        accuracy = metrics.frame_accuracy(images, text, scorer.embed_texts([source_prompt]))
    keep = None if mask is None else mask <= 0.5
    similar = source is not None and source.shape == frames.shape
    large = min(frames.shape[1:3]) >= 11  # SSIM's window
    return Figures(
        scorer.name,
        metrics.clip_text(images, text),
        metrics.clip_temp(images),
        metrics.clip_temp_consecutive(images),
        accuracy,
        metrics.psnr(frames, source, keep) if similar and source is not None else None,
        metrics.ssim(frames, source, keep) if similar and large and source is not None else None,
        mask is not None,
    )
