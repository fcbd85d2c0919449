"""Captioning without a run: checks, costs and the caption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ctxedit.config import Config
from ctxedit.editing import machine
from ctxedit.editing.costs import captioner_weight, clip_weight
from ctxedit.editing.footage import warn_of_guessed_caption
from ctxedit.editing.parts import Parts
from ctxedit.editing.reporter import Reporter
from ctxedit.editing.request import Request
from ctxedit.editing.stage import StageJob
from ctxedit.editing.stages import stage_named
from ctxedit.errors import ConfigError
from ctxedit.footprint import captioner_bytes
from ctxedit.media.memory import reading_bytes
from ctxedit.media.probe import probe
from ctxedit.media.read import span_of
from ctxedit.models.captioner import CAPTIONED
from ctxedit.models.device import pick_device, pick_dtype
from ctxedit.models.weights import is_half, own_folder, own_part
from ctxedit.stages.caption import asks_clip
from ctxedit.stages.prepare import captioned_size, check_readable, read_for_caption


def plan(clip: Path, config: Config, offline: bool, lavis_python: Path | None) -> dict[str, Any]:
    """Check what captioning needs, and say what it takes.

    Raises:
        ConfigError, InputError, WeightsError, ResourceError.
    """
    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, device)
    if config.captioner == "lavis" and lavis_python is None:
        raise ConfigError("the lavis captioner needs its own interpreter", "give --lavis-python PATH")
    info, span = probe(clip), config.clip
    span_of(info, span.frames, span.start, span.stride)  # enough frames?
    machine.check_handling(
        "reading the clip", reading_bytes(info, min(CAPTIONED, span.frames), *captioned_size(info))
    )
    check_readable(clip, span)
    own = own_folder(config.model)
    weight = captioner_weight(config, own, offline, is_half(dtype))
    width = 4 if own_part(config.captioner, own, "captioner") else dtype.itemsize
    peak = captioner_bytes(weight.parameters, width)
    if by_clip := asks_clip(config, own is not None):
        peak += clip_weight(config, own, offline).parameters * 4
    machine.check_memory("caption", peak, machine.memory_available(device))
    return {
        "clip": str(clip),
        "frames": config.clip.frames,
        "captioner": config.captioner,
        "caption_by": "clip" if by_clip else "vote",
        "parameters": weight.parameters,
        "peak_bytes": peak,
        "device": str(device),
    }


def caption(request: Request, reporter: Reporter) -> str:
    """Describe a clip in one sentence; the table's own stage, with no run folder."""
    clip = read_for_caption(request.clip, request.config.clip)
    for note in clip.notes:
        reporter.warn(note)
    stage, parts = stage_named("caption"), Parts(request, reporter)
    said = str(stage.make(StageJob(parts, stage.name)).value)
    warn_of_guessed_caption(parts, clip.frames, said)
    return said
