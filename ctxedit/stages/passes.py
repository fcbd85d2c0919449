"""How many passes of the network sampling makes, and what runs in which step, from the settings alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ctxedit.config import Config, FusionConfig
from ctxedit.models.deep_cache import REUSED_SHARE

#: Whether the source's branch is kept (:mod:`ctxedit.stages.kept_source`): ``no``, by this edit (``now``), or
#: since ``before`` it.
Kept = Literal["no", "now", "before"]


def fused_steps(steps: int, share: float) -> int:
    """How many steps a share is. 0.29 of 100 is 29, though 0.29 · 100 is a little less in floating point."""
    return int(steps * share + 1e-9)


def fused_counts(fusion: FusionConfig, steps: int) -> tuple[int, int]:
    """In how many of the steps self- and cross-attention are fused."""
    return fused_steps(steps, fusion.self_replace_steps), fused_steps(steps, fusion.cross_replace_steps)


def network_passes(config: Config, removed: bool = True, added: bool = True, kept: Kept = "no") -> int:
    """Passes of the network over the clip that sampling makes for one edit, branches counted singly.

    A pass on cached features counts as :data:`ctxedit.models.deep_cache.REUSED_SHARE` of one.

    Args:
        config: settings.
        removed, added: whether the source prompt has content words that the target lacks, and the other way
            round; masks are made from them.
        kept: whether the source's branch is kept.
    """
    edit, fusion = config.edit, config.fusion
    made = first_level(config) if edit.start == "noise" else edit.steps
    branches = made + guided_count(config, made)
    if edit.start == "noise":
        return branches - saved_passes(config, edit.steps - made)
    blend = fusion.blend if removed or added else "none"
    fuses_self, fuses_cross = fused_counts(fusion, edit.steps)
    source = edit.steps if blend == "latent" else max(fuses_self, fuses_cross)
    masks = fuses_self if blend == "self" and removed else 0
    # The pass that makes a mask is the source's branch: what is kept of it serves the step.
    extra = {"no": source + masks, "now": source, "before": 0}[kept]
    return branches + extra - saved_passes(config, source)


def saved_passes(config: Config, begin: int) -> int:
    """Passes that ``edit.cache_interval`` saves from step ``begin`` on, where the source does not run."""
    edit = config.edit
    reused, whole, before = 0, begin, 0
    for step in range(begin, edit.steps):
        branches = 1 + (edit.guidance != 1 and is_guided(step, edit.steps, edit.guidance_interval))
        if branches == before and step - whole < edit.cache_interval:
            reused += branches
        else:
            whole, before = step, branches
    return int((1 - REUSED_SHARE) * reused)


def first_level(config: Config) -> int:
    """The level that an edit from noise starts at."""
    return max(1, round(config.edit.steps * config.edit.strength))


def guided_count(config: Config, made: int) -> int:
    """In how many of the last ``made`` steps the unconditional branch is run."""
    edit = config.edit
    if edit.guidance == 1:
        return 0
    made_steps = range(edit.steps - made, edit.steps)
    return sum(is_guided(step, edit.steps, edit.guidance_interval) for step in made_steps)


def is_guided(step: int, steps: int, interval: Sequence[float]) -> bool:
    """Whether a step, counted from the noisy end, is within ``edit.guidance_interval``."""
    begin, end = (fused_steps(steps, share) for share in interval)
    return begin <= step < end
