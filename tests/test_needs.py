"""What settings need of a model is known from its config files, and agrees with the network itself."""

import dataclasses
import json
import math
import shutil

import pytest
import torch

from ctxedit.config import Config, merge
from ctxedit.editing import needs
from ctxedit.errors import ConfigError
from ctxedit.models.attention import FrameView
from ctxedit.models.backbones import family_of
from ctxedit.models.sites import sites_of_unet
from ctxedit.models.weights import BUILTIN_FOLDER, locate


def sizes_of(folder):
    """A model folder's sizes, from its config files."""
    checkpoint = locate(str(folder))
    return family_of(checkpoint).sizes(checkpoint)


_TYPES = {
    "all": (("CrossAttnDownBlock2D",) * 3, "UNetMidBlock2DCrossAttn", ("CrossAttnUpBlock2D",) * 3),
    "middle only": (("DownBlock2D",) * 3, "UNetMidBlock2DCrossAttn", ("UpBlock2D",) * 3),
    "as in Stable Diffusion": (
        ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "UNetMidBlock2DCrossAttn",
        ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    ),
    "on the way up": (("DownBlock2D",) * 3, None, ("UpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D")),
    "none": (("DownBlock2D",) * 3, None, ("UpBlock2D",) * 3),
}


def by_name(site):
    return site.name


def unet(kind):
    """A tiny UNet with attention in the places of a kind."""
    from diffusers import UNet2DConditionModel

    down, middle, up = _TYPES[kind]
    return UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, block_out_channels=(8, 8, 8), layers_per_block=1,
        down_block_types=down, mid_block_type=middle, up_block_types=up, cross_attention_dim=8,
        attention_head_dim=4, norm_num_groups=4,
    )  # fmt: skip


@pytest.fixture()
def body_of(tmp_path):
    def make(kind):
        folder = tmp_path / "model"
        shutil.copytree(BUILTIN_FOLDER, folder, ignore=shutil.ignore_patterns("unet", "judge"))
        unet(kind).save_pretrained(folder / "unet")
        return sizes_of(folder)

    return make


@pytest.mark.parametrize("kind", _TYPES)
def test_the_sites_in_the_config_are_those_of_the_network(body_of, kind):
    body, net = body_of(kind), unet(kind)
    assert body.unet_names == set(net.state_dict())
    assert sorted(body.sites, key=by_name) == sorted(sites_of_unet(net), key=by_name)
    shapes = {}
    for site in body.sites:
        net.get_submodule(site.name).register_forward_pre_hook(
            lambda _, args, name=site.name: shapes.update({name: args[0].shape[1:]})
        )
    side = (13, 20)  # of no power of two
    with torch.no_grad():
        net(torch.zeros(1, 4, *side), 1, torch.zeros(1, 3, 8))
    view = FrameView((), side)
    assert shapes == {s.name: (math.prod(view.side_at(s.halvings)), s.channels) for s in body.sites}


@pytest.mark.parametrize("kind", _TYPES)
def test_masks_are_refused_where_no_layer_would_make_one(body_of, kind):
    body = body_of(kind)
    resolutions = {site.halvings for site in body.sites if site.kind == "cross"}
    for halvings, share in enumerate((1.0, 0.5, 0.25, 0.125)):
        config = merge(Config(), {"fusion": {"blend": "self", "mask_resolution": share}})
        if halvings in resolutions:
            needs.check_layers(config, body)
            continue
        with pytest.raises(ConfigError) as caught:
            needs.check_layers(config, body)
        if resolutions:
            hint = float(caught.value.hint.rsplit("=", 1)[1])
            needs.check_layers(
                merge(config, {"fusion": {"mask_resolution": hint, "max_resolution": 1.0}}), body
            )


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"fusion": {"max_resolution": 0.1}}, "fusion.max_resolution"),
        ({"attention": {"temporal": True, "temporal_init": "copy"}}, "middle block only"),
        ({"tune": {"trainable_modules": ["attn3"]}}, "attn3"),
        ({"tune": {"trainable_modules": ["temporal"]}}, "temporal"),
        ({"tune": {"trainable_modules": ["temporal_conv"]}}, "no temporal convolutions"),
        ({"tune": {"trainable_modules": []}}, "names nothing"),
        ({"attention": {"min_channels": 9}}, "widest attention layers have 8"),
        ({"attention": {"frames": "key-frame", "key_frame": 8}}, "attention.key_frame"),
    ],
)
def test_settings_that_a_model_cannot_serve(body_of, table, said):
    body = body_of("middle only")
    config = merge(Config(), table)
    with pytest.raises(ConfigError, match=said):
        needs.check_settings(config, body)
        needs.check_layers(config, body)


def test_layers_as_narrow_as_they_are_suffice(body_of):
    body = body_of("all")
    for attention in ({"min_channels": 8}, {"min_channels": 9, "frames": "none"}):
        needs.check_settings(merge(Config(), {"attention": attention}), body)


def test_group_norms_that_a_model_lacks(body_of):
    body, config = body_of("all"), merge(Config(), {"attention": {"group_norm": "clip"}})
    needs.check_settings(config, body)
    # A single file of the original layout does not say its names; it is a Stable Diffusion.
    needs.check_settings(config, dataclasses.replace(body, unet_names=frozenset()))
    names = frozenset(name for name in body.unet_names if ".resnets." not in name)
    with pytest.raises(ConfigError, match="no residual blocks"):
        needs.check_settings(config, dataclasses.replace(body, unet_names=names))


def test_more_steps_than_the_model_knows(body_of):
    body = dataclasses.replace(body_of("all"), train_steps=10)
    with pytest.raises(ConfigError, match="20 steps"):
        needs.check_settings(Config(), body)


@pytest.mark.parametrize("value", [[], [0, 8], ["8"], 5, [10**9], [8] * 9])
def test_sizes_of_nonsense_in_a_config_file(body_of, tmp_path, value):
    from ctxedit.errors import WeightsError

    body_of("all")
    file = tmp_path / "model" / "unet" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"block_out_channels": value}))
    with pytest.raises(WeightsError):
        sizes_of(tmp_path / "model")


@pytest.mark.parametrize(
    ("fusion", "prompt", "good"),
    [
        ({"word_weights": {"Cat": 2.0}}, None, True),
        ({"word_weights": {"catch": 2.0}}, None, False),
        ({"cross": "replace"}, "a dog", True),
        ({"cross": "replace"}, "a small dog", False),
        ({"cross": "replace"}, None, True),
        ({"word_weights": {"cat": 2.0}, "cross_replace_steps": 0.0}, None, False),
        ({"word_weights": {"cat": 2.0}, "cross_replace_steps": 0.04}, None, False),
        ({"word_weights": {"cat": 2.0}, "cross_replace_steps": 0.05}, None, True),
        (
            {"word_weights": {"cat": 2.0}, "cross_replace_steps": 0.0, "word_weights_where": "everywhere"},
            None,
            True,
        ),
    ],
)
def test_word_settings_are_held_against_the_prompts(fusion, prompt, good):
    config = merge(Config(), {"fusion": fusion})
    if good:
        needs.check_words(config, prompt, ["a cat"])
    else:
        with pytest.raises(ConfigError, match=r"fusion\."):
            needs.check_words(config, prompt, ["a cat"])
