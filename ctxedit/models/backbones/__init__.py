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
from ctxedit.models.backbones.opening import check_addons, open_with_addons

__all__ = [
    "Backbone",
    "Word",
    "builtin_vocabulary",
    "check_addons",
    "family_of",
    "load_backbone",
    "open_backbone",
    "open_with_addons",
    "split_words",
]
