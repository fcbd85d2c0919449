"""The parts that a training builds on: those trained into the same folder before, else the built-in ones."""

from __future__ import annotations

import shutil
from pathlib import Path

from ctxedit.errors import WeightsError
from ctxedit.media.temporary import atomic
from ctxedit.models.weights import BUILTIN_FOLDER


def find(weights: Path, name: str) -> Path:
    """The folder of a part, e.g. ``vae``; raises WeightsError when it is not built in either."""
    if any((weights / name).glob("*.json")) or any((weights / name).glob("*.safetensors")):
        return weights / name
    if name in ("text_encoder", "tokenizer") and (weights / "clip" / "model.safetensors").is_file():
        return weights / "clip"  # its text side
    if not (BUILTIN_FOLDER / name).is_dir():
        raise WeightsError(f"{weights} has no {name}, and none is built in", "train it first")
    return BUILTIN_FOLDER / name


def borrow(weights: Path, *names: str) -> None:
    """Put what is missing of these parts into ``weights``, so that the folder becomes a pipeline.

    The text encoder is a copy of CLIP's text side: CLIP may be trained further, this may not move.
    """
    for name in names:
        origin, place = find(weights, name), weights / name
        if origin == place:
            continue
        with atomic(place, True) as temporary:
            if origin.name == "clip":
                _split(origin, name, temporary)
            else:
                shutil.copytree(origin, temporary)


def _split(clip: Path, name: str, folder: Path) -> None:
    import torch
    from transformers import CLIPTextModel, CLIPTokenizer

    if name == "tokenizer":
        CLIPTokenizer.from_pretrained(clip).save_pretrained(folder)
    else:
        CLIPTextModel.from_pretrained(clip, dtype=torch.float16).save_pretrained(folder)


def view(weights: Path, folder: Path) -> Path:
    """A look at ``weights`` that may be written into: ``folder``, with links to what lies there."""
    for place in weights.iterdir() if weights.is_dir() else ():
        if place.is_dir() and not place.name.startswith("."):
            (folder / place.name).symlink_to(place.resolve())
    return folder
