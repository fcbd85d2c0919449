"""Describe a clip: several frames captioned, one caption chosen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ctxedit.config import BUILTIN, Config
from ctxedit.errors import ConfigError
from ctxedit.models.captioner import Blip2Captioner, Captioner, choose_caption, no_caption_error, pick_frames
from ctxedit.models.clip import ClipScorer
from ctxedit.models.lavis import LavisCaptioner
from ctxedit.models.weights import own_part

#: The captioner for real checkpoints.
BLIP2 = "Salesforce/blip2-opt-2.7b"


def caption(frames: NDArray[np.uint8], captioner: Captioner, scorer: ClipScorer | None = None) -> str:
    """One sentence for a clip, from five of its frames.

    Without ``scorer`` the most common of the frames' captions. With it, of all that the captioner proposes,
    the likeliest for captioner and CLIP together: log p(caption | frame) and CLIP's scaled cosine, both
    averaged over the frames, are added.

    Args:
        frames: RGB uint8 (F, H, W, 3).
        captioner: says what a frame shows.
        scorer: the CLIP.

    Raises:
        InputError: no frame got a caption.
    """
    chosen = [frames[i] for i in pick_frames(len(frames))]
    if scorer is None:
        return choose_caption(captioner.caption(chosen))
    proposed = captioner.propose(chosen)
    if not proposed:
        raise no_caption_error()
    near = scorer.embed_images(np.stack(chosen)).mean(0) @ scorer.embed_texts(list(proposed)).T
    likely = torch.tensor(list(proposed.values())) + scorer.scale * near
    return list(proposed)[int(likely.argmax())]


def asks_clip(config: Config, own: bool) -> bool:
    """Whether the caption is chosen with CLIP (``caption_by``: ``clip``) or is the most common (``vote``).

    ``auto`` asks CLIP where captioner and CLIP are ctxedit's own.
    ``own``: whether the model is; then so are they, unless others are named. Nothing has to be fetched.
    """
    ours = ("auto", BUILTIN) if own else (BUILTIN,)
    if config.caption_by == "auto":
        return config.captioner in ours and config.clip_model in ours
    return config.caption_by == "clip"


def make_captioner(
    name: str,
    own: Path | None,
    device: torch.device,
    dtype: torch.dtype,
    offline: bool,
    lavis_python: Path | None,
) -> Captioner:
    """The captioner by its setting: ``auto``, ``builtin``, ``lavis``, a hub id or a folder.

    ``auto`` is the one next to the model where that is ctxedit's own, in the folder ``own``.

    Raises:
        ConfigError: ``lavis`` without its interpreter.
    """
    if name == "lavis":
        if lavis_python is None:
            raise ConfigError("the lavis captioner needs its own interpreter", "give --lavis-python PATH")
        return LavisCaptioner(lavis_python)
    if found := own_part(name, own, "captioner"):
        return Blip2Captioner(found[0], "cpu", torch.float32, name=found[1])
    return Blip2Captioner(BLIP2 if name == "auto" else name, device, dtype, offline)
