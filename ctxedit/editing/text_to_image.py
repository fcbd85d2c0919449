"""Text to image: its checks and costs, and the images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctxedit import footprint
from ctxedit.config import Config
from ctxedit.editing import machine, paths
from ctxedit.editing.parts import warn_of_unknown_words
from ctxedit.editing.reporter import Reporter
from ctxedit.errors import ConfigError, InputError
from ctxedit.models.adapter import ContextAdapter
from ctxedit.models.backbones import (
    Backbone,
    builtin_vocabulary,
    check_addons,
    family_of,
    open_with_addons,
)
from ctxedit.models.device import pick_device, pick_dtype
from ctxedit.models.shift import ContextShift
from ctxedit.models.weights import is_half, locate, own_folder, pretrained_adapter
from ctxedit.prompts import check_syntax
from ctxedit.stages import generate as generating
from ctxedit.stages.report import check_image


def plan(
    text: str, config: Config, offline: bool, output: Path, overwrite: bool, adapter: Path | None = None,
    sources: Sequence[Path] = (),
) -> dict[str, Any]:  # fmt: skip
    """Check what text to image needs, and say what it takes; sizes are (width, height).

    ``adapter`` and ``sources``, the files of the settings, are read: ``output`` may be none of them.

    Raises:
        ConfigError, InputError, WeightsError, ResourceError, OutputError.
    """
    paths.for_image(output, config, adapter, sources).check()
    if adapter is not None:
        ContextAdapter.check(adapter)
    for what, words in (("prompt", text), ("negative prompt", config.edit.negative_prompt)):
        check_syntax(words, what)
    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, device)
    check_image(output, overwrite)
    checkpoint = locate(config.model, offline, is_half(dtype))
    family = family_of(checkpoint)
    body = family.sizes(checkpoint)
    builtin_vocabulary(checkpoint.path)  # refuses a broken one
    addons = check_addons(config, checkpoint, offline)
    side = config.clip.size or body.resolution
    if side % body.multiple:
        near = max(body.multiple, round(side / body.multiple) * body.multiple)
        raise ConfigError(f"--size {side} is no multiple of {body.multiple}", f"take {near}")
    if not config.edit.long_prompts:
        family.check_prompts(checkpoint, list(map(addons.lengthen, (text, config.edit.negative_prompt))))
    latent = (side // body.factor, side // body.factor)
    branches = 1 if config.edit.guidance == 1 else 2
    passing = footprint.forward_bytes(body, latent, branches, 1, dtype.itemsize)
    decoding = footprint.autoencoder_bytes(body, latent, 1, dtype.itemsize)
    peak = body.parameters * dtype.itemsize + max(passing, decoding)
    machine.check_memory("text to image", peak, machine.memory_available(device))
    return {
        "image": str(output),
        "model": checkpoint.name,
        "size": (side, side),
        "evaluations": branches * config.edit.steps,
        "peak_bytes": peak,
        "device": str(device),
        "seed": config.seed,
    }


def own_adapter(config: Config) -> Path | None:
    """The context adapter in the model's folder, trained with it; None if it has none."""
    file = pretrained_adapter(own_folder(config.model))
    # The plain arm of a comparison has one that is switched off.
    return file if file is not None and ContextAdapter.check(file).enabled else None


def load_adapter(file: Path, backbone: Backbone) -> ContextAdapter:
    """A context adapter for sampling.

    Raises:
        ConfigError: it was trained on a model of other sizes.
        WeightsError: the file is not an adapter's.
    """
    network = ContextAdapter.load(file, backbone.device).eval().requires_grad_(False)
    if network.sizes["context_width"] != backbone.context_width:
        raise ConfigError(f"{file} was trained on another model than {backbone.name}", "name its --model")
    return network


def generate(
    text: str,
    config: Config,
    offline: bool,
    reporter: Reporter,
    count: int = 1,
    adapter: Path | None = None,
) -> NDArray[np.uint8]:
    """Text to image on the settings' backbone, at ``clip.size`` or the backbone's own resolution.

    Args:
        text: what the image should show.
        config: model, seed, edit.steps, guidance.
        offline: touch no hub.
        reporter: receives messages.
        count: images.
        adapter: a tuned context adapter (``adapter.safetensors`` of a run), or None.

    Returns:
        RGB uint8 (count, H, W, 3).
    """
    if not text.strip():
        raise InputError("the text is empty", "describe what the image should show")
    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, device)
    checkpoint = locate(config.model, offline, is_half(dtype))
    backbone = open_with_addons(
        config, checkpoint, check_addons(config, checkpoint, offline), device, dtype, reporter.say
    )
    warn_of_unknown_words(backbone, text, reporter)
    if config.control.kind != "none":
        reporter.warn("a picture from words has no clip to take a control from: the ControlNet is left out")
    size = config.clip.size
    if size and size % backbone.multiple:
        raise ConfigError(f"size {size} is no multiple of {backbone.multiple}", "choose one that is")
    shift = None
    if adapter is not None:
        network = load_adapter(adapter, backbone)
        # Each picture is a clip of one frame.
        with backbone.room_for([text]):
            shift = ContextShift(network, backbone.embed([text] * count), 1)
    sides = (size, size) if size else None
    with reporter.task(f"image “{text}”", config.edit.steps) as progress:
        return generating.generate(
            backbone, text, config, count, sides, shift, lambda done, _: progress(done, "")
        )
