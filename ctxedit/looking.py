"""Looking inside a run: heat maps of its edits (figures 8 and 9), curves of its tuning (figure 11)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ctxedit.errors import ConfigError
from ctxedit.metrics import formulas as metrics
from ctxedit.models.shift import ContextShift
from ctxedit.pipeline import Session
from ctxedit.stages import curve as curves
from ctxedit.stages import heatmaps as stage
from ctxedit.stages.edit import Scene, edit
from ctxedit.stages.invert import invert
from ctxedit.stages.tune import ADAPTER


def heatmaps(session: Session, target: str) -> stage.Files:
    """Where each word of the target looks in its edit; with an adapter also with its shift switched off.

    Both are sampled for it, so the edit need not be made anew. Reused where it is done already.
    """
    with session.working():
        return _heatmaps(session, target)


def _heatmaps(session: Session, target: str) -> stage.Files:
    run, options = session.run, session.options
    name, key = session.edit_key(target)
    files = stage.files_for(session.edit_files(name).video)
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
    run.publish(
        name, key, (files.sheet, files.video),
        lambda staged: stage.write(shown, stage.Files(*staged), session.prepared.clip, True),
        options.overwrite or options.output is None, target=target,
    )  # fmt: skip
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


def curve(session: Session, target: str, every: int, compare: bool = False) -> curves.Files:
    """Tune, and see what comes of it on the way: loss, shift and CLIP-text of an edit over the steps.

    The edits are sampled with the weights as they are then, and change nothing of the tuning. One that is
    done already is not repeated: its curve has the samples that were taken while it ran.

    Args:
        session: the clip, its prompt and settings.
        target: target prompt of the sampled edits.
        every: sample after so many steps, and after the last.
        compare: tune once more with the adapter switched over, in a run of its own, and draw both.

    Returns:
        ``curve.csv`` and ``curve.png`` in the run's ``tune`` folder.
    """
    logs: dict[str, list[dict[str, Any]]] = {}
    if compare:
        if ADAPTER not in session.config.tune.train:
            raise ConfigError(
                "the comparison needs an adapter that is trained: tune.train does not name it",
                "choose a preset with +adapter",
            )
        adapter = replace(session.config.adapter, enabled=not session.config.adapter.enabled)
        options = replace(session.options, prompt=session.prompt)
        config = replace(session.config, adapter=adapter)
        # First, and closed again: two networks need not be in memory at once.
        with Session(session.clip, config, session.preset, options, session.reporter) as other:
            logs[_label(other)] = _tuned_while_sampling(other, target, every)
    logs[_label(session)] = _tuned_while_sampling(session, target, every)
    return curves.write(dict(sorted(logs.items())), session.run.folder / "tune")


def _label(session: Session) -> str:
    return "with the adapter" if session.config.adapter.enabled else "without"


def _tuned_while_sampling(session: Session, target: str, every: int) -> list[dict[str, Any]]:
    """Tune; returns the log's rows."""
    session.check_target(target)
    steps = session.config.tune.steps

    def probe(step: int) -> float | None:
        if step % every and step != steps:
            return None
        return _clip_text_now(session, target)

    session.probe = probe
    rows = curves.read_log(session.tune().folder / "tune" / "log.jsonl")
    if steps and not any(row.get("clip_text") is not None for row in rows):
        session.reporter.warn(
            f"{session.run.folder} was tuned before, without samples: tune with another --seed, or remove it"
        )
    return rows


def _clip_text_now(session: Session, target: str) -> float:
    """CLIP-text of an edit with the weights as they are: inverted, sampled and decoded, nothing kept."""
    config, backbone = session.config, session.backbone
    trajectory = session.latents[None]
    if config.edit.start == "inversion":
        prompt = session.prompt if config.invert.prompt == "source" else ""
        trajectory = invert(
            backbone, session.latents, backbone.condition([prompt]), backbone.levels(config.invert.steps),
            session.view, session.shift(prompt), config.invert.refinements,
        )  # fmt: skip
    levels = backbone.levels(config.edit.steps)
    scene = Scene(backbone, session.prompt, trajectory, levels, session.view)
    frames = backbone.decode(edit(scene, target, config, session.shift(target)))
    images = session.scorer.embed_images(session.prepared.unpad(frames))
    return metrics.clip_text(images, session.scorer.embed_texts([target]))
