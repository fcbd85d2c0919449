"""Backbones: one file a family, found by the pipeline class that a checkpoint names."""

from ctxedit.models.backbones.base import (
    Backbone,
    Word,
    builtin_vocabulary,
    family_of,
    load_backbone,
    open_backbone,
    split_words,
)

__all__ = [
    "Backbone",
    "Word",
    "builtin_vocabulary",
    "family_of",
    "load_backbone",
    "open_backbone",
    "split_words",
]
