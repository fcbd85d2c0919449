"""The stages of a clip in windows: what they make goes to disk as it comes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ctxedit.editing.outside import outside
from ctxedit.editing.parts import Parts
from ctxedit.media.scratch import release
from ctxedit.models.tensors import mapped_tensor, tensors_in_parts
from ctxedit.prompts import plain
from ctxedit.stages.edit import InvertedClip
from ctxedit.stages.invert import network_passes
from ctxedit.stages.long import Stored, edit_long, invert_long
from ctxedit.windows import Window

#: Frames decoded and written at a time.
_DECODED = 16


def invert_to(path: Path, parts: Parts, prompt: str) -> None:
    """The clip inverted, as ``trajectory`` (S + 1, F, C, h, w) in a safetensors file."""
    config, backbone = parts.config.invert, parts.backbone
    text = prompt if config.prompt == "source" else ""
    with backbone.room_for([text]):
        condition = backbone.condition([text])
    latents = parts.stored_latents
    shape = (config.steps + 1, *latents.shape)
    total = network_passes(parts.config) * len(parts.windows)
    with (
        tensors_in_parts(path, {"trajectory": (shape, "float32")}) as arrays,
        parts.reporter.task("invert", total) as progress,
    ):
        invert_long(
            backbone, latents, condition, backbone.levels(config.steps), parts.strip,
            arrays["trajectory"], parts.shift(text), config.fixed_point_iterations,
            lambda done, _: progress(done, ""), config.solver,
        )  # fmt: skip


def edit_to(path: Path, parts: Parts, prompt: str, target: str, trajectory: Stored) -> NDArray[np.uint8]:
    """An edit's frames, and the mask it was made with, in a safetensors file.

    Returns:
        The file's ``frames``: RGB uint8 (F, h, w, 3) at working size, mapped.
    """
    pixels, source = parts.mask(), parts.prepared.frames
    latents = sample_long(parts, prompt, target, trajectory, pixels)
    shapes = {"frames": (source.shape, "uint8")}
    if pixels is not None:
        shapes["mask"] = (pixels.shape, "float32")
    with tensors_in_parts(path, shapes) as arrays:
        for start in range(0, len(source), _DECODED):
            some = slice(start, start + _DECODED)
            decoded = parts.backbone.decode(torch.from_numpy(np.array(latents[some])).to(parts.device))
            frames = parts.prepared.unpad(decoded)
            if pixels is not None:
                frames = outside(frames, source[some], pixels[some])
                arrays["mask"][some] = pixels[some]
            arrays["frames"][some] = frames
            release(latents, source, *arrays.values())
    return mapped(path, "frames")


def sample_long(
    parts: Parts, prompt: str, target: str, trajectory: Stored, pixels: NDArray[np.float32] | None
) -> Stored:
    """Latents (F, C, h, w) of an edit, on disk."""
    config, backbone = parts.config, parts.backbone
    levels = backbone.levels(config.edit.steps)
    inverted = InvertedClip(backbone, prompt, torch.from_numpy(trajectory), levels, parts.view)

    def mask(window: Window) -> Tensor | None:
        return None if pixels is None else parts.latent_mask(pixels[window.span])

    total = config.edit.steps * len(parts.windows)
    with parts.reporter.task(f"edit “{target}”", total) as progress:
        return edit_long(
            inverted, trajectory, parts.strip, target, config, parts.shift(plain(target)), mask,
            lambda done, _: progress(done, ""),
        )  # fmt: skip


def mapped(path: Path, name: str) -> NDArray[Any]:
    """A tensor that a finished stage left, mapped."""
    found = mapped_tensor(path, name)
    assert found is not None  # its hash was checked
    return found
