"""Scores of one edit: every metric that applies, or the requested ones."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ctxedit.errors import ConfigError
from ctxedit.metrics.edit import NEEDS, Edit, Metric, Place
from ctxedit.metrics.networks import Networks
from ctxedit.metrics.registry import named, usual, value_of
from ctxedit.models.clip import ClipScorer
from ctxedit.models.weights import own_part, part_identity

#: The CLIP model for real checkpoints; the paper does not name its own.
CLIP = "openai/clip-vit-base-patch32"
_TO_GIVE = {
    "source": "give the clip that the edit was made from: --source FILE",
    "source_prompt": "say what the source shows: --source-prompt TEXT",
    "mask": "give --mask FILE: white is where change was allowed",
}


@dataclass(frozen=True)
class Figures:
    """Values by metric, each an attribute too: ``figures.clip_text``.

    Attributes:
        clip_model: which CLIP the CLIP metrics are of.
        values: by a metric's key; None where it does not apply (one frame, no source, nothing outside the
            mask).
        outside_mask: whether ``psnr`` and ``ssim`` compare only what is outside a mask.
        clip_version: a hash of a CLIP that is a folder; empty for the others, whose names say it.
        size: width and height, in pixels, of the frames that were measured. An edit of a run is measured at
            working size, regardless of the size that is written.
    """

    clip_model: str
    values: Mapping[str, float | None] = field(default_factory=dict)
    outside_mask: bool = False
    clip_version: str = ""
    size: tuple[int, int] = (0, 0)

    def __getattr__(self, key: str) -> float | None:
        values = self.__dict__.get("values", {})
        if key in values:
            return values[key]
        raise AttributeError(f"no metric {key!r} was computed")

    def table(self) -> dict[str, Any]:
        """As a plain table."""
        version = {"clip_version": self.clip_version} if self.clip_version else {}
        about = {"outside_mask": self.outside_mask, "measured_size": list(self.size)}
        return {"clip_model": self.clip_model, **version, **self.values, **about}


def make_scorer(name: str, own: Path | None, device: torch.device, offline: bool) -> ClipScorer:
    """The CLIP by its setting: ``auto``, ``builtin``, a hub id or a folder.

    ``auto`` is the one next to the model where that is ctxedit's own, in the folder ``own``.
    """
    if found := own_part(name, own, "clip"):
        return ClipScorer(found[0], "cpu", torch.float32, name=found[1])
    scorer = ClipScorer(CLIP if name == "auto" else name, device, torch.float32, offline)
    if (version := part_identity(name, own, "clip")) != name:
        scorer.version = version
    return scorer


def chosen_for(
    place: Place, keys: Sequence[str] | None = None, given: Collection[str] = NEEDS
) -> tuple[Metric, ...]:
    """The metrics to compute: the usual ones of a place that apply to what is given, or those of these keys.

    Raises:
        ConfigError: an unknown key, or a metric that was asked for and needs what is not given.
    """
    if keys is None:
        return (
            usual(place) if place == "run" else tuple(m for m in usual(place) if set(m.needs) <= set(given))
        )
    chosen = named(keys)
    for one in chosen:
        if lacking := [need for need in one.needs if need not in given]:
            raise ConfigError(
                f"metric {one.key} needs {lacking[0].replace('_', ' ')}, which is not given",
                _TO_GIVE.get(lacking[0], "only a list for `ctxedit bench` can give it"),
            )
    return chosen


def prepare(chosen: Iterable[Metric], networks: Networks) -> None:
    """Load what the chosen metrics need, so that anything missing stops the work before it starts.

    Raises:
        WeightsError: a metric's network is not there and cannot be fetched.
        ConfigError: a package that a metric needs is not installed.
    """
    for one in chosen:
        if one.prepare is not None:
            one.prepare(networks)


def scores(edit: Edit, chosen: Iterable[Metric]) -> dict[str, float | None]:
    """The chosen metrics' values by key; None where one does not apply."""
    return {one.key: edit.score(one) for one in chosen}


def evaluate(
    frames: NDArray[np.uint8],
    prompt: str,
    networks: Networks,
    source: NDArray[np.uint8] | None = None,
    source_prompt: str | None = None,
    mask: NDArray[np.float32] | None = None,
    chosen: Iterable[Metric] | None = None,
) -> Figures:
    """Score an edit.

    Args:
        frames: RGB uint8 (F, H, W, 3).
        prompt: what it should show.
        networks: CLIP, and what else the metrics need.
        source: the clip it was made from, same shape; for psnr and ssim.
        source_prompt: for frame accuracy.
        mask: (F, H, W), above 0.5 where change was allowed: left out of psnr and ssim.
        chosen: the metrics; None is those that are usual for a run's edits.
    """
    edit = Edit(frames, networks, prompt, source, source_prompt, mask)
    chosen = usual("run") if chosen is None else tuple(chosen)
    prepare(chosen, networks)
    values = scores(edit, chosen)
    if mask is not None:
        # With a mask, a run's PSNR and SSIM are of what had to stay.
        values |= {key: value_of(edit, f"{key}_kept") for key in ("psnr", "ssim") if key in values}
    return Figures(networks.clip.name, values, mask is not None, networks.clip.version, edit.size)
