"""Text to image: its checks and costs, and the images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctxedit import footprint
from ctxedit.config import Config
from ctxedit.editing import machine, paths
from ctxedit.editing.parts import warn_of_unknown_words
from ctxedit.editing.reporter import Reporter
from ctxedit.editing.upscaling import enlarged, image_side
from ctxedit.errors import ConfigError, InputError
from ctxedit.models.adapter import ContextAdapter
from ctxedit.models.backbones import (
    Backbone,
    builtin_vocabulary,
    check_addons,
    family_of,
    open_with_addons,
)
from ctxedit.models.device import pick_device, pick_dtype, storage_dtype
from ctxedit.models.shift import ContextShift
from ctxedit.models.upscalers.base import CHUNK, SCALE, sampling_of
from ctxedit.models.upscalers.checkpoints import locate_upscaler, sizes_of
from ctxedit.models.weights import is_half, locate, own_folder, pretrained_adapter
from ctxedit.prompts import check_syntax, check_text
from ctxedit.stages import generate as generating
from ctxedit.stages.report import check_image


def plan(
    text: str, config: Config, offline: bool, output: Path, overwrite: bool, adapter: Path | None = None,
    sources: Sequence[Path] = (), layout: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Check what text to image needs, and say what it takes; sizes are (width, height).

    ``adapter``, ``sources`` (the files of the settings) and ``layout`` are read; ``output`` may be none of
    them.

    Raises:
        ConfigError, InputError, WeightsError, ResourceError, OutputError.
    """
    paths.for_image(output, config, adapter, sources, layout).check()
    if adapter is not None:
        ContextAdapter.check(adapter)  # before a model is looked for
    for what, words in (("prompt", text), ("negative prompt", config.edit.negative_prompt)):
        check_syntax(words, what)
    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, device)
    check_image(output, overwrite)
    checkpoint = locate(config.model, offline, is_half(dtype))
    family = family_of(checkpoint)
    body = family.sizes(checkpoint)
    if adapter is not None:
        _check_fits(adapter, checkpoint.name, body.latent_channels, body.context_width)
    builtin_vocabulary(checkpoint.path)  # refuses a broken one
    addons = check_addons(config, checkpoint, offline)
    side, upscaled = image_side(config, body.resolution, body.multiple, checkpoint.own is not None)
    if not config.edit.long_prompts:
        family.check_prompts(checkpoint, list(map(addons.lengthen, (text, config.edit.negative_prompt))))
    latent = (side // body.factor, side // body.factor)
    branches = 1 if config.edit.guidance == 1 else 2
    passing = footprint.forward_bytes(body, latent, branches, 1, dtype.itemsize)
    stored = storage_dtype(dtype, device).itemsize
    decoding = footprint.decoding_bytes(body, latent, 1, stored, device.type == "cpu")
    weights = body.unet.parameters * dtype.itemsize + (body.parameters - body.unet.parameters) * stored
    peak = weights + max(passing, decoding)
    available = machine.memory_available(device)
    machine.check_memory("text to image", peak, available)
    upscaler, large = None, side
    if upscaled:
        found = locate_upscaler(config.upscale.model, checkpoint.own, offline, is_half(dtype))
        upscaler, large, how = found.name, side * SCALE, sampling_of(config.upscale, found.defaults)
        sizes = sizes_of(found, is_half(dtype))
        more = footprint.upscaler_bytes(sizes, (side, side), 1, CHUNK, how.branches, dtype.itemsize)
        machine.check_memory("upscaling", weights + more, available)
        peak = max(peak, weights + more)
    return {
        "image": str(output),
        "model": checkpoint.name,
        "size": (large, large),
        "upscaler": upscaler,
        "evaluations": generating.network_passes(config),
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
        ConfigError: it was trained on a model of other sizes, or sees a clip's frames through CLIP.
        WeightsError: the file is not an adapter's.
    """
    _check_fits(file, backbone.name, backbone.latent_channels, backbone.context_width)
    return ContextAdapter.load(file, backbone.device).eval().requires_grad_(False)


def _check_fits(file: Path, model: str, channels: int, context_width: int) -> None:
    """Raise ConfigError for an adapter that cannot be used for images of a model of these sizes."""
    _, sizes = ContextAdapter.describe(file)
    if (sizes["channels"], sizes["context_width"]) != (channels, context_width):
        raise ConfigError(f"{file} was trained on another model than {model}", "name its --model")
    if sizes["image_width"]:
        raise ConfigError(
            f"{file} was tuned with adapter.image = clip, which text to image does not have",
            "leave out the adapter, or tune one with --set adapter.image=latent",
        )


def _shift(adapter: Path, backbone: Backbone, text: str, count: int) -> ContextShift:
    """The adapter bound to a prompt; each image is a clip of one frame."""
    with backbone.room_for([text]):
        return ContextShift(load_adapter(adapter, backbone), backbone.embed([text] * count), 1)


def _weights(text: str | Mapping[str, float], adapter: Path | None) -> dict[str, float]:
    """The prompts and their weights, checked."""
    weights = {text: 1.0} if isinstance(text, str) else dict(text)
    for one in weights:
        check_text(one, "text")
    if not weights or not all(one.strip() for one in weights):
        raise InputError("the text is empty", "describe what the image should show")
    if not all(isinstance(one, Real) and math.isfinite(one) for one in weights.values()):
        raise ConfigError("a prompt's weight is not a finite number", "weights such as 1.0, 0.5 or -0.3")
    if adapter is not None and len(weights) > 1:
        raise ConfigError("a context adapter takes one prompt", "leave out the adapter, or the other prompts")
    return weights


def generate(
    text: str | Mapping[str, float],
    config: Config,
    offline: bool,
    reporter: Reporter,
    count: int = 1,
    adapter: Path | None = None,
) -> NDArray[np.uint8]:
    """Text to image on the settings' backbone, at ``clip.size`` or the backbone's own resolution.

    Larger sizes are reached by a cascade; see :func:`ctxedit.editing.upscaling.image_side`.

    Args:
        text: what the image should show; or several prompts with their weights (composable diffusion, Liu et
            al. 2022). A negative weight leads away from its prompt.
        config: model, seed, edit.steps, guidance.
        offline: touch no hub.
        reporter: receives messages.
        count: images.
        adapter: a tuned context adapter (``adapter.safetensors`` of a run), or None. Its shift is bound to
            one prompt, so several take none.

    Returns:
        RGB uint8 (count, H, W, 3).

    Raises:
        InputError: an empty text, or none.
        ConfigError: weights that are not finite, or an adapter with several prompts.
    """
    weights = _weights(text, adapter)
    title = ", ".join(weights)
    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, device)
    checkpoint = locate(config.model, offline, is_half(dtype))
    backbone = open_with_addons(
        config, checkpoint, check_addons(config, checkpoint, offline), device, dtype, reporter.say
    )
    own = checkpoint.own is not None
    side, upscaled = image_side(config, backbone.resolution, backbone.multiple, own)
    warn_of_unknown_words(backbone, " ".join(weights), reporter)
    if config.control.kind != "none":
        reporter.warn("text to image has no clip to compute a control map from: the ControlNet is not used")
    shift = None if adapter is None else _shift(adapter, backbone, title, count)
    with reporter.task(f"image “{title}”", config.edit.steps) as progress:
        images = generating.generate(
            backbone, weights, config, count, (side, side), shift, lambda done, _: progress(done, "")
        )
    return enlarged(images, title, config, offline, reporter) if upscaled else images
