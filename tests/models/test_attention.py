"""Clip attention and fusion against explicit, stored maps."""

import math

import pytest
import torch

from ctxedit.config import AttentionConfig
from ctxedit.errors import ConfigError
from ctxedit.models.alignment import align, columns
from ctxedit.models.attention import (
    AttentionRecorder,
    FrameView,
    Fusion,
    across_frames,
    frame_attention,
    sdpa,
)
from ctxedit.patterns import attended_frames

F, SIDE = 3, (16, 16)


def installed(backbone, backend="sdpa"):
    return frame_attention(backbone.unet, backbone.attention_sites(backbone.unet), backend)


def view(rule="causal", **changes):
    return FrameView(attended_frames(AttentionConfig(frames=rule), F), SIDE, **changes)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softmax_map(q, k):
    """The explicit map, (…, queries, keys)."""
    return torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), -1)


@pytest.mark.parametrize(
    "attended",
    [
        *(
            attended_frames(AttentionConfig(frames=rule), 5)
            for rule in ("causal", "sparse-causal", "key-frame")
        ),
        ((0, 5), (1, 5), (2, 5), (3, 5), (4, 5)),  # an anchor behind the frames
        ((4, 0), (2, 2), (3, 1), (0,), (1,)),  # no pattern at all
    ],
)
@pytest.mark.parametrize("branches", [1, 2])
def test_keys_are_gathered_alike_with_and_without_a_gradient(attended, branches):
    """Bit for bit: tuning gathers by an index, everything else by slices."""
    q = draw(branches * 5, 2, 3, 4)
    k, v = (draw(branches * 6, 2, 3, 4, seed=seed) for seed in (1, 2))
    found = across_frames(q, k, v, attended, sdpa)
    assert torch.equal(found, across_frames(q, k.requires_grad_(), v.requires_grad_(), attended, sdpa))
    first = softmax_map(q[0], torch.cat([k[i] for i in attended[0]], 1)) @ torch.cat(
        [v[i] for i in attended[0]], 1
    )
    assert torch.allclose(found[0], first)


class TestSeenFrames:
    def test_causal_is_itself_and_two_before(self):
        assert attended_frames(AttentionConfig(), 5) == ((0,), (0, 1), (0, 1, 2), (1, 2, 3), (2, 3, 4))

    def test_window_is_a_setting(self):
        assert attended_frames(AttentionConfig(window=2), 4) == ((0,), (0, 1), (1, 2), (2, 3))

    def test_sparse_causal_is_first_and_previous_without_itself(self):
        assert attended_frames(AttentionConfig(frames="sparse-causal"), 4) == ((0,), (0,), (0, 1), (0, 2))

    def test_key_frame(self):
        assert attended_frames(AttentionConfig(frames="key-frame", key_frame=-1), 5) == ((2,),) * 5
        assert attended_frames(AttentionConfig(frames="key-frame", key_frame=-1), 8) == ((3,),) * 8, (
            "(n − 1) // 2"
        )
        assert attended_frames(AttentionConfig(frames="key-frame", key_frame=-1), 1) == ((0,),)
        with pytest.raises(ConfigError):
            attended_frames(AttentionConfig(frames="key-frame", key_frame=5), 5)

    def test_none_is_itself(self):
        assert attended_frames(AttentionConfig(frames="none"), 2) == ((0,), (1,))


@pytest.mark.parametrize("rule", ["causal", "sparse-causal", "key-frame", "none"])
def test_across_frames_equals_masked_attention_over_all_frames(rule):
    attended = attended_frames(AttentionConfig(frames=rule), 5)
    q, k, v = (draw(2 * 5, 2, 7, 4, seed=s) for s in range(3))
    out = across_frames(q, k, v, attended, sdpa)
    for branch in range(2):
        for i, frames in enumerate(attended):
            # One query frame against every frame's keys, those not seen masked out.
            keys, values = (x[branch * 5 : branch * 5 + 5].transpose(0, 1).flatten(1, 2) for x in (k, v))
            allowed = torch.tensor([f in frames for f in range(5)]).repeat_interleave(7)
            scores = q[branch * 5 + i] @ keys.transpose(-1, -2) / 2
            maps = torch.softmax(scores.masked_fill(~allowed, -torch.inf), -1)
            torch.testing.assert_close(out[branch * 5 + i], maps @ values, rtol=0, atol=1e-12)


class Explicit:
    """An oracle: materialises every map, stores the source's, edits the target's as the papers write it."""

    def __init__(self, name, store, mode, alignment=None, mask=None, attended=None):
        self.name, self.store, self.mode = name, store, mode
        self.alignment, self.mask, self.attended = alignment, mask, attended

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, view=None, **_):
        cross = encoder_hidden_states is not None
        context = encoder_hidden_states if cross else hidden_states
        q, k, v = (
            f(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for f, x in ((attn.to_q, hidden_states), (attn.to_k, context), (attn.to_v, context))
        )
        outs = []
        for i in range(q.shape[0]):
            frames = [i] if cross else list(self.attended[i])
            keys, values = (torch.cat([x[f] for f in frames], 1) for x in (k, v))
            maps = softmax_map(q[i], keys)
            slot = (self.name, i)
            if self.mode == "store":
                self.store[slot] = maps
            else:
                maps = self.edited(maps, self.store[slot], cross, i)
            outs.append(maps @ values)
        out = torch.stack(outs).transpose(1, 2).flatten(2)
        return attn.to_out[0](out)

    def edited(self, own, source, cross, frame):
        if cross:
            if self.alignment is None:
                return own
            a, e = self.alignment.share.double(), self.alignment.weight.double()
            return (source @ self.alignment.mapper.double() * a + own * (1 - a)) * e
        if self.mask is None:
            return source
        side = int(math.sqrt(own.shape[-2]))
        m = torch.nn.functional.interpolate(self.mask[frame : frame + 1], (side, side)).flatten()[:, None]
        return m * own + (1 - m) * source


def explicit_target(backbone, x_s, x_t, words, t, alignment, mask, attended):
    """The target's output with the source's maps, stored first, put into it."""
    store, unet = {}, backbone.unet
    names = list(unet.attn_processors)
    for mode, x, context in (("store", x_s, words[:1]), ("edit", x_t, words[1:])):
        unet.set_attn_processor({n: Explicit(n, store, mode, alignment, mask, attended) for n in names})
        out = unet(x, t, context.expand(F, -1, -1)).sample
    return out


CASES = {
    "replace": ("a tiger walking on the beach", "a panda walking on the beach", "auto", None),
    "replace a place": ("a tiger walking on the beach", "a tiger walking in the forest", "auto", None),
    "words of other lengths": ("a cat on the beach", "a xyzzyqwerty on the beach", "replace", None),
    "refine": ("a tiger on the beach", "a watercolor painting of a tiger on the beach", "auto", None),
    "reweight": (
        "a tiger on the beach",
        "a tiger on the beach, watercolor style",
        "refine",
        {"watercolor": 7.0},
    ),
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("rule", ["causal", "none"])
def test_fusion_equals_stored_maps(backbone, case, masked, rule):
    source, target, how, weights = CASES[case]
    alignment = align(backbone.words(source), backbone.words(target), backbone.context_length, how, weights)
    words = backbone.embed([source, "", target])
    x_s, x_t = draw(F, 4, *SIDE, seed=1), draw(F, 4, *SIDE, seed=2)
    mask = (draw(F, 1, *SIDE, seed=3) > 0).double() if masked else None
    attended = view(rule).attended
    fusion = Fusion(True, alignment, min_halvings=0, mask=mask)
    with torch.no_grad(), installed(backbone):
        branches = view(rule, branches=3, fusion=fusion)
        got = backbone.raw(torch.cat([x_s, x_t, x_t]), 500, words, branches).chunk(3)
        plain = backbone.raw(x_s, 500, words[:1], view(rule))
        uncond = backbone.raw(x_t, 500, words[1:2], view(rule))
        unfused = backbone.raw(x_t, 500, words[2:], view(rule))
    with torch.no_grad():
        want = explicit_target(backbone, x_s, x_t, words[[0, 2]], 500, alignment, mask, attended)
    torch.testing.assert_close(got[2], want, rtol=0, atol=1e-10)
    # The other branches are as if they ran alone, and fusion did change the target's.
    torch.testing.assert_close(got[0], plain, rtol=0, atol=1e-10)
    torch.testing.assert_close(got[1], uncond, rtol=0, atol=1e-10)
    assert (got[2] - unfused).abs().max() > 1e-4


def test_fusing_the_source_with_itself_changes_nothing(backbone):
    prompt = "a tiger walking on the beach"
    words = backbone.words(prompt)
    fusion = Fusion(True, align(words, words, backbone.context_length), min_halvings=0)
    context = backbone.embed([prompt, "", prompt])
    x = draw(F, 4, *SIDE)
    with torch.no_grad(), installed(backbone):
        out = backbone.raw(x.repeat(3, 1, 1, 1), 300, context, view(branches=3, fusion=fusion)).chunk(3)
    torch.testing.assert_close(out[2], out[0], rtol=0, atol=1e-12)


def test_large_layers_are_left_alone(backbone):
    source, target = "a tiger on the beach", "a panda on the beach"
    alignment = align(backbone.words(source), backbone.words(target), backbone.context_length)
    context = backbone.embed([source, "", target])
    x = torch.cat([draw(F, 4, *SIDE, seed=s) for s in (1, 2, 2)])
    with torch.no_grad(), installed(backbone):
        outs = [
            backbone.raw(x, 500, context, view(branches=3, fusion=Fusion(True, alignment, halvings))).chunk(
                3
            )[2]
            for halvings in (0, 1, 9)
        ]
        plain = backbone.raw(x[F : 2 * F], 500, context[2:], view())
    torch.testing.assert_close(outs[2], plain, rtol=0, atol=1e-12)
    assert (outs[0] - outs[1]).abs().max() > 1e-5
    assert (outs[1] - plain).abs().max() > 1e-5


def test_heat_map_is_the_mean_of_the_words_columns(backbone):
    prompt = "a tiger walking on the beach"
    words = [w for w in backbone.words(prompt) if w.text in ("tiger", "beach")]
    x, context = draw(F, 4, *SIDE), backbone.embed([prompt])
    recorder = AttentionRecorder(columns(words, backbone.context_length), 0, SIDE, halvings=0)
    with torch.no_grad(), installed(backbone):
        backbone.raw(x, 500, context, view(recorders=(recorder,)))
    store = {}
    names = list(backbone.unet.attn_processors)
    backbone.unet.set_attn_processor(
        {n: Explicit(n, store, "store", attended=view().attended) for n in names}
    )
    with torch.no_grad():
        backbone.unet(x, 500, context.expand(F, -1, -1))
    layers = [n for n in names if "attn2" in n and store[n, 0].shape[-2] == 256]
    maps = torch.stack([torch.stack([store[n, f] for f in range(F)]) for n in layers]).mean((0, 2))
    want = torch.stack([maps[..., list(w.tokens)].sum(-1) for w in words], 1).unflatten(-1, SIDE)
    torch.testing.assert_close(recorder.mean().double(), want, rtol=0, atol=1e-6)


def test_a_side_that_is_no_power_of_two_halves_as_the_unet_halves_it():
    assert FrameView(((0,),), (9, 16)).side_at(1) == (5, 8)


def test_attention_is_put_back(backbone):
    before = {k: type(p) for k, p in backbone.unet.attn_processors.items()}
    with pytest.raises(RuntimeError, match="inside"), installed(backbone):
        raise RuntimeError("inside")
    assert {k: type(p) for k, p in backbone.unet.attn_processors.items()} == before


def test_without_frames_seeing_each_other_it_is_the_stock_network(backbone):
    x, context = draw(F, 4, *SIDE), backbone.embed(["a tiger"])
    with torch.no_grad():
        stock = backbone.unet(x, 500, context.expand(F, -1, -1)).sample
        with installed(backbone):
            ours = backbone.raw(x, 500, context, view("none"))
    torch.testing.assert_close(ours, stock, rtol=0, atol=1e-12)


def test_xformers_missing_is_said(backbone):
    try:
        import xformers  # noqa: F401
    except ImportError:
        with pytest.raises(ConfigError, match="xformers"), installed(backbone, "xformers"):
            pass
