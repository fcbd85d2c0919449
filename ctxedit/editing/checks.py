"""Everything of a request that can be checked before weights are loaded, or even fetched.

Config files and tokenizers suffice for most of it: a prompt that is too long, or settings that the model does
not support, are refused before gigabytes are fetched for them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ctxedit.config import Config
from ctxedit.editing import machine, needs, paths
from ctxedit.editing.keys import Keys, find_run, known_caption
from ctxedit.editing.request import Request
from ctxedit.editing.stage import Stage
from ctxedit.editing.stages import stage_named
from ctxedit.errors import ConfigError, InputError
from ctxedit.media.companions import read_companion
from ctxedit.media.ffmpeg import ffmpeg
from ctxedit.media.geometry import Fit, plan_fit
from ctxedit.media.mask import read_mask
from ctxedit.media.memory import reading_bytes
from ctxedit.media.probe import probe
from ctxedit.media.read import Clip, Store, span_of
from ctxedit.media.scratch import scratch
from ctxedit.media.temporary import check_writable
from ctxedit.media.write import check_output
from ctxedit.model_names import is_own, split_scale
from ctxedit.models import hub
from ctxedit.models.addons import hub_file
from ctxedit.models.backbones import builtin_vocabulary, check_addons, family_of
from ctxedit.models.control import CANNY_SD1, Denoiser, check_fit, check_settings, locate_control
from ctxedit.models.control_maps import computed_map
from ctxedit.models.device import pick_device, pick_dtype
from ctxedit.models.sizes import Sizes, Weight, folder_weight
from ctxedit.models.upscalers.checkpoints import X4_UPSCALER, Found, locate_upscaler
from ctxedit.models.weights import Checkpoint, is_half, locate, own_part
from ctxedit.prompts import check_texts, plain
from ctxedit.runs import Run
from ctxedit.stages.prepare import check_readable
from ctxedit.stages.report import check_image, files_for, heatmap_files, is_image
from ctxedit.stages.wording import check_describes
from ctxedit.windows import Window, plan_windows

#: Repositories by hub id of which only the small files were fetched so far.
Ahead = Mapping[str, Checkpoint]


class Known:
    """What is known of a request without working: its prompt, its run, and which stages are done."""

    def __init__(self, request: Request) -> None:
        self.request, self.keys = request, Keys(request)

    # On demand: hashing comes after the checks that give a better message.
    @cached_property
    def prompt(self) -> str | None:
        """The source prompt; None where the clip has yet to be captioned."""
        caption = known_caption(self.request, self.keys)
        return None if caption is None else caption.text

    @cached_property
    def run(self) -> Run | None:
        """The run folder that there is."""
        if self.prompt is None:
            return self.request.run
        return find_run(self.request, self.keys, self.prompt)

    def store(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """An array for frames that are read for checking; on disk for a clip in windows."""
        config, runs = self.request.config, self.request.runs
        if config.clip.frames <= config.window.size:
            return np.empty(shape, dtype)
        return scratch(runs if runs.is_dir() else Path(tempfile.gettempdir()), shape, dtype)

    def done(self, stage: Stage, target: str) -> bool:
        """Whether the stage need not be done."""
        if stage.name == "caption":
            return self.prompt is not None
        if self.run is None or self.prompt is None or not stage.keeps:
            return False
        if not stage.applies(self.request.config):
            return True
        name = stage.name_of(self.keys, self.prompt, target)
        redone = stage.each_target and self.request.overwrite
        return not redone and self.run.done(name, stage.key(self.keys, self.prompt, target))

    def own(self, target: str, outputs: Sequence[Path]) -> set[Path]:
        """Those of the outputs that exist because this very edit was made before.

        Raises:
            InputError: the run that would tell is damaged.
        """
        if self.run is None or self.prompt is None:
            self._check_damage(outputs)
            return set()
        stage = stage_named("edit")
        name, key = stage.name_of(self.keys, self.prompt, target), stage.key(self.keys, self.prompt, target)
        return {path for path in outputs if self.run.may_replace(name, key, path)}

    def _check_damage(self, outputs: Sequence[Path]) -> None:
        """Raise InputError if a damaged ``run.toml`` leaves it open whether existing outputs are its own."""
        request, existing = self.request, next((path for path in outputs if path.exists()), None)
        if existing is None:
            return
        try:
            identity = None if self.prompt is None else self.keys.identity(self.prompt)
            Run.check_damage(request.runs, request.clip, request.preset, identity)
        except InputError as error:
            raise InputError(
                f"{error.message}, so it is not known whether {existing} is its edit",
                "-y starts the run over and replaces that file; or name another --output",
            ) from error


@dataclass(frozen=True)
class Inspected:
    """What the checks have read: the clip, the model's sizes, the control."""

    checkpoint: Checkpoint
    body: Sizes
    fit: Fit
    clip: Clip
    reading: int
    windows: tuple[Window, ...]
    shown: str | None
    control: Weight
    upscaler: Found | None


def _inspect(request: Request, known: Known, half: bool, ahead: Ahead) -> Inspected:
    """Read and check the clip, the mask, the control map and the model's config files."""
    config, span = request.config, request.config.clip
    info = probe(request.clip)
    _check_outputs(request, known, span_of(info, span.frames, span.start, span.stride).fps)
    offline = request.offline or bool(ahead)
    checkpoint = ahead.get(hub.full_id(config.model)) or locate(config.model, offline, half)
    family = family_of(checkpoint)
    body = family.sizes(checkpoint)
    builtin_vocabulary(checkpoint.path)  # refuses a broken one
    addons = check_addons(_without(config, ahead), checkpoint, offline)
    needs.check_settings(config, body)
    needs.check_cache(config, body, family)
    fit = plan_fit(info.width, info.height, span.size or body.resolution, body.multiple)
    needs.check_layers(config, body, request.heatmaps)
    windows = plan_windows(span.frames, config.window.size, config.window.overlap)
    needs.check_kept_source(config, len(windows))
    reading = reading_bytes(info, windows[0].stop, fit.width, fit.height)
    machine.check_handling("reading the clip", reading)
    # The frames are read here once already: a damaged clip is noticed before minutes of work, not after.
    clip = check_readable(request.clip, span)
    if request.mask is not None:
        read_mask(request.mask, span.frames, span.start, span.stride, fit, known.store)
    shown = _shown_map(config, fit, known.store)
    control = _control(config, checkpoint, body, offline, half, ahead)
    if not config.edit.long_prompts:
        texts = [*map(plain, request.targets), config.edit.negative_prompt, request.prompt or ""]
        family.check_prompts(checkpoint, list(map(addons.lengthen, texts)))
    upscaler = None
    if config.upscale.scale > 1:
        upscaler = _upscaler(config, checkpoint, offline, half, ahead)
    return Inspected(checkpoint, body, fit, clip, reading, windows, shown, control, upscaler)


def _without(config: Config, ahead: Ahead) -> Config:
    """The settings without LoRA files and embeddings of repositories that are not fetched yet."""

    def is_there(name: str) -> bool:
        found = hub_file(name)
        return found is None or found[0] not in ahead

    loras = tuple(one for one in config.lora if is_there(split_scale(one)[0]))
    return replace(config, lora=loras, embedding=tuple(filter(is_there, config.embedding)))


def _shown_map(config: Config, fit: Fit, store: Store) -> str | None:
    """What the ControlNet is shown; a map is read once. None without a ControlNet."""
    control, span = config.control, config.clip
    if control.kind == "none":
        return None
    if control.kind == "video" and control.map:
        read_companion(control.map, "control map", span.frames, span.start, span.stride, fit, store=store)
    if control.kind == "video" and not control.map:
        return f"{computed_map(control.model)}, computed from the clip,"
    return control.map or f"Canny edges ({control.low}, {control.high})"


def _control(
    config: Config, checkpoint: Checkpoint, body: Sizes, offline: bool, half: bool, ahead: Ahead
) -> Weight:
    """The ControlNet's size, checked to fit; it is not loaded."""
    control = config.control
    if control.kind == "none":
        return Weight()
    denoiser = None
    if body.takes_control:
        denoiser = Denoiser(
            checkpoint.name, checkpoint.own, body.channels, body.layers, body.latent_channels,
            body.context_width, body.factor,
        )  # fmt: skip
    fetching = ahead.get(hub.full_id(CANNY_SD1 if control.model == "auto" else control.model))
    if fetching is not None and denoiser is not None:
        check_fit(fetching.path, denoiser)
        return Weight()
    return folder_weight(locate_control(control, denoiser, offline, half))


def _upscaler(
    config: Config, checkpoint: Checkpoint, offline: bool, half: bool, ahead: Ahead
) -> Found | None:
    """The upscaler; None while it is not fetched."""
    name = X4_UPSCALER if config.upscale.model == "auto" else config.upscale.model
    if not own_part(config.upscale.model, checkpoint.own, "upscaler") and name in ahead:
        return None
    return locate_upscaler(config.upscale.model, checkpoint.own, offline, half)


def _check_outputs(request: Request, known: Known, fps: Fraction) -> None:
    targets, free = request.targets, request.overwrite
    if targets and request.config.clip.frames > 1:
        ffmpeg()  # is it there?
    if request.output is None:
        folder = request.runs if request.run is None else request.run.folder
        check_writable(folder / ".ctxedit", True)
        return
    if len(targets) > 1:
        raise ConfigError(
            "--output names one file, and there are several targets",
            "leave it out: the run folder takes them",
        )
    files, maps = files_for(request.output), heatmap_files(request.output)
    outputs = (files.video, files.side_by_side, files.sheet)
    own: set[Path] = set()
    if not free and targets and any(path.exists() for path in outputs):
        own = known.own(targets[0], outputs)
    if is_image(request.output) and request.config.clip.frames == 1:
        check_image(request.output, free or files.video in own)
    else:
        check_output(request.output, fps, free or files.video in own)
    for path in outputs[1:]:
        check_writable(path, free or path in own)
    for path in (maps.sheet, maps.video) if request.heatmaps else ():
        check_writable(path, free)


def check(request: Request, known: Known, ahead: Ahead | None = None) -> Inspected:
    """Check a request; errors as they would come.

    Args:
        request: what is to be done.
        known: what is known of it.
        ahead: repositories whose weights are not fetched yet. What only weights tell is then not checked.
    """
    config = request.config
    paths.for_edit(request).check()
    check_texts(request.prompt, request.targets, config.edit.negative_prompt)
    check_settings(config.control, is_own(config.model))
    half = is_half(pick_dtype(config.dtype, pick_device(config.device)))
    inspected = _inspect(request, known, half, ahead or {})
    if known.prompt is not None and not request.overwrite:
        for target in request.targets:
            check_describes(plain(target), known.prompt)
    needs.check_words(config, known.prompt, request.targets)
    return inspected


def check_ahead(request: Request, ahead: Ahead) -> Inspected | None:
    """Check a request before the weights of these repositories are fetched; errors as of :func:`check`.

    None for a model whose family needs the weights for that.
    """
    if not _plans_without_weights(request.config.model, ahead):
        return None
    return check(request, Known(request), ahead)


def check_text_ahead(text: str, config: Config, ahead: Ahead) -> None:
    """As :func:`check_ahead`, for an image from text: add-ons that do not fit, a text that is too long."""
    if not _plans_without_weights(config.model, ahead):
        return
    half = is_half(pick_dtype(config.dtype, pick_device(config.device)))
    checkpoint = ahead.get(hub.full_id(config.model)) or locate(config.model, True, half)
    addons = check_addons(_without(config, ahead), checkpoint, True)
    if not config.edit.long_prompts:
        texts = (text, config.edit.negative_prompt)
        family_of(checkpoint).check_prompts(checkpoint, list(map(addons.lengthen, texts)))


def _plans_without_weights(model: str, ahead: Ahead) -> bool:
    """Whether a model's sizes are known: its weights are there, or its family does not need them for that."""
    checkpoint = ahead.get(hub.full_id(model))
    return checkpoint is None or family_of(checkpoint).plans_without_weights
