"""Saving a diffusers network in half precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def save_fp16(model: Any, folder: Path, **changes: Any) -> None:
    """Save an fp16 copy of ``model`` with ``changes`` to its config; the model itself is not modified.

    ``_name_or_path`` is dropped from the config: it names a folder on the machine that trained the model.
    """
    config = {key: value for key, value in model.config.items() if key != "_name_or_path"}
    half = type(model).from_config({**config, **changes})
    half.load_state_dict(model.state_dict())
    half.half().save_pretrained(folder)
