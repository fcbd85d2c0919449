"""Edits: what guidance leads away from, and masks at latent size."""

from dataclasses import replace

import pytest
import torch

from ctxedit.config import Config, EditConfig, FusionConfig, InvertConfig
from ctxedit.models.attention import FrameView
from ctxedit.patterns import attended_frames
from ctxedit.stages.edit import InvertedClip, edit, latent_mask
from ctxedit.stages.invert import invert

PROMPT, TARGET, STEPS = "a tiger walking on the beach", "a panda walking on the beach", 4


@pytest.fixture()
def inverted(backbone):
    config = Config()
    view = FrameView(attended_frames(config.attention, 3), (16, 16))
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(3, 4, 16, 16, generator=generator, dtype=torch.float64)
    levels = backbone.levels(STEPS)
    with backbone.attention(config.attention):
        trajectory = invert(backbone, latents, backbone.embed([PROMPT]), levels, view)
        yield InvertedClip(backbone, PROMPT, trajectory, levels, view)


def settings(**changes):
    """Nothing fused: only the conditional branch takes the source's maps, and here branches are compared."""
    unfused = FusionConfig(self_replace_steps=0.0, cross_replace_steps=0.0)
    return Config(edit=EditConfig(steps=STEPS, **changes), invert=InvertConfig(steps=STEPS), fusion=unfused)


def test_leading_away_from_the_source_prompt_leaves_the_source_unguided(inverted):
    plain = edit(inverted, PROMPT, settings(guidance=1.0))
    away = edit(inverted, PROMPT, settings(guidance=7.0, negative_prompt="{source}"))
    torch.testing.assert_close(away, plain, rtol=0, atol=1e-9)
    # With the empty prompt it is not so.
    assert (edit(inverted, PROMPT, settings(guidance=7.0)) - plain).abs().max() > 1e-3


def test_it_is_the_prompt_itself_that_stands_there(inverted):
    named = edit(inverted, TARGET, settings(guidance=3.0, negative_prompt="{source}"))
    written = edit(inverted, TARGET, settings(guidance=3.0, negative_prompt=PROMPT))
    assert torch.equal(named, written)


def test_from_noise_the_strength_says_how_far_it_goes(inverted):
    clean = inverted.trajectory[0]
    config = settings(start="noise", guidance=1.0)
    far = [
        (edit(inverted, TARGET, replace(config, edit=replace(config.edit, strength=s))) - clean).norm()
        for s in (0.25, 1.0)
    ]
    assert far[0] < far[1]


def test_a_latent_pixel_may_change_where_any_of_its_pixels_may():
    mask = torch.zeros(2, 8, 8)
    mask[0, 5, 2] = 1
    small = latent_mask(mask, (2, 2))
    assert small.shape == (2, 1, 2, 2)
    assert small[0, 0].tolist() == [[0, 0], [1, 0]] and not small[1].any()
