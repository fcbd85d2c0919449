"""The ControlNet beside the denoiser: when it does nothing, whom it is asked for, what it must fit."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from tiny import make_controlnet

from ctxedit.config import AttentionConfig, ControlConfig
from ctxedit.errors import ConfigError, WeightsError
from ctxedit.models.attention import FrameView, Fusion
from ctxedit.models.control import CANNY_SD1, Control, check_settings, locate_control
from ctxedit.patterns import attended_frames

F, SIDE = 3, (8, 8)
CPU = torch.device("cpu")


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def attach(backbone, folder, scale=1.0):
    backbone.control = Control.load(folder, scale, CPU, torch.float64)


def view_of(kind="causal", branches=1, **more):
    maps = draw(F, 3, 32, 32, seed=3).sigmoid()
    return FrameView(attended_frames(AttentionConfig(frames=kind), F), SIDE, branches, control=maps, **more)


def raw(backbone, view, x=None, config=None):
    context = backbone.embed(["", "a tiger", "a panda"])[-view.branches :]
    x = draw(F * view.branches, 4, *SIDE) if x is None else x
    with backbone.attention(config or AttentionConfig()), torch.no_grad():
        return backbone.raw(x, 500, context, view)


def test_it_changes_what_the_denoiser_says(backbone, controlnet):
    plain = raw(backbone, view_of())
    attach(backbone, controlnet)
    assert (raw(backbone, view_of()) - plain).abs().max() > 1e-2


def test_a_scale_of_zero_is_no_control(backbone, controlnet):
    plain = raw(backbone, view_of())
    attach(backbone, controlnet, 0.0)
    assert torch.equal(raw(backbone, view_of()), plain)


def test_untouched_zero_convolutions_change_nothing(backbone, stable_diffusion, tmp_path):
    plain = raw(backbone, view_of())
    attach(backbone, make_controlnet(tmp_path / "net", stable_diffusion, zero=True))
    assert torch.equal(raw(backbone, view_of()), plain)


def test_twice_the_scale_is_twice_the_residual(backbone, controlnet):
    x, words = draw(F, 4, *SIDE), backbone.embed(["a tiger"]).repeat(F, 1, 1)
    added = {}
    for scale in (1.0, 2.0):
        attach(backbone, controlnet, scale)
        with backbone.attention(AttentionConfig()), torch.no_grad():
            added[scale] = backbone.control(x, 500, words, view_of())["mid_block_additional_residual"]
    assert added[1.0].abs().max() > 0 and torch.allclose(2 * added[1.0], added[2.0])


def test_every_branch_is_shown_the_same_map(backbone, controlnet):
    attach(backbone, controlnet)
    alone = [raw(backbone, view_of(branches=1), draw(F, 4, *SIDE, seed=s)) for s in (1, 2)]
    both = torch.cat([draw(F, 4, *SIDE, seed=s) for s in (1, 2)])
    context = backbone.embed(["a panda"]).repeat(2, 1, 1)
    with backbone.attention(AttentionConfig()), torch.no_grad():
        together = backbone.raw(both, 500, context, view_of(branches=2))
    assert torch.allclose(together, torch.cat(alone), atol=1e-10)


def test_another_map_is_another_answer_in_its_frame(backbone, controlnet):
    attach(backbone, controlnet)
    view = view_of("none")
    other = view.control.clone()
    other[1] = 1 - other[1]
    change = (raw(backbone, replace(view, control=other)) - raw(backbone, view)).abs().amax((1, 2, 3))
    assert change[1] > 1e-3 and change[0] == 0 and change[2] == 0


@pytest.mark.parametrize("kind, moved", [("key-frame", [0, 1, 2]), ("none", [0]), ("causal", [0, 1, 2])])
def test_its_attention_sees_what_the_denoisers_sees(backbone, controlnet, kind, moved):
    attach(backbone, controlnet)
    x, words = draw(F, 4, *SIDE), backbone.embed(["a tiger"]).repeat(F, 1, 1)
    other = x.clone()
    other[0] += 1
    with backbone.attention(AttentionConfig(frames=kind)), torch.no_grad():
        a, b = (
            backbone.control(z, 500, words, view_of(kind))["mid_block_additional_residual"]
            for z in (x, other)
        )
    assert [i for i in range(F) if not torch.equal(a[i], b[i])] == moved


def test_fusion_is_the_denoisers_alone(backbone, controlnet):
    """The ControlNet is told nothing of a fused step: its target branch keeps its own attention."""
    attach(backbone, controlnet)
    x, words = draw(3 * F, 4, *SIDE), backbone.embed(["a", "b", "c"]).repeat_interleave(F, 0)
    plain = view_of(branches=3)
    fused = replace(plain, fusion=Fusion(True, None, min_halvings=1))
    with backbone.attention(AttentionConfig()), torch.no_grad():
        a, b = (backbone.control(x, 500, words, v)["mid_block_additional_residual"] for v in (plain, fused))
    assert torch.equal(a, b)


def test_its_own_attention_comes_back(backbone, controlnet):
    attach(backbone, controlnet)
    before = dict(backbone.control.net.attn_processors)
    with backbone.attention(AttentionConfig()):
        assert not set(before.values()) & set(backbone.control.net.attn_processors.values())
    assert backbone.control.net.attn_processors == before


def test_parameters_are_found_by_path(backbone, controlnet):
    assert backbone.select_control(["attn1.to_out"]) == {}
    attach(backbone, controlnet)
    found = backbone.select_control(["attn1.to_out"])
    assert found and all("attn1.to_out" in name for name in found)
    assert not {id(p) for p in found.values()} & {id(p) for p in backbone.unet.parameters()}


def test_settings_that_lack_their_map_or_their_network():
    with pytest.raises(ConfigError, match="control map") as caught:
        check_settings(ControlConfig(kind="video"), True)
    assert "--control" in caught.value.hint
    with pytest.raises(ConfigError, match="no ControlNet is named"):
        check_settings(ControlConfig(kind="video", map="depth.mp4"), False)
    check_settings(ControlConfig(kind="video", map="depth.mp4", model="x/y"), False)
    check_settings(ControlConfig(kind="canny"), False)


def test_auto_is_the_one_that_belongs_to_the_denoiser(backbone, tmp_path, controlnet):
    config, sizes = ControlConfig(kind="canny"), backbone.denoiser
    with pytest.raises(ConfigError, match="no ControlNet is known"):
        locate_control(config, sizes)
    with pytest.raises(WeightsError, match="cache") as caught:
        locate_control(config, replace(sizes, context_width=768), offline=True)
    assert CANNY_SD1 in caught.value.message
    with pytest.raises(WeightsError, match="has no ControlNet") as caught:
        locate_control(config, replace(sizes, own=tmp_path))
    assert f"ctxedit train control --out {tmp_path}" in caught.value.hint
    shutil.copytree(controlnet, tmp_path / "controlnet")
    assert locate_control(config, replace(sizes, own=tmp_path)) == tmp_path / "controlnet"


@pytest.mark.parametrize(
    "change, said",
    [
        ({"cross_attention_dim": 768}, "cross-attention width 768, not 32"),
        ({"block_out_channels": [16, 64]}, "channels"),
        ({"layers_per_block": 2}, "layers 2, not 1"),
        ({"in_channels": 9}, "latent channels 9, not 4"),
        ({"conditioning_embedding_out_channels": [16, 32, 96, 256]}, "pixels a latent 8, not 4"),
        ({"conditioning_channels": 1}, "channels of the map 1, not 3"),
        ({"_class_name": "UNet2DConditionModel"}, "not a ControlNetModel"),
    ],
)
def test_one_that_does_not_fit_is_refused_by_its_config(backbone, controlnet, tmp_path, change, said):
    folder = tmp_path / "net"
    shutil.copytree(controlnet, folder)
    table = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(table | change))
    config = ControlConfig(kind="canny", model=str(folder))
    with pytest.raises(ConfigError, match=said) as caught:
        locate_control(config, backbone.denoiser)
    assert caught.value.hint


def test_broken_folders_are_refused(backbone, controlnet, tmp_path):
    sizes, folder = backbone.denoiser, tmp_path / "net"
    with pytest.raises(WeightsError):
        locate_control(ControlConfig(kind="canny", model=str(tmp_path / "none")), sizes)
    shutil.copytree(controlnet, folder)
    config = ControlConfig(kind="canny", model=str(folder))
    (folder / "config.json").write_text("[1")
    with pytest.raises(WeightsError, match=r"config\.json"):
        locate_control(config, sizes)
    shutil.copy(controlnet / "config.json", folder)
    weights = next(folder.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(WeightsError, match="cannot be loaded"):
        Control.load(locate_control(config, sizes), 1.0, CPU, torch.float32)
    weights.rename(folder / "diffusion_pytorch_model.bin")
    with pytest.raises(WeightsError, match="pickle"):
        locate_control(config, sizes)
