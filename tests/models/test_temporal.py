"""Temporal attention layers: nothing at first, then frames see each other; on and off without a trace."""

from contextlib import nullcontext

import pytest
import torch
from diffusers import UNet2DModel

from ctxedit.config import AttentionConfig
from ctxedit.errors import ConfigError
from ctxedit.models.attention import FrameView
from ctxedit.models.backbones import load_backbone
from ctxedit.models.sites import sites_of_unet
from ctxedit.models.temporal import TemporalAttention, TemporalConvolution, TemporalLayers
from ctxedit.patterns import attended_frames

F, SIDE = 3, (16, 16)
#: Frames do not see each other but for the temporal layers.
ALONE = FrameView(attended_frames(AttentionConfig(frames="none"), F), SIDE)


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def perturb(layers):
    """As if tuned."""
    with torch.no_grad():
        for i, p in enumerate(layers.parameters()):
            p += 0.3 * draw(*p.shape, seed=i, dtype=p.dtype)


@pytest.fixture()
def ready(backbone):
    with backbone.attention(AttentionConfig()):
        yield backbone


def call(backbone, x, view=ALONE, grad=False):
    context = backbone.embed(["a tiger"] * view.branches).to(x.dtype)
    with torch.set_grad_enabled(grad):
        return backbone.raw(x, 500, context, view)


def test_one_layer_for_every_transformer_block(ready):
    layers = ready.temporal_layers()
    blocks = [n for n, m in ready.unet.named_modules() if type(m).__name__ == "BasicTransformerBlock"]
    assert [n.replace("/", ".") for n in layers] == blocks
    assert len(blocks) > 3
    # They are modules beside the network, not in it: the checkpoint stays the stock one.
    assert not any("temporal" in n for n, _ in ready.unet.named_parameters())


def test_zero_initialised_they_change_no_bit(ready):
    x = draw(F, 4, *SIDE)
    before = call(ready, x)
    layers = ready.temporal_layers()
    assert torch.equal(call(ready, x), before)
    for layer in layers.values():
        assert not layer.to_out.weight.any()
        assert not layer.to_out.bias.any()


def test_perturbed_they_let_frames_see_each_other(ready):
    x, other = draw(F, 4, *SIDE), draw(F, 4, *SIDE)
    other[2] += 1
    plain = call(ready, x)
    assert torch.equal(call(ready, other)[:2], plain[:2])
    layers = ready.temporal_layers()
    perturb(layers)
    mixed = call(ready, x)
    assert (mixed - plain).abs().max() > 1e-3
    assert ((call(ready, other) - mixed)[:2].abs().amax((1, 2, 3)) > 1e-5).all()
    layers.remove()
    assert torch.equal(call(ready, x), plain)
    assert not any(m._forward_hooks for m in ready.unet.modules())


def test_branches_do_not_see_each_other(ready):
    layers = ready.temporal_layers()
    perturb(layers)
    a, b = draw(F, 4, *SIDE, seed=1), draw(F, 4, *SIDE, seed=2)
    branches = FrameView(ALONE.attended, SIDE, branches=2)
    both = call(ready, torch.cat([a, b]), branches).chunk(2)
    torch.testing.assert_close(both[0], call(ready, a), rtol=0, atol=1e-5)
    torch.testing.assert_close(both[1], call(ready, b), rtol=0, atol=1e-5)


def test_one_layer_is_attention_over_frames_at_each_position():
    layer = TemporalAttention(8, 2).double()
    perturb(layer)
    hidden = draw(2 * F, 5, 8)
    want = hidden.clone()
    x = layer.norm(hidden)
    for branch in range(2):
        for position in range(5):
            line = x[branch * F : (branch + 1) * F, position]
            heads = []
            for h in (slice(0, 4), slice(4, 8)):
                q, k, v = (f(line)[:, h] for f in (layer.to_q, layer.to_k, layer.to_v))
                heads.append(torch.softmax(q @ k.T / 2, -1) @ v)
            want[branch * F : (branch + 1) * F, position] += layer.to_out(torch.cat(heads, -1))
    torch.testing.assert_close(layer(hidden, F), want, rtol=0, atol=1e-12)


def test_the_seed_says_their_weights_and_leaves_the_callers_draws_alone(ready):
    torch.manual_seed(5)
    want = torch.rand(1)
    torch.manual_seed(5)
    a, b, c = (TemporalLayers(ready.unet, sites_of_unet(ready.unet), s) for s in (1, 1, 2))
    assert torch.equal(torch.rand(1), want)
    weights = [next(iter(x.values())).to_q.weight for x in (a, b, c)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_under_gradient_checkpointing_output_and_gradients_are_equal(ready):
    layers = ready.temporal_layers()
    perturb(layers)
    layers.requires_grad_(True)
    x = draw(F, 4, *SIDE)
    results = []
    for on in (False, True):
        for p in layers.parameters():
            p.grad = None
        with ready.checkpointing() if on else nullcontext():
            out = call(ready, x, grad=True)
            out.square().sum().backward()
        results.append((out.detach(), [p.grad.clone() for p in layers.parameters()]))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=0, atol=1e-12)
    for a, b in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
        assert a.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_master_weights_serve_a_network_of_another_precision(stable_diffusion, dtype):
    backbone = load_backbone(str(stable_diffusion), torch.device("cpu"), dtype)
    with backbone.attention(AttentionConfig()):
        layers = backbone.temporal_layers()
        perturb(layers)
        assert next(layers.parameters()).dtype == torch.float32
        out = call(backbone, draw(F, 4, *SIDE, dtype=torch.float32))
    assert torch.isfinite(out).all()


def test_a_call_without_a_view_is_refused(backbone):
    layers = backbone.temporal_layers()
    with pytest.raises(ConfigError, match="through the backbone"), torch.no_grad():
        backbone.unet(draw(F, 4, *SIDE), 500, backbone.embed(["a"]).expand(F, -1, -1))
    layers.remove()


def test_a_network_without_transformers_is_refused():
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=4,
    )
    with pytest.raises(ConfigError, match="no transformer blocks"):
        TemporalLayers(unet, sites_of_unet(unet))


def test_a_copy_beside_self_attention_is_it_over_frames(backbone):
    """With its projection opened to the identity it is the self-attention of each position's frames."""
    layers = backbone.temporal_layers(init="copy").double().requires_grad_(False)
    layers.remove()
    plain = {k.replace("/", "."): v for k, v in layers.items()}
    unet = dict(backbone.unet.named_modules())
    assert plain and all(not name.startswith("mid_block") for name in plain)
    for name, layer in plain.items():
        attn = unet[f"{name}.attn1"]
        x = torch.randn(2 * 3, 5, attn.query_dim, dtype=torch.float64)
        assert not layer(x, 3).any(), "closed at the start"
        torch.nn.init.eye_(layer.zero.weight)
        over = x.view(2, 3, 5, -1).transpose(1, 2).reshape(10, 3, -1)
        wanted = attn(over).view(2, 5, 3, -1).transpose(1, 2).reshape(6, 5, -1)
        assert torch.allclose(layer(x, 3), wanted, atol=1e-6)  # tuned, so kept, in float32


def test_a_copy_opened_adds_to_the_networks_answer_and_closed_does_not(backbone):
    view = FrameView(attended_frames(AttentionConfig(frames="none"), 3), (8, 8))
    x = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    context = backbone.embed(["a tiger"])

    def ask():
        with backbone.attention(AttentionConfig(frames="none")), torch.no_grad():
            return backbone.raw(x, 500, context, view)

    before = ask()
    layers = backbone.temporal_layers(init="copy").requires_grad_(False)
    assert torch.equal(ask(), before)
    for layer in layers.values():
        torch.nn.init.eye_(layer.zero.weight)
    assert (ask() - before).abs().max() > 1e-3
    layers.remove()
    assert torch.equal(ask(), before)


RANK = 6


def test_a_convolution_over_frames_at_each_position():
    layer = TemporalConvolution(8, RANK).double()
    x = draw(2 * F, 8, 2, 3)
    assert torch.equal(layer(x, F), x), "nothing at the start"
    perturb(layer)
    want = x.clone()
    for branch in range(2):
        clip = torch.zeros(F + 2, 8, 2, 3, dtype=torch.float64)  # a frame of zeros before and after
        clip[1:-1] = x[branch * F : (branch + 1) * F]
        low = torch.zeros(F + 2, RANK, 2, 3, dtype=torch.float64)
        for i in range(F):
            low[i + 1] = sum(
                torch.einsum("rc,chw->rhw", layer.down.weight[:, :, j], clip[i + j]) for j in range(3)
            )
        for i in range(F):
            want[branch * F + i] += sum(
                torch.einsum("cr,rhw->chw", layer.up.weight[:, :, j], low[i + j]) for j in range(3)
            )
    torch.testing.assert_close(layer(x, F), want, rtol=0, atol=1e-12)


def test_a_rank_above_the_channels_becomes_half_of_them():
    assert [TemporalConvolution(8, rank).down.out_channels for rank in (4, 8, 160)] == [4, 8, 4]
    assert TemporalConvolution(1, 160).down.out_channels == 1


def test_convolutions_stand_behind_every_spatial_convolution(ready):
    """They do nothing at first, then frames see each other; both kinds of layers, or convolutions alone."""
    x = draw(F, 4, *SIDE)
    plain = call(ready, x)
    attention = set(TemporalLayers(ready.unet, sites_of_unet(ready.unet)))
    both = ready.temporal_layers(conv_rank=RANK)
    wanted = {
        name.replace(".", "/")
        for name, m in ready.unet.named_modules()
        if isinstance(m, torch.nn.Conv2d) and m.kernel_size == (3, 3)
    }
    assert set(both) == attention | wanted and {"conv_in", "conv_out"} < wanted
    both.remove()
    alone = ready.temporal_layers(init="none", conv_rank=RANK)
    assert set(alone) == wanted and alone.tuned_parameters(False) == {}
    assert torch.equal(call(ready, x), plain)
    perturb(alone)
    other = draw(F, 4, *SIDE)
    other[2] += 1
    mixed = call(ready, x)
    assert ((call(ready, other) - mixed)[:2].abs().amax((1, 2, 3)) > 1e-6).all()
    branches = FrameView(ALONE.attended, SIDE, branches=2)
    torch.testing.assert_close(call(ready, torch.cat([x, other]), branches)[:F], mixed, rtol=0, atol=1e-5)
    alone.remove()
    assert torch.equal(call(ready, x), plain)


def test_the_attentions_first_weights_do_not_depend_on_the_convolutions(ready):
    without, with_them = (ready.temporal_layers(3, conv_rank=rank) for rank in (0, RANK))
    for key, layer in without.items():
        assert torch.equal(layer.to_q.weight, with_them[key].to_q.weight)


def test_tuning_leaves_the_norms_alone(ready):
    layers = ready.temporal_layers(conv_rank=RANK)
    attention, convolutions = layers.tuned_parameters(False), layers.tuned_parameters(True)
    everything = dict(layers.named_parameters())
    rest = set(everything) - set(attention) - set(convolutions)
    assert rest and all(".norm." in name for name in rest)
    assert {name.rsplit(".", 2)[1] for name in attention} == {"to_q", "to_k", "to_v", "to_out"}
    assert {name.rsplit(".", 2)[1] for name in convolutions} == {"down", "up"}


@pytest.mark.parametrize("model", ["stable_diffusion", "builtin"])
def test_their_parameters_are_foretold(model, request):
    from ctxedit.editing.costs import convolution_parameters
    from ctxedit.models.backbones import family_of
    from ctxedit.models.weights import locate

    name = model if model == "builtin" else str(request.getfixturevalue(model))
    checkpoint = locate(name)
    net = load_backbone(name, torch.device("cpu"), torch.float32)
    layers = net.temporal_layers(init="none", conv_rank=20)
    foretold = convolution_parameters(family_of(checkpoint).sizes(checkpoint), 20)
    assert foretold == sum(p.numel() for p in layers.parameters())
