"""Text to image on the same core: same schedule, sampler, guidance and adapter."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ctxedit.config import SOURCE, AttentionConfig, Config
from ctxedit.models.attention import FrameView
from ctxedit.models.backbones import Backbone
from ctxedit.models.conditioning import Condition
from ctxedit.models.shift import ContextShift
from ctxedit.patterns import attended_frames
from ctxedit.stages.invert import Progress, no_progress
from ctxedit.stages.passes import guided_count, saved_passes
from ctxedit.stages.sample import Sampling, sample


def network_passes(config: Config) -> int:
    """Passes of the network that :func:`generate` makes for each image, branches counted singly."""
    return config.edit.steps + guided_count(config, config.edit.steps) - saved_passes(config, 0)


@torch.no_grad()
def generate(
    backbone: Backbone,
    text: str | Mapping[str, float],
    config: Config,
    count: int = 1,
    size: tuple[int, int] | None = None,
    shift: ContextShift | None = None,
    progress: Progress = no_progress,
    condition: Condition | None = None,
    control: Tensor | None = None,
) -> NDArray[np.uint8]:
    """Images of a text: RGB uint8 (count, H, W, 3).

    Args:
        backbone: any.
        text: the prompt; or several with their weights, as for
            :func:`ctxedit.diffusion.guidance.guide_by_all`.
        config: edit.steps, guidance, eta, negative prompt, seed.
        count: images; each is independent of the others.
        size: (height, width) in pixels, multiples of the backbone's; None is its own resolution.
        shift: the adapter bound to the prompt, each picture a clip of one frame; or None.
        progress: called with (done, total) steps.
        condition: the rows, unconditional first, instead of those of the prompts.
        control: what the backbone's ControlNet is shown, (count, 3, H, W) in [0, 1].
    """
    height, width = size or (backbone.resolution, backbone.resolution)
    side = (height // backbone.factor, width // backbone.factor)
    generator = torch.Generator().manual_seed(config.seed)
    x = torch.randn(count, backbone.latent_channels, *side, generator=generator).to(backbone.device)
    levels = backbone.levels(config.edit.steps)
    # Images do not see each other.
    view = FrameView(attended_frames(AttentionConfig(frames="none"), count), side, control=control)
    weights = {text: 1.0} if isinstance(text, str) else dict(text)
    how = Sampling.of(config, generator, weights=tuple(weights.values()))
    prompts = [config.edit.negative_prompt.replace(SOURCE, ""), *weights]  # a picture has no source
    for prompt in prompts:
        backbone.words(prompt)  # refuses one that is too long
    with backbone.room_for(prompts), backbone.attention(config.attention):
        context = backbone.condition(prompts) if condition is None else condition
        return backbone.decode(sample(backbone, x, context, levels, view, how, shift, None, progress))
