"""Footage that the built-in models do not know: noticed before minutes are spent on it."""

from __future__ import annotations

import shlex

import numpy as np

from ctxedit.config import Config, load
from ctxedit.editing.costs import Costs
from ctxedit.editing.parts import Parts
from ctxedit.errors import ConfigError, InputError
from ctxedit.media.geometry import plan_fit
from ctxedit.model_names import BUILTIN, SHORT_NAMES
from ctxedit.models.device import pick_dtype
from ctxedit.models.hub import size_of
from ctxedit.models.sizes import Sizes, Weight
from ctxedit.models.weights import is_half, own_part
from ctxedit.stages.caption import BLIP2, caption
from ctxedit.tables import DEFAULT_PRESET

#: Below this similarity, a text is taken not to describe a clip. Ten drawn clips with captions gave
#: 0.79 to 0.96, six of real footage with the built-in captions 0.10 to 0.67.
RECOGNISED = 0.75
#: The checkpoint to name instead, and its sizes: all Stable Diffusion 1.x have them.
SUGGESTED = "sd15"
_SIZES = Sizes(
    unet=Weight(859_520_964), vae=Weight(83_653_863), text_encoder=Weight(123_060_480),
    channels=(320, 640, 1280, 1280), depth=(1, 1, 1, 0), layers=2, vae_channels=(128, 256, 512, 512),
    latent_channels=4, context_width=768, context_length=77, resolution=512,
)  # fmt: skip


def check_footage(parts: Parts, prompt: str) -> None:
    """Stop before the built-in models are tuned on a clip in which they see neither the prompt nor anything.

    Footage counts as known where the built-in CLIP sees in it what the built-in captioner says of it; then a
    prompt that it does not see is only warned of. Other models are not checked.

    Raises:
        InputError: the footage is unknown, unless the request allows any footage: then it is a warning.
    """
    if parts.own is None or parts.scorer.name != BUILTIN:
        return
    if (got := _similarity(parts, prompt)) >= RECOGNISED:
        return
    unseen = f"the built-in models do not recognise “{prompt}” in {parts.request.clip.name} ({got:.2f} of 1)"
    said = _own_caption(parts)
    if said is not None and said != prompt and _similarity(parts, said) >= RECOGNISED:
        parts.reporter.warn(f"{unseen}: they see “{said}”")
        return
    hint = f"for real footage use a real checkpoint: {_command(parts)} ({_price(parts)})"
    if parts.request.any_footage:
        parts.reporter.warn(f"{unseen}: they know drawn scenes only; {hint}")
        return
    raise InputError(f"{unseen}: they know drawn scenes only", f"{hint}; -y goes on with the built-in models")


def warn_of_guessed_caption(parts: Parts, frames: np.ndarray, said: str) -> None:
    """Warn where the built-in CLIP does not see in a clip what the built-in captioner says of it.

    Args:
        frames: of the clip, (F, H, W, 3) uint8 RGB.
        said: the caption.
    """
    own = own_part(parts.config.captioner, parts.own, "captioner")
    if own is None or parts.scorer.name != BUILTIN or (got := _likeness(parts, frames, said)) >= RECOGNISED:
        return
    parts.reporter.warn(
        f"the built-in models do not recognise “{said}” in {parts.request.clip.name} ({got:.2f} of 1): they "
        f"know drawn scenes only; for real footage name a real captioner: --captioner {BLIP2}"
    )


def _similarity(parts: Parts, text: str) -> float:
    return _likeness(parts, parts.prepared.frames, text)


def _likeness(parts: Parts, frames: np.ndarray, text: str) -> float:
    frames = frames[:: max(1, len(frames) // 4)]
    images, words = parts.scorer.embed_images(frames), parts.scorer.embed_texts([text])
    return float(np.mean((images @ words.T).numpy()))


def _own_caption(parts: Parts) -> str | None:
    """The caption by the models' own captioner; None without one, or for an empty caption."""
    if own_part("auto", parts.own, "captioner") is None:
        return None
    captioner = parts.captioner("auto", parts.backbone.dtype)
    try:
        return caption(parts.prepared.frames, captioner, parts.scorer)
    except InputError:
        return None


def _command(parts: Parts) -> str:
    request = parts.request
    prompt = [] if request.prompt is None else ["--prompt", request.prompt]
    words = ["run", str(request.clip), *request.targets] if request.targets else ["tune", str(request.clip)]
    return shlex.join(["ctxedit", *words, *prompt, "--model", SUGGESTED])


def _price(parts: Parts) -> str:
    """What the suggested checkpoint takes to fetch, and the most memory that a stage takes."""
    config, dtype = _config(parts.request.preset), pick_dtype("auto", parts.device)
    source = parts.prepared.fit
    fit = plan_fit(source.source_width, source.source_height, _SIZES.resolution, _SIZES.multiple)
    costs = Costs(config, True, None, _SIZES, fit, dtype)
    peak = max(costs.tuning(False), costs.inverting(False), costs.editing(False))
    fetched = size_of(SHORT_NAMES[SUGGESTED], is_half(dtype)).strip(" ()")
    return f"to download: {fetched}; memory: about {peak / 2**30:.0f} GiB"


def _config(preset: str) -> Config:
    try:
        return load(preset, flags={"model": SUGGESTED}, environ={})
    except ConfigError:  # a preset's file that is gone since the run was made
        return load(DEFAULT_PRESET, flags={"model": SUGGESTED}, environ={})
