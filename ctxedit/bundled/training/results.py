"""The check's results beside the weights, ``check.json``: so they can be shown without checking again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctxedit.bundled.training.parts import find
from ctxedit.bundled.training.record import hashes
from ctxedit.media.temporary import atomic

if TYPE_CHECKING:
    from ctxedit.bundled.training.check import Checked, Row

FILE = "check.json"
#: The folders of the weights that each part's figures are made with; the judge, who only looks, is not said.
FOLDERS = {
    "autoencoder": ("vae",),
    "clip": ("clip",),
    "captioner": ("captioner", "clip"),
    "text-to-image": ("vae", "text_encoder", "unet"),
    "editing": ("vae", "text_encoder", "unet"),
    "composition-judge": ("composition-judge",),
    "compositions": ("vae", "text_encoder", "unet"),
}


def save(rows: Sequence[Row], what: Checked) -> Path:
    """Write the rows; those of parts that were not checked now stay as they were.

    Each row keeps the hashes of the weights it is of: figures of other weights can be told.
    """
    path = what.weights / FILE
    now = {row.part for row in rows}
    kept = [row for row in load(what.weights) if row["part"] not in now]
    of = {part: weights_of(part, what.weights) for part in now}
    new = [{**asdict(row), "seed": what.seed, "files": of[row.part]} for row in rows]
    order = list(FOLDERS)
    table = sorted([*kept, *new], key=lambda row: order.index(row["part"]) if row["part"] in order else 99)
    with atomic(path, True) as temporary:
        temporary.write_text(json.dumps({"rows": table}, indent=2, ensure_ascii=False) + "\n")
    return path


def weights_of(part: str, weights: Path) -> dict[str, str]:
    """Hashes of the files that a part's figures are made with, by folder and name."""
    return {
        f"{name}/{file}": value
        for name in FOLDERS[part]
        for file, value in hashes(find(weights, name)).items()
    }


def load(weights: Path) -> list[dict[str, Any]]:
    """The rows there are: ``part``, ``figure``, ``value``, ``wanted``, ``count``, and ``files``."""
    try:
        rows = json.loads((weights / FILE).read_text())["rows"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [row for row in rows if isinstance(row, dict) and "part" in row]
