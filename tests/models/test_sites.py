"""Where networks attend: read off the network and off its config alike, and what is made of it."""

from dataclasses import replace

import pytest
import torch
from tiny import make_controlnet, make_sdxl

from ctxedit.config import AttentionConfig
from ctxedit.models.attention import FrameAttention, FrameView, frame_attention
from ctxedit.models.backbones import load_backbone
from ctxedit.models.families import family_named
from ctxedit.models.sites import halvings_at, sites_of_config, sites_of_unet
from ctxedit.models.weights import locate
from ctxedit.patterns import attended_frames


def by_name(site):
    return site.name


def test_of_sdxl_with_its_stacks_of_several_blocks(tmp_path):
    folder = make_sdxl(tmp_path)
    backbone = load_backbone(str(folder), torch.device("cpu"), torch.float32)
    planned = family_named("StableDiffusionXLPipeline", "").sizes(locate(str(folder))).sites
    sites = backbone.attention_sites(backbone.unet)
    assert sorted(planned, key=by_name) == sorted(sites, key=by_name)
    assert len(sites) == len(backbone.unet.attn_processors)
    stacked = {s.name.split(".transformer_blocks")[0] for s in sites if s.halvings == 1}
    assert len([s for s in sites if s.halvings == 1]) == 4 * len(stacked), "two blocks of two layers"


def test_of_a_controlnet_and_of_blocks_of_plain_attention(stable_diffusion, tmp_path):
    from diffusers import ControlNetModel, UNet2DConditionModel

    net = ControlNetModel.from_pretrained(make_controlnet(tmp_path, stable_diffusion))
    assert {(s.halvings, s.middle) for s in sites_of_unet(net)} == {(0, False), (1, False), (1, True)}
    plain = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=(1, 2), norm_num_groups=4,
        down_block_types=("AttnDownBlock2D", "CrossAttnDownBlock2D"), cross_attention_dim=8,
        up_block_types=("CrossAttnUpBlock2D", "AttnUpBlock2D"), attention_head_dim=4,
        transformer_layers_per_block=(1, 2),
    )  # fmt: skip
    sites = sites_of_unet(plain)
    assert sorted(sites, key=by_name) == sorted(sites_of_config(dict(plain.config)), key=by_name)
    assert len(sites) == len(plain.attn_processors)


@pytest.mark.parametrize("change", [
    {"layers_per_block": 10**9}, {"layers_per_block": [1]}, {"transformer_layers_per_block": -1},
    {"up_block_types": ["UpBlock2D"]},
])  # fmt: skip
def test_nonsense_in_a_config_is_an_error(change):
    config = {
        "block_out_channels": [8, 8], "down_block_types": ["CrossAttnDownBlock2D"] * 2,
        "up_block_types": ["CrossAttnUpBlock2D"] * 2,
    }  # fmt: skip
    assert len(sites_of_config(config)) == 2 * (2 * 2 + 2 * 3 + 1)
    with pytest.raises(ValueError):
        sites_of_config(config | change)


def test_shares_of_the_latents_side():
    assert [halvings_at(share) for share in (1.0, 0.5, 0.25, 0.3, 0.125, 0.1)] == [0, 1, 2, 2, 3, 4]


def test_temporal_layers_keep_their_processors(stable_diffusion):
    """A network with attention over time of its own works as it was trained there."""
    backbone = load_backbone(str(stable_diffusion), torch.device("cpu"), torch.float32)
    first, *rest = backbone.attention_sites(backbone.unet)
    sites = [replace(first, kind="temporal"), *rest]
    own = backbone.unet.get_submodule(first.name).processor
    with frame_attention(backbone.unet, sites):
        assert backbone.unet.get_submodule(first.name).processor is own
        assert all(
            isinstance(backbone.unet.get_submodule(site.name).processor, FrameAttention) for site in rest
        )
        view = FrameView(attended_frames(AttentionConfig(), 2), (16, 16))
        with torch.no_grad():
            backbone.raw(torch.zeros(2, 4, 16, 16), 500, backbone.embed(["a tiger"]), view)
