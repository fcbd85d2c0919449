"""Settings that were called something else in earlier versions.

What a person writes (a preset, a file, ``--set``, a variable) under an old name is refused, with the new name
in the message. What ctxedit itself wrote (run folders, facts inside results) is read under the new names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Old name → name, both dotted, as in ``--set``.
RENAMED: Mapping[str, str] = {
    "attention.key": "attention.key_frame",
    "tune.train": "tune.trainable_modules",
    "tune.checkpointing": "tune.gradient_checkpointing",
    "tune.clip_norm": "tune.max_grad_norm",
    "invert.refinements": "invert.fixed_point_iterations",
    "fusion.self_share": "fusion.self_replace_steps",
    "fusion.cross_share": "fusion.cross_replace_steps",
    "fusion.threshold": "fusion.mask_threshold",
    "fusion.mask_layers": "fusion.mask_resolution",
    "fusion.finest": "fusion.max_resolution",
    "fusion.words": "fusion.word_weights",
    "fusion.words_where": "fusion.word_weights_where",
}


def current_name(name: str) -> str:
    """The dotted name of today; ``fusion.words.cat`` has become ``fusion.word_weights.cat``."""
    parts = name.split(".")
    head, rest = ".".join(parts[:2]), parts[2:]
    return ".".join([RENAMED.get(head, head), *rest])


def with_current_names(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested table of settings, or a flat one of dotted names, under the names of today.

    Where it has both the old and the new name, the new one counts.
    """
    out: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping) and not prefix:
            value = with_current_names(value, f"{key}.")
        new = current_name(prefix + key).removeprefix(prefix)
        if new == key or new not in table:
            out[new] = value
    return out


def variable_of(name: str) -> str:
    """The environment variable of a setting with a dotted name."""
    return f"CTXEDIT_{name.upper().replace('.', '_')}"
