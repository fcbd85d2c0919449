"""Describe a clip: several frames captioned, one caption chosen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ctxedit.errors import ConfigError
from ctxedit.models.captioner import Blip2Captioner, Captioner, choose_caption, pick_frames
from ctxedit.models.lavis import LavisCaptioner
from ctxedit.models.weights import BUILTIN_FOLDER

#: The captioner for real checkpoints.
BLIP2 = "Salesforce/blip2-opt-2.7b"


def caption(frames: NDArray[np.uint8], captioner: Captioner) -> str:
    """One sentence for RGB frames (F, H, W, 3): of five frames' captions the most common one."""
    return choose_caption(captioner.caption([frames[i] for i in pick_frames(len(frames))]))


def make_captioner(
    name: str,
    builtin: bool,
    device: torch.device,
    dtype: torch.dtype,
    offline: bool,
    lavis_python: Path | None,
) -> Captioner:
    """The captioner by its setting: ``auto``, ``builtin``, ``lavis``, a hub id or a folder.

    Raises:
        ConfigError: ``lavis`` without its interpreter.
    """
    if name == "lavis":
        if lavis_python is None:
            raise ConfigError("the lavis captioner needs its own interpreter", "give --lavis-python PATH")
        return LavisCaptioner(lavis_python)
    if name == "builtin" or (name == "auto" and builtin):
        return Blip2Captioner(BUILTIN_FOLDER / "captioner", "cpu", torch.float32, name="builtin")
    return Blip2Captioner(BLIP2 if name == "auto" else name, device, dtype, offline)
