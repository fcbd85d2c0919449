"""Text to image equals diffusers' own pipeline."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from ctxedit.config import AdapterConfig, Config, merge
from ctxedit.errors import InputError
from ctxedit.models.adapter import ContextAdapter
from ctxedit.models.backbones import load_backbone
from ctxedit.models.shift import ContextShift
from ctxedit.stages.generate import generate

TEXT = "a tiger on the beach"


def config(guidance=4.0, steps=5, **edit):
    return merge(Config(), {"seed": 7, "edit": {"steps": steps, "guidance": guidance, **edit}})


@pytest.fixture(scope="module")
def backbone(stable_diffusion):
    return load_backbone(str(stable_diffusion), torch.device("cpu"), torch.float32)


def adapter(backbone, zero=False):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = ContextAdapter(AdapterConfig(width=32, blocks=1, heads=4), 4, backbone.context_width)
        if not zero:
            torch.nn.init.normal_(net.out.weight)
    return ContextShift(net.requires_grad_(False), backbone.embed([TEXT]), 1)


@pytest.mark.parametrize("head", ["stable_diffusion", "stable_diffusion_2"])
@pytest.mark.parametrize("guidance, negative", [(1.0, ""), (4.0, ""), (4.0, "blurry")])
def test_is_diffusers_pipeline(head, guidance, negative, request, monkeypatch):
    folder = request.getfixturevalue(head)
    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    # Level 0 is clean data; Stable Diffusion's own setting stops at the first timestep's.
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, set_alpha_to_one=True)
    noise = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(7))
    ask = {
        "prompt": [TEXT] * 2,
        "negative_prompt": [negative] * 2,
        "guidance_scale": guidance,
        "num_inference_steps": 5,
        "latents": noise,
    }
    latents = pipe(**ask, output_type="latent").images
    images = pipe(**ask, output_type="np").images

    backbone = load_backbone(str(folder), torch.device("cpu"), torch.float32)
    seen, decode = [], backbone.decode
    monkeypatch.setattr(backbone, "decode", lambda x: seen.append(x) or decode(x))
    got = generate(backbone, TEXT, config(guidance, negative_prompt=negative), 2)
    torch.testing.assert_close(seen[0], latents, rtol=1e-3, atol=1e-3)
    assert (got.shape, got.dtype) == ((2, 64, 64, 3), np.uint8)
    assert np.abs(got.astype(int) - np.rint(images * 255).astype(int)).max() <= 2
    # What is compared is a picture, not a flat field.
    assert got.std() > 5


def test_the_seed_draws(backbone):
    outs = [generate(backbone, TEXT, merge(config(), {"seed": s})) for s in (1, 1, 2)]
    assert (outs[0] == outs[1]).all()
    assert (outs[0] != outs[2]).any()


def test_pictures_do_not_see_each_other(backbone):
    one, three = generate(backbone, TEXT, config()), generate(backbone, TEXT, config(), 3)
    assert np.abs(one[0].astype(int) - three[0]).max() <= 1
    assert (three[0] != three[1]).any()


@pytest.mark.parametrize("size", [(32, 48), (72, 40)])
def test_sizes(backbone, size):
    assert generate(backbone, TEXT, config(steps=2), size=size).shape == (1, *size, 3)


def test_the_adapter_acts_and_untuned_it_does_not(backbone):
    plain = generate(backbone, TEXT, config(), 2)
    assert (generate(backbone, TEXT, config(), 2, shift=adapter(backbone, zero=True)) == plain).all()
    assert (generate(backbone, TEXT, config(), 2, shift=adapter(backbone)) != plain).any()


def test_with_the_adapter_pictures_do_not_see_each_other_either(backbone):
    shift = adapter(backbone)
    one, two = (generate(backbone, TEXT, config(), n, shift=shift) for n in (1, 2))
    assert np.abs(one[0].astype(int) - two[0]).max() <= 1


def test_progress_and_the_network_is_left_as_it_was(backbone):
    told = []
    before = {k: type(p) for k, p in backbone.unet.attn_processors.items()}
    generate(backbone, TEXT, config(steps=3), progress=lambda *row: told.append(row))
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert {k: type(p) for k, p in backbone.unet.attn_processors.items()} == before


def test_a_prompt_that_is_too_long_is_refused(backbone):
    with pytest.raises(InputError, match="tokens"):
        generate(backbone, "cat " * 99, config())


def test_a_negative_prompt_that_is_too_long_is_refused(backbone):
    with pytest.raises(InputError, match="tokens"):
        generate(backbone, TEXT, config(negative_prompt="cat " * 99))
