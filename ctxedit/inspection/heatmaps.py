"""Where each word of the target looks: cross-attention over an edit, as the paper's figures 8 and 9."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ctxedit.config import Config
from ctxedit.editing.session import Session
from ctxedit.errors import InputError
from ctxedit.media.montage import contact_sheet, labelled_row
from ctxedit.media.read import Clip
from ctxedit.media.write import write_clip, write_image
from ctxedit.models.alignment import columns, content
from ctxedit.models.attention import AttentionRecorder
from ctxedit.models.shift import ContextShift
from ctxedit.models.sites import halvings_at
from ctxedit.prompts import plain
from ctxedit.stages.edit import InvertedClip, edit
from ctxedit.stages.invert import Progress, no_progress
from ctxedit.stages.report import HeatmapFiles, heatmap_files

#: Weight of the colours over the frame.
_OPACITY = 0.6


def draw(session: Session, target: str) -> HeatmapFiles:
    """Where each word of the target attends in its edit; with an adapter also with its shift switched off.

    Of a clip that is worked in windows, in its first window.
    Both are sampled for it, so the edit need not be made again. Reused where it is done already.
    """
    with session.working():
        return _draw(session, target)


def _draw(session: Session, target: str) -> HeatmapFiles:
    run, request, prepared = session.run, session.request, session.parts.prepared
    first = session.parts.windows[0].span
    name, key = session.key("edit", target)
    files = heatmap_files(session.edit_files(target).video)
    name = name.replace("edit/", "heatmaps/", 1)
    if run.done(name, key) and not request.overwrite:
        return files
    trajectory, shift = session.invert()[:, first], session.parts.shift(plain(target))
    if not isinstance(trajectory, Tensor):  # of a clip in windows
        trajectory = torch.from_numpy(np.array(trajectory)).to(session.parts.device)
    edits = [("", shift)] + ([(", shift off", None)] if shift is not None else [])
    shown = [("source", prepared.frames[first])]
    for note, this in edits:
        frames, maps = _recorded(session, target, trajectory, this, note)
        shown.append((f"edit{note}", prepared.unpad(frames)))
        for word, heat in maps.items():
            shown.append((f"{word}{note}", prepared.unpad(overlay(frames, heat))))
    run.publish(
        name, key, (files.sheet, files.video),
        lambda staged: write(shown, HeatmapFiles(*staged), prepared.clip, True, session.metadata(target)),
        request.overwrite or request.output is None, target=target,
    )  # fmt: skip
    return files


def _recorded(
    session: Session, target: str, trajectory: Tensor, shift: ContextShift | None, note: str
) -> tuple[NDArray[np.uint8], dict[str, Tensor]]:
    """Frames of an edit at the model's size, and each word's map (F, h, w); ``note`` names the pass."""
    config, parts = session.config, session.parts
    levels = parts.backbone.levels(config.edit.steps)
    inverted = InvertedClip(parts.backbone, session.prompt, trajectory, levels, parts.view)
    pixels = parts.mask()
    mask = None if pixels is None else parts.latent_mask(pixels[parts.windows[0].span])
    with session.reporter.task(f"heat maps “{target}”{note}", config.edit.steps) as progress:
        latents, maps = recorded_edit(
            inverted, target, config, shift, mask, lambda done, _: progress(done, "")
        )
    return parts.backbone.decode(latents), maps


def recorded_edit(
    inverted: InvertedClip,
    target: str,
    config: Config,
    shift: ContextShift | None = None,
    mask: Tensor | None = None,
    progress: Progress = no_progress,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Edit, and note where each content word of the target attends to.

    A map is the mean over the conditional branch's heads, all steps, and the layers that also make masks
    (``fusion.mask_resolution``): others place words less exactly. In a fused step it is what the target's own
    queries and keys say, not the map of the source that serves in its place.

    Args:
        inverted, target, config, shift, mask, progress: as for :func:`ctxedit.stages.edit.edit`.

    Returns:
        Latents (F, C, h, w), and for each word (F, h, w): attention probabilities, at latent size. A word
        that occurs twice has a number appended.

    Raises:
        InputError: the target has no content word to draw.
    """
    with inverted.backbone.room_for([target, inverted.prompt]):
        return _with_room(inverted, target, config, shift, mask, progress)


def _with_room(
    inverted: InvertedClip,
    target: str,
    config: Config,
    shift: ContextShift | None,
    mask: Tensor | None,
    progress: Progress,
) -> tuple[Tensor, dict[str, Tensor]]:
    """As :func:`recorded_edit`, with prompts that the conditions have room for."""
    words = content(inverted.backbone.words(plain(target)))
    if not words:
        raise InputError(f"{target!r} has no content word to draw", "name what the clip should show")
    halvings = halvings_at(config.fusion.mask_resolution)
    table = columns(words, inverted.backbone.context_length)
    recorder = AttentionRecorder(table, 0, inverted.view.side, halvings)
    latents = edit(inverted, target, config, shift, mask, progress, recorder)
    maps: dict[str, Tensor] = {}
    for i, word in enumerate(words):
        name, n = word.text, 2
        while name in maps:
            name, n = f"{word.text} ({n})", n + 1
        maps[name] = recorder.mean()[:, i].cpu()
    return latents, maps


def overlay(frames: NDArray[np.uint8], heat: Tensor) -> NDArray[np.uint8]:
    """Colours over frames, from black (none) to yellow (the clip's most).

    Args:
        frames: RGB uint8 (F, H, W, 3), of the size that the latents decode to.
        heat: (F, h, w), not negative.
    """
    large = F.interpolate(heat[:, None], frames.shape[1:3], mode="bilinear", align_corners=False)[:, 0]
    share = (large / large.max().clamp(min=1e-12)).numpy()
    out = np.empty_like(frames)
    for i, frame in enumerate(frames):
        colours = cv2.applyColorMap((share[i] * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
        out[i] = np.rint(_OPACITY * colours + (1 - _OPACITY) * frame).astype(np.uint8)
    return out


def write(
    rows: Sequence[tuple[str, NDArray[np.uint8]]], files: HeatmapFiles, clip: Clip, overwrite: bool,
    about: str | None = None,
) -> None:  # fmt: skip
    """Write the sheet and the video of labelled rows of frames (F, h, w, 3), timed as the clip's first.

    ``about`` is text to embed in both.
    """
    durations = None if clip.durations is None else clip.durations[: len(rows[0][1])]
    write_image(files.sheet, contact_sheet(rows), overwrite=overwrite, about=about)
    video = labelled_row(rows)
    write_clip(files.video, video, clip.fps, durations=durations, overwrite=overwrite, about=about)
