"""Group norms over the frames of a clip, against five-dimensional arithmetic written out."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DModel

from ctxedit.config import AttentionConfig
from ctxedit.errors import ConfigError
from ctxedit.models.attention import FrameView
from ctxedit.models.backbones import load_backbone
from ctxedit.models.control import Control
from ctxedit.models.group_norm import statistics_over_clip
from ctxedit.patterns import attended_frames

F, SIDE = 3, (8, 8)
CLIP = AttentionConfig(frames="none", group_norm="clip")
VIEW = FrameView(attended_frames(CLIP, F), SIDE)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class InflatedNorm(torch.nn.Module):
    """What the published networks compute: (B, C, F, H, W), groups of channels with all that is in them."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x):
        clips = [branch.transpose(0, 1) for branch in x.split(F)]  # (C, F, H, W) each
        out = []
        for clip in clips:
            groups = clip.reshape(self.norm.num_groups, -1)
            mean = groups.mean(1, keepdim=True)
            variance = ((groups - mean) ** 2).mean(1, keepdim=True)
            normed = ((groups - mean) / (variance + self.norm.eps) ** 0.5).reshape(clip.shape)
            scaled = normed * self.norm.weight[:, None, None, None] + self.norm.bias[:, None, None, None]
            out.append(scaled.transpose(0, 1))
        return torch.cat(out)


def inflate(net):
    """Put :class:`InflatedNorm` where the published networks have theirs."""
    for path, module in list(net.named_modules()):
        parent, _, name = path.rpartition(".")
        if ("resnets." in path and name in ("norm1", "norm2")) or path == "conv_norm_out":
            setattr(net.get_submodule(parent), name, InflatedNorm(module))


def call(backbone, x, branches=1, grad=False):
    context = backbone.embed(["a tiger", "a panda"][:branches]).double()
    with torch.set_grad_enabled(grad):
        return backbone.raw(x, 500, context, replace(VIEW, branches=branches))


def test_it_equals_the_inflated_network(backbone, stable_diffusion):
    x = draw(2 * F, 4, *SIDE)
    with backbone.attention(CLIP):
        ours = call(backbone, x, 2)
    with backbone.attention(replace(CLIP, group_norm="frame")):
        framewise = call(backbone, x, 2)
        inflate(backbone.unet)
        want = call(backbone, x, 2)
    torch.testing.assert_close(ours, want, rtol=0, atol=1e-11)
    assert (ours - framewise).abs().mean() > 1e-3


def test_branches_have_statistics_of_their_own(backbone):
    a, b = draw(F, 4, *SIDE, seed=1), 3 * draw(F, 4, *SIDE, seed=2)
    with backbone.attention(CLIP):
        both = call(backbone, torch.cat([a, b]), 2)
        torch.testing.assert_close(both[:F], call(backbone, a), rtol=0, atol=1e-11)


def test_a_clip_of_one_frame_is_that_frame(backbone):
    x, context = draw(1, 4, *SIDE), backbone.embed(["a tiger"])
    view = FrameView(((0,),), SIDE)
    outs = []
    for kind in ("clip", "frame"):
        with backbone.attention(replace(CLIP, group_norm=kind)), torch.no_grad():
            outs.append(backbone.raw(x, 500, context, view))
    torch.testing.assert_close(*outs, rtol=0, atol=1e-11)


def test_in_the_controlnet_as_well(backbone, controlnet):
    control = Control.load(controlnet, 1.0, torch.device("cpu"), torch.float64)
    shown = draw(F, 3, 32, 32, seed=3).sigmoid()
    view = replace(VIEW, control=shown)
    x, words = draw(F, 4, *SIDE), backbone.embed(["a tiger"]).expand(F, -1, -1)
    backbone.control = control

    def ask():
        with torch.no_grad():
            return control(x, 500, words, view)["mid_block_additional_residual"]

    with backbone.attention(CLIP):
        ours = ask()
    with backbone.attention(replace(CLIP, group_norm="frame")):
        framewise = ask()
        inflate(control.net)
        torch.testing.assert_close(ours, ask(), rtol=0, atol=1e-11)
    assert (ours - framewise).abs().mean() > 1e-4


def test_under_gradient_checkpointing_gradients_are_equal(backbone):
    x, results = draw(F, 4, *SIDE), []
    weights = backbone.select(["attn1.to_q"])
    with backbone.attention(CLIP):
        for on in (False, True):
            for p in weights.values():
                p.requires_grad_(True).grad = None
            with backbone.checkpointing() if on else nullcontext():
                call(backbone, x, grad=True).square().sum().backward()
            results.append([p.grad.clone() for p in weights.values()])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
        assert a.any()


def test_the_stock_norms_come_back(backbone):
    x, context = draw(F, 4, *SIDE), backbone.embed(["a tiger"]).expand(F, -1, -1)
    with torch.no_grad():
        before = backbone.unet(x, 500, context).sample
        with pytest.raises(RuntimeError, match="inside"), statistics_over_clip(backbone.unet):
            raise RuntimeError("inside")
        assert torch.equal(backbone.unet(x, 500, context).sample, before)
    assert not any("forward" in vars(module) for module in backbone.unet.modules())


def test_half_precision(stable_diffusion):
    backbone = load_backbone(str(stable_diffusion), torch.device("cpu"), torch.bfloat16)
    with backbone.attention(CLIP), torch.no_grad():
        out = backbone.raw(draw(F, 4, *SIDE).float(), 500, backbone.embed(["a tiger"]), VIEW)
    assert out.dtype == torch.float32 and torch.isfinite(out).all()


def test_a_network_without_such_norms_is_refused():
    with (
        pytest.raises(ConfigError, match="no group norms"),
        statistics_over_clip(torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1))),
    ):
        pass
    unet = UNet2DModel(
        sample_size=8, block_out_channels=(8,), down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",), norm_num_groups=4,
    )  # fmt: skip
    with statistics_over_clip(unet):
        pass
