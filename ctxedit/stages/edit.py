"""Edit an inverted clip towards a target prompt."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ctxedit.config import SOURCE, Config
from ctxedit.diffusion.forward import marginal
from ctxedit.diffusion.schedule import Levels
from ctxedit.models.alignment import align, changed
from ctxedit.models.attention import AttentionRecorder, FrameView
from ctxedit.models.backbones import Backbone, Word, split_words
from ctxedit.models.conditioning import Condition
from ctxedit.models.shift import ContextShift
from ctxedit.prompts import plain, weighted
from ctxedit.stages import invert as inverting
from ctxedit.stages import passes
from ctxedit.stages.invert import Progress, no_progress
from ctxedit.stages.kept_source import KeptSource
from ctxedit.stages.sample import Sampling, Source, sample


@dataclass(frozen=True)
class InvertedClip:
    """What all edits of one clip share.

    Attributes:
        backbone: with clip attention installed.
        prompt: the source prompt.
        trajectory: (S + 1, F, C, h, w); level 0 alone where nothing was inverted.
        levels: S used levels.
        view: one branch.
        kept: the source's branch, kept from the inversion or from one edit to the next; or None.
    """

    backbone: Backbone
    prompt: str
    trajectory: Tensor
    levels: Levels
    view: FrameView
    kept: KeptSource | None = None


def network_passes(config: Config, prompt: str | None, target: str, kept: passes.Kept = "no") -> int:
    """Passes of the network over the clip that :func:`edit` makes; at most, where the prompt is not known."""
    return passes.network_passes(config, *_changes(prompt, target), kept)


def keeps_whole_source(config: Config, prompt: str | None, target: str) -> bool:
    """Whether an edit leaves everything kept that others take from the source.

    One without changed words has no masks, and does not run the source where only masks need it.
    """
    return config.fusion.blend != "latent" or any(_changes(prompt, target))


def _changes(prompt: str | None, target: str) -> tuple[bool, bool]:
    """Whether words are removed and added; both, where the prompt is not known."""
    if prompt is None:
        return True, True
    texts = (prompt, plain(target))
    removed, added = changed(*([Word(word, ()) for word in split_words(text)] for text in texts))
    return bool(removed), bool(added)


def edit(
    inverted: InvertedClip,
    target: str,
    config: Config,
    shift: ContextShift | None = None,
    mask: Tensor | None = None,
    progress: Progress = no_progress,
    recorder: AttentionRecorder | None = None,
) -> Tensor:
    """Latents (F, C, h, w) of the edited clip.

    Args:
        inverted: the inverted clip.
        target: target prompt, what the edited clip should show; may have weights, ``(tiger:1.3)``.
        config: fusion, guidance, steps, seed.
        shift: b_t of the target prompt, or None.
        mask: (F, 1, h, w) in [0, 1] at latent size: where change is allowed; or None.
        progress: called with (done, total) steps.
        recorder: collects the target prompt's cross-attention; or None.

    Raises:
        InputError: the target or the negative prompt is longer than the text encoder takes.
        NumericsError: NaN or infinity appeared.
    """
    levels = inverted.levels
    with edit_conditions(inverted, target, config) as (context, source):
        generator = torch.Generator().manual_seed(config.seed)
        if source is None:
            start = passes.first_level(config)
            clean = inverted.trajectory[0]
            noise = torch.randn(clean.shape, generator=generator).to(clean)
            a, s = levels.at(start)
            b = None if shift is None else shift.at(clean, levels, start)
            x = marginal(clean, noise, a, s, b)
            # Without an inversion there is no source at the levels between: a mask then acts on the result.
            how = Sampling.of(config, generator, recorder=recorder)
            return sample(inverted.backbone, x, context, levels, inverted.view, how, shift, start, progress)
        how = Sampling.of(
            config, generator, fusion=config.fusion, source=source, mask=mask, recorder=recorder
        )
        x = inverted.trajectory[-1]
        if inverted.kept is not None:
            inverted.kept.bind(inverted.trajectory)
        return sample(inverted.backbone, x, context, levels, inverted.view, how, shift, None, progress)


@contextmanager
def edit_conditions(
    inverted: InvertedClip, target: str, config: Config
) -> Iterator[tuple[Condition, Source | None]]:
    """The conditions that an edit runs with, and room for their prompts as long as the block lasts.

    Returns:
        Two rows, of the negative prompt and of the target; and what the edit takes from the source, None
        where it starts from noise.

    Raises:
        InputError: the target or the negative prompt is longer than the text encoder takes.
    """
    backbone, (target, weights) = inverted.backbone, weighted(target)
    negative = config.edit.negative_prompt.replace(SOURCE, inverted.prompt)
    for prompt in (target, negative):
        backbone.words(prompt)  # refuses one that is too long
    with backbone.room_for([target, negative, inverted.prompt]):
        source = None
        if config.edit.start != "noise":
            equaliser = backbone.token_weights(target, weights) if weights else None
            source = _source(inverted, target, equaliser, config)
        yield backbone.condition([negative, target]), source


def _source(inverted: InvertedClip, target: str, equaliser: Tensor | None, config: Config) -> Source:
    backbone = inverted.backbone
    old, new = backbone.words(inverted.prompt), backbone.words(target)
    alignment = align(old, new, backbone.context_length, config.fusion.cross, config.fusion.word_weights)
    if equaliser is not None:
        alignment = replace(alignment, weight=alignment.weight * equaliser)
    prompt = inverted.prompt if config.invert.prompt == "source" else ""
    return Source(
        inverted.trajectory,
        backbone.condition([prompt]),
        alignment,
        changed(old, new),
        inverting.maps_of_level(config),
        inverted.kept,
    )


def latent_mask(mask: Tensor, side: tuple[int, int]) -> Tensor:
    """A pixel mask (F, H, W) in [0, 1] at latent size (F, 1, h, w): it may change where any pixel may."""
    h, w = mask.shape[-2:]
    return F.max_pool2d(mask[:, None], (h // side[0], w // side[1]))
