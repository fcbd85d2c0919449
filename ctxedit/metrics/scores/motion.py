"""Layout and motion against the source's."""

from __future__ import annotations

from ctxedit.metrics import Edit, metric
from ctxedit.metrics import flow as optical
from ctxedit.metrics.structure import patch_descriptors, structure_distance


@metric(
    "structure", title="structure", needs="source", better="lower", decimals=3, where="eval bench", order=110
)
def structure(edit: Edit) -> float:
    """distance of patch self-similarities from the source's"""
    assert edit.source is not None
    clip = edit.networks.clip
    return structure_distance(patch_descriptors(clip, edit.source), patch_descriptors(clip, edit.frames))


@metric(
    "warp_error",
    title="warp error",
    needs="source",
    better="lower",
    decimals=4,
    where="eval bench",
    order=120,
)
def warp_error(edit: Edit) -> float | None:
    """squared error along the source's optical flow"""
    assert edit.source is not None
    return optical.warp_error(edit.source, edit.frames)
