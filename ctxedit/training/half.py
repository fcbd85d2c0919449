"""Saving one of diffusers' networks as it ships."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def save_half(model: Any, folder: Path, **changed: Any) -> None:
    """Save a copy in fp16, with these settings changed; the model itself stays as it is.

    Where its weights were once loaded from is left out: that is a path on one machine.
    """
    settings = {key: value for key, value in model.config.items() if key != "_name_or_path"}
    half = type(model).from_config({**settings, **changed})
    half.load_state_dict(model.state_dict())
    half.half().save_pretrained(folder)
