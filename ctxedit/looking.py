"""Looking inside a run: heat maps of its edits, curves of its tuning."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ctxedit.models.shift import ContextShift
from ctxedit.pipeline import Session
from ctxedit.stages import heatmaps as stage
from ctxedit.stages.edit import Scene


def heatmaps(session: Session, target: str) -> stage.Files:
    """Where each word of the target looks in its edit; with an adapter also with its shift switched off.

    Both are sampled for it, so the edit need not be made anew. Reused where it is done already.
    """
    run, options = session.run, session.options
    name, key = session.edit_key(target)
    files = stage.files_for(options.output or run.folder / "edits" / f"{name.removeprefix('edit/')}.mp4")
    name = name.replace("edit/", "heatmaps/", 1)
    if run.done(name, key) and not options.overwrite:
        return files
    trajectory, shift = session.invert(), session.shift(target)
    edits = [("", shift)] + ([(", shift off", None)] if shift is not None else [])
    shown = [("source", session.prepared.frames)]
    for note, this in edits:
        frames, maps = _watched(session, target, trajectory, this)
        shown.append((f"edit{note}", session.prepared.unpad(frames)))
        for word, heat in maps.items():
            shown.append((f"{word}{note}", session.prepared.unpad(stage.overlay(frames, heat))))
    files.sheet.parent.mkdir(parents=True, exist_ok=True)
    stage.write(shown, files, session.prepared.clip.fps, options.overwrite or options.output is None)
    run.finish(name, key, [str(files.sheet.resolve()), str(files.video.resolve())], target=target)
    return files


def _watched(
    session: Session, target: str, trajectory: Tensor, shift: ContextShift | None
) -> tuple[NDArray[np.uint8], dict[str, Tensor]]:
    """Frames of an edit at the model's size, and each word's map (F, h, w)."""
    config, backbone = session.config, session.backbone
    scene = Scene(backbone, session.prompt, trajectory, backbone.levels(config.edit.steps), session.view)
    pixels = session.mask()
    mask = None if pixels is None else session.latent_mask(pixels)
    with session.reporter.task(f"heat maps “{target}”", config.edit.steps) as progress:
        latents, maps = stage.watched_edit(
            scene, target, config, shift, mask, lambda done, _: progress(done, "")
        )
    return backbone.decode(latents), maps
