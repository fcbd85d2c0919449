"""Super-resolution of edits and of generated images: the stage, and how a cascade reaches a size."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ctxedit.config import Config
from ctxedit.editing.outside import paste_source
from ctxedit.editing.reporter import Reporter
from ctxedit.editing.stage import Made, StageJob
from ctxedit.errors import ConfigError
from ctxedit.models.device import pick_device, pick_dtype
from ctxedit.models.tensors import mapped_tensor, tensors_in_parts
from ctxedit.models.upscalers.base import SCALE, chunk_count, sampling_of
from ctxedit.models.upscalers.checkpoints import defaults_of, upscaler_of
from ctxedit.models.weights import own_folder
from ctxedit.prompts import plain

#: ctxedit's own models generate images of up to this times the side they were trained at; larger ones repeat
#: their content. Above it, images are upscaled.
_REACH = 2


def make(job: StageJob) -> Made:
    """The edit's frames at four times their size, stored next to those at working size, chunk by chunk.

    Outside a mask they are the source's pixels at that size, not the upscaler's.
    """
    upscaler, config = job.parts.upscaler, job.config
    frames = job.needed["frames"]
    count, height, width, channels = frames.shape
    shape = (count, height * SCALE, width * SCALE, channels)
    total = sampling_of(config.upscale, upscaler.defaults).steps * chunk_count(count)
    with (
        tensors_in_parts(job.folder / job.upscaled_file, {"frames": (shape, "uint8")}) as arrays,
        job.parts.reporter.task(f"upscale “{job.target}”", total) as progress,
    ):
        upscaler.upscale(
            frames,
            plain(job.target),
            config.upscale,
            config.seed,
            progress=lambda done, _: progress(done, ""),
            out=arrays["frames"],
        )
        if job.request.mask is not None:
            paste_source(job.parts, arrays["frames"], arrays["frames"])
    return Made(read(job), (job.upscaled_file,), {"upscaler": upscaler.name})


def read(job: StageJob) -> NDArray[np.uint8]:
    """RGB uint8 (F, 4h, 4w, 3), mapped."""
    frames = mapped_tensor(job.folder / job.upscaled_file, "frames")
    assert frames is not None  # its hash was checked
    return frames


def network_passes(config: Config) -> int:
    """Passes of the upscaler over a clip's frames."""
    if config.upscale.scale == 1:
        return 0
    how = sampling_of(config.upscale, defaults_of(config.upscale.model, own_folder(config.model)))
    return how.steps * how.branches


def image_side(config: Config, resolution: int, multiple: int, own: bool) -> tuple[int, bool]:
    """The side of an image as the denoiser generates it, and whether it is upscaled to ``clip.size``.

    Args:
        config: ``clip.size`` is the side of the result, 0 the model's own.
        resolution, multiple: of the denoiser; images have its resolution, unless they are to have another
            that is a multiple of ``multiple``.
        own: whether the denoiser is one of ctxedit's own, which generate small images only.

    Raises:
        ConfigError: a size that cannot be reached.
    """
    side, upscaled = config.clip.size, config.upscale.scale > 1
    if own and side:  # their denoiser generates small images only, so the size says what is needed
        return _own_side(side, upscaled, resolution, multiple)
    if upscaled:
        side = side or resolution * SCALE
    return _divided(side, upscaled, multiple) if side else (resolution, False)


def _own_side(side: int, may: bool, resolution: int, multiple: int) -> tuple[int, bool]:
    """The same for ctxedit's own models; ``may``: they may be upscaled."""
    small = _REACH * resolution
    most = small * (SCALE if may else 1)
    if side > most:
        reached = f"these models generate up to {small} pixels" + (f", upscaled to {most}" if may else "")
        raise ConfigError(
            f"--size {side} is not possible: {reached}",
            f"take {most}, {'' if may else 'leave out --upscale 1, '}or a real checkpoint: --model sd15",
        )
    return _divided(side, side > small, multiple, f", as sizes above {small} must be")


def _divided(side: int, upscaled: bool, multiple: int, why: str = "") -> tuple[int, bool]:
    """The side before upscaling. Raises ConfigError where that is not a multiple of ``multiple``."""
    unit = multiple * (SCALE if upscaled else 1)
    if side % unit:
        near = max(unit, round(side / unit) * unit)
        raise ConfigError(
            f"--size {side} is not a multiple of {unit}{why if upscaled else ''}", f"take {near}"
        )
    return (side // SCALE, True) if upscaled else (side, False)


def enlarged(
    images: NDArray[np.uint8], text: str, config: Config, offline: bool, reporter: Reporter
) -> NDArray[np.uint8]:
    """Independent images (N, h, w, 3) at four times their size, by the settings' upscaler."""
    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, device)
    upscaler = upscaler_of(config, offline, device, dtype)
    total = sampling_of(config.upscale, upscaler.defaults).steps * chunk_count(len(images), False)
    with reporter.task("upscale", total) as progress:
        return upscaler.upscale(
            images, text, config.upscale, config.seed, False, lambda done, _: progress(done, "")
        )
