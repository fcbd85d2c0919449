"""What the published codes of the rivals compute, written out: masks from words, ᾱ_0, keys by layer width."""

import math

import numpy as np
import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler
from sampling import NEW, OLD, SIDE, STEPS, VIEW, F, draw, inverted, run, source

from ctxedit.config import AttentionConfig, FusionConfig
from ctxedit.models.attention import FrameView, Fusion, frame_attention
from ctxedit.models.backbones import load_backbone
from ctxedit.patterns import attended_frames
from ctxedit.stages.invert import invert
from ctxedit.stages.sample import Sampling, sample


class Maps:
    """Cross-attention maps of the last call, explicit, by layer: (frames, heads, positions, tokens)."""

    def __init__(self, net):
        self.found, self.hooks = {}, []
        for name, layer in net.unet.named_modules():
            if name.endswith(".attn2"):
                self.hooks.append(layer.register_forward_pre_hook(self._hook(name), with_kwargs=True))

    def _hook(self, name):
        def keep(attn, args, kwargs):
            q = attn.to_q(args[0]).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            k = attn.to_k(kwargs["encoder_hidden_states"]).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            self.found[name] = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)

        return keep

    def word_mask(self, tokens, positions, threshold, frames):
        """FateZero's mask by its description, in loops: (F, side, side) of 0 and 1, at the maps' own size."""
        layers = [m[frames] for m in self.found.values() if m.shape[2] == positions]
        assert layers
        heat = torch.stack([m[..., tokens].sum(-1).mean(1) for m in layers]).mean(0).detach().numpy()
        side = math.isqrt(positions)
        masks = np.zeros((len(heat), side, side))
        for frame, flat in enumerate(heat):
            picture = flat.reshape(side, side)
            widest = np.array(
                [
                    [picture[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].max() for x in range(side)]
                    for y in range(side)
                ]
            )
            masks[frame] = widest / widest.max() > threshold
        return masks


@pytest.fixture()
def maps(net):
    found = Maps(net)
    yield found
    for hook in found.hooks:
        hook.remove()


def enlarged(mask, times):
    """By nearest neighbour: (F, side, side) to (F, side · times, …)."""
    return mask.repeat(times, 1).repeat(times, 2)


def tokens_of(net, prompt, word):
    return list(next(w for w in net.words(prompt) if w.text == word).tokens)


@pytest.mark.parametrize("layers, positions", [(0.5, 16), (1.0, 64)])
@pytest.mark.parametrize("threshold", [0.9, 0.97])
def test_self_blending_takes_the_mask_of_the_maps_size(net, maps, monkeypatch, layers, positions, threshold):
    """Of the source's attention at that very step, pooled where it was made, then enlarged by the layers."""
    trajectory, masks = inverted(net, STEPS), []
    asked = net.raw

    def raw(x, timestep, condition, view):
        out = asked(x, timestep, condition, view)
        if view.fusion is None and view.branches == 1 and view.recorders:  # the source by itself
            want = maps.word_mask(tokens_of(net, OLD, "tiger"), positions, threshold, slice(None))
            masks.append([want])
        elif view.fusion is not None:
            masks[-1].append(view.fusion.mask[:, 0].numpy())
        return out

    monkeypatch.setattr(net, "raw", raw)
    fusion = FusionConfig(blend="self", mask_resolution=layers, mask_threshold=threshold)
    run(net, trajectory[-1], how=Sampling(3.0, fusion=fusion, source=source(net, trajectory, exact=False)))
    assert len(masks) == STEPS // 2
    for want, got in masks:
        assert np.array_equal(want, got)
    assert any(0 < want.mean() < 1 for want, _ in masks), "else this test tells nothing"


def test_latent_blending_enlarges_the_mask_by_nearest_neighbour(net, maps, monkeypatch):
    """In one step: heat of source and target words at 4² maps, the union of both masks over an 8² latent."""
    threshold, total, kept = 0.85, {}, []
    trajectory = inverted(net, STEPS)
    asked = net.raw

    def raw(x, timestep, condition, view):
        out = asked(x, timestep, condition, view)
        if view.recorders:
            for branch, prompt, word in ((0, OLD, "tiger"), (2, NEW, "panda")):
                layers = [m[branch * F : branch * F + F] for m in maps.found.values() if m.shape[2] == 16]
                heat = torch.stack([m[..., tokens_of(net, prompt, word)].sum(-1).mean(1) for m in layers])
                total.setdefault(word, []).append(heat.mean(0).reshape(F, 1, 4, 4))
            kept.append(None)
        return out

    monkeypatch.setattr(net, "raw", raw)
    fusion = FusionConfig(blend="latent", mask_resolution=0.5, mask_threshold=threshold)
    out = run(net, trajectory[-1], how=Sampling(5.0, fusion=fusion, source=source(net, trajectory)))
    masks = []
    for heats in total.values():
        heat = torch.nn.functional.max_pool2d(torch.stack(heats).mean(0), 3, 1, 1)
        masks.append((heat / heat.amax((1, 2, 3), keepdim=True) > threshold)[:, 0].numpy())
    want = enlarged(masks[0] | masks[1], 2)
    assert len(kept) == STEPS and 0 < want.mean() < 1
    assert np.array_equal((out == trajectory[0]).all(1).numpy(), ~want)


@pytest.mark.parametrize("size", [1, 4, 16])
def test_layers_take_a_mask_of_any_size_by_nearest_neighbour(net, size):
    """Given at another size it is the mask that was enlarged, or thinned out, by hand before."""
    small = (draw(F, 1, size, size, seed=9) > 0).double()
    by_hand = torch.empty(F, 1, *SIDE, dtype=torch.float64)
    for y in range(SIDE[0]):
        for x in range(SIDE[1]):
            by_hand[..., y, x] = small[..., y * size // SIDE[0], x * size // SIDE[1]]
    context, x = net.embed([OLD, NEW]), torch.cat([draw(F, 4, *SIDE, seed=s) for s in (1, 2)])
    outs = []
    for mask in (small, by_hand):
        fusion = Fusion(True, None, min_halvings=1, target=1, mask=mask)
        with torch.no_grad():
            outs.append(net.raw(x, 500, context, FrameView(VIEW.attended, SIDE, 2, fusion)))
    torch.testing.assert_close(*outs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("head", ["stable_diffusion", "stable_diffusion_2"])
def test_alpha_0_of_the_checkpoint_is_diffusers(head, request):
    """Inversion and sampling, step by step, by diffusers' schedulers with ``set_alpha_to_one = false``."""
    net = load_backbone(str(request.getfixturevalue(head)), torch.device("cpu"), torch.float64)
    net.final_alpha = "checkpoint"
    assert net._scheduler.set_alpha_to_one is False
    up, down = (cls.from_config(net._scheduler) for cls in (DDIMInverseScheduler, DDIMScheduler))
    for scheduler in (up, down):
        scheduler.set_timesteps(5)
    words, x = net.embed([OLD]), draw(F, 4, *SIDE)
    levels = net.levels(5)
    assert float(levels.at(0)[0] ** 2) == pytest.approx(1 - 0.00085, abs=1e-12)
    with net.attention(AttentionConfig()), torch.no_grad():
        want = x
        for t in up.timesteps:
            want = up.step(net.raw(want, int(t), words, VIEW), t, want).prev_sample
        trajectory = invert(net, x, words, levels, VIEW)
        torch.testing.assert_close(trajectory[-1], want, rtol=1e-5, atol=1e-4)
        for t in down.timesteps:
            want = down.step(net.raw(want, int(t), words, VIEW), t, want).prev_sample
        got = sample(net, trajectory[-1], net.embed(["", OLD]), levels, VIEW, Sampling(1.0))
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-4)
        net.final_alpha = "one"
        other = sample(net, trajectory[-1], net.embed(["", OLD]), net.levels(5), VIEW, Sampling(1.0))
    assert (other - got).abs().max() > 1e-3


def test_a_checkpoint_that_says_one_has_one(backbone, monkeypatch):
    backbone.final_alpha = "checkpoint"
    says = DDIMScheduler.from_config({**backbone._scheduler, "set_alpha_to_one": True}).config
    monkeypatch.setattr(backbone, "_scheduler", says)
    assert float(backbone.levels(5).at(0)[0]) == 1


@pytest.mark.parametrize("least, narrow, wide", [(0, 1, 1), (32, 0, 1), (33, 0, 0)])
def test_keys_by_the_width_of_the_layer(backbone, least, narrow, wide):
    """FateZero: the middle frame's keys in wide layers, the frame's own in narrow ones; explicit maps."""
    count = 3
    view = FrameView(
        attended_frames(AttentionConfig(frames="key-frame", key_frame=-1), count), SIDE, min_channels=least
    )
    x, words = draw(count, 4, *SIDE), backbone.embed([OLD])
    with torch.no_grad():
        with frame_attention(backbone.unet, backbone.attention_sites(backbone.unet)):
            ours = backbone.raw(x, 500, words, view)

        def explicit(attn, hidden, encoder_hidden_states=None, **_):
            context = hidden if encoder_hidden_states is None else encoder_hidden_states
            q, k, v = (
                layer(y).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
                for layer, y in ((attn.to_q, hidden), (attn.to_k, context), (attn.to_v, context))
            )
            if encoder_hidden_states is None and (wide if hidden.shape[-1] == 32 else narrow):
                k, v = k[[1, 1, 1]], v[[1, 1, 1]]
            out = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1) @ v
            return attn.to_out[0](out.transpose(1, 2).flatten(2))

        backbone.unet.set_attn_processor({name: explicit for name in backbone.unet.attn_processors})
        want = backbone.unet(x, 500, words.expand(count, -1, -1)).sample
    torch.testing.assert_close(ours, want, rtol=0, atol=1e-10)


@pytest.mark.parametrize("where, max_tokens", [("fused", 64), ("everywhere", 64), ("fused", 16)])
def test_the_equaliser_acts_where_maps_are_replaced(net, monkeypatch, where, max_tokens):
    """In the steps and layers of the fused cross-attention; its place is read off the kernel's values."""
    trajectory, heavy = inverted(net, 4), tokens_of(net, NEW, "panda")
    base = source(net, trajectory, NEW, exact=False, how="refine")
    base.alignment.weight[heavy] = 5.0
    layers = [m for n, m in net.unet.named_modules() if n.endswith(".attn2")]
    met, gave, hooks = [], {}, []
    for layer in layers:
        hooks.append(layer.to_v.register_forward_hook(lambda m, args, out: gave.update(v=out.detach())))
        kernel = layer.processor.kernel

        def spy(q, k, v, kernel=kernel):
            own = gave["v"][-F:].unflatten(-1, (k.shape[1], -1)).transpose(1, 2)
            five = 5 * own[0, :, heavy]
            # The last branch's, whole or in the part that keeps its own maps.
            met.append((q.shape[2], bool(torch.isclose(v[-F, :, heavy], five, rtol=1e-9).all())))
            return kernel(q, k, v)

        monkeypatch.setattr(layer.processor, "kernel", spy)
    fusion = FusionConfig(
        self_replace_steps=0.5,
        cross_replace_steps=0.5,
        cross="refine",
        max_resolution=math.sqrt(max_tokens) / 8,
        word_weights_where=where,
    )
    steps = []
    run(
        net, trajectory[-1], how=Sampling(3.0, fusion=fusion, source=base), steps=4,
        progress=lambda done, total: (steps.append(set(met)), met.clear()),
    )  # fmt: skip
    for hook in hooks:
        hook.remove()
    weighed = [{tokens for tokens, acts in step if acts} for step in steps]
    everywhere = {16, 64}
    fused = {tokens for tokens in everywhere if tokens <= max_tokens}
    later = everywhere if where == "everywhere" else set()
    assert weighed == [fused if where == "fused" else everywhere] * 2 + [later] * 2
