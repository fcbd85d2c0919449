"""What makes each preset itself, seen at the networks while it runs on a tiny Stable Diffusion folder."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from spies import Spy

from ctxedit import config
from ctxedit.editing.request import Request
from ctxedit.editing.session import Session
from ctxedit.media.write import write_clip
from ctxedit.synthetic import scenes

PROMPT, TARGET = "a tiger walking on the beach", "a panda walking on the beach"
F, STEPS = 4, 6
PRESETS = config.preset_names()
CONTROLLED = ("controlvideo", "controlvideo+adapter")
#: Methods with temporal attention.
TEMPORAL = ("tune-a-video", "fatezero-shape", "controlvideo")
#: Frames that each of four takes keys and values from.
SEEN = {
    "contextdiff": ({0}, {0, 1}, {0, 1, 2}, {1, 2, 3}),
    "sdedit": ({0}, {0, 1}, {0, 1, 2}, {1, 2, 3}),
    "tune-a-video": ({0}, {0}, {0, 1}, {0, 2}),
    "fatezero": ({1}, {1}, {1}, {1}),
    "fatezero-shape": ({0}, {0}, {0, 1}, {0, 2}),
    "controlvideo": ({0}, {0}, {0}, {0}),
    "ddim": ({0}, {1}, {2}, {3}),
}
#: What tuning moves of the denoiser and of the ControlNet, by path.
MOVES = {
    "contextdiff": (".attn1.to_q.", ".attn2.to_q."),
    "tune-a-video": (".attn1.to_q.", ".attn2.to_q."),
    "controlvideo": (".attn1.to_out.",),
    "fatezero": (),
    "fatezero-shape": (".attn1.to_q.", ".attn2.to_q."),
    "sdedit": (),
    "ddim": (),
}
#: Steps, from noise, in which the source's self- and cross-attention serve: half of six.
FUSED = {"contextdiff": 3, "fatezero": 3, "fatezero-shape": 3}
#: Methods whose published networks are inflated to video: group norms over the clip, the scheduler's ᾱ_0.
INFLATED = ("tune-a-video", "fatezero", "fatezero-shape", "controlvideo")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    scene = scenes.draw_scene(np.random.default_rng(0), pairs=0.0)
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    return write_clip(path, scenes.render(scene, 12, 64)[0], Fraction(8))


@pytest.fixture(scope="module")
def spied(clip, stable_diffusion, controlnet, tmp_path_factory):
    """Each preset's run, made once, with its spy."""
    runs: dict[str, Spy] = {}

    def get(preset) -> Spy:
        if preset not in runs:
            flags = {
                "model": str(stable_diffusion),
                "control": {"model": str(controlnet)},
                "clip": {"frames": F, "stride": 1},
                "tune": {"save_every": 3, "lr": 1e-3},
                "adapter": {"width": 32, "heads": 4, "blocks": 1},
                "invert": {"steps": STEPS},
                "edit": {"steps": STEPS, "guidance": 2.0},
                "fusion": {"mask_resolution": 1.0, "max_resolution": 1.0},
            }
            if base(preset) == "fatezero":
                flags["attention"] = {"min_channels": 32}  # the tiny network has levels of 16 and 32
            settings = config.load(preset, flags=flags, environ={})
            few = replace(settings.tune, steps=min(3, settings.tune.steps))
            runs_folder = tmp_path_factory.mktemp("runs")
            settings = replace(settings, tune=few)
            with Session(Request(clip, settings, preset, PROMPT, runs=runs_folder)) as session:
                spy = Spy(session)
                session.tune()
                spy.trajectory = session.invert()
                session.edit(TARGET)
                spy.attended = attention_map(spy)
                spy.alpha_0 = float(session.parts.backbone.levels(STEPS).at(0)[0] ** 2)
                spy.norms = clip_norms_of(session)
            runs[preset] = spy
        return runs[preset]

    return get


def attention_map(spy):
    """Frames that each frame took keys from, in all of the run's plain calls; and in the ControlNet."""
    pairs = spy.self_attention.saw
    return tuple({j for i, j in pairs if i == frame} for frame in range(F))


def clip_norms_of(session):
    """By network: the group norms whose answer for a frame depends on the clip's other frames."""
    found = {}
    for name, net in zip(("unet", "controlnet"), session.parts.backbone.networks, strict=False):
        found[name] = set()
        for path, norm in net.named_modules():
            if isinstance(norm, torch.nn.GroupNorm):
                x = torch.randn(F, norm.num_channels, 3, 3, generator=torch.Generator().manual_seed(0))
                other = torch.cat([x[:1], 2 * x[1:] + 1])
                with torch.no_grad(), session.parts.view.in_effect():
                    if not torch.equal(norm(x)[0], norm(other)[0]):
                        found[name].add(path)
    return found


def base(preset):
    """The method without what it adds to, or leaves out of, its parts."""
    return preset.removesuffix("+adapter").removesuffix("-adapter")


@pytest.mark.parametrize("preset", PRESETS)
def test_each_frame_sees_the_frames_of_its_method(spied, preset):
    assert spied(preset).attended == SEEN[base(preset)]


@pytest.mark.parametrize("preset", ["fatezero", "fatezero-shape", "contextdiff"])
def test_what_frames_see_in_a_narrow_layer(spied, preset):
    pairs = spied(preset).narrow_attention.saw
    seen = tuple({j for i, j in pairs if i == frame} for frame in range(F))
    assert seen == (({0}, {1}, {2}, {3}) if preset == "fatezero" else SEEN[preset])


@pytest.mark.parametrize("preset", PRESETS)
def test_what_group_norms_take_their_statistics_over(spied, preset):
    spy = spied(preset)
    inflated = base(preset) in INFLATED
    for net, norms in spy.norms.items():
        outside = {"conv_norm_out"} if net == "unet" else set()
        assert (outside <= norms and any(".resnets." in n for n in norms)) if inflated else not norms
        assert all(".resnets." in n for n in norms - outside), "not those of the transformers"
    assert set(spy.norms) == ({"unet", "controlnet"} if preset in CONTROLLED else {"unet"})
    # The tiny scheduler says set_alpha_to_one = false, as Stable Diffusion's.
    assert spy.alpha_0 == pytest.approx(1 - 0.00085 if inflated else 1.0, abs=1e-12)


@pytest.mark.parametrize("preset", CONTROLLED)
def test_the_controlnet_sees_the_key_frame_as_the_denoiser_does(spied, preset):
    pairs = spied(preset).control_attention.saw
    assert pairs == {(i, 0) for i in range(F)}


@pytest.mark.parametrize("preset", PRESETS)
def test_tuning_moves_what_the_method_trains_and_nothing_else(spied, preset):
    spy = spied(preset)
    moved, everything = spy.moved(), set(spy.before)
    wanted = {
        name
        for name in everything
        if name.startswith(("unet.", "controlnet.")) and any(part in name for part in MOVES[base(preset)])
    }
    networks = {name for name in moved if not name.startswith(("temporal.", "adapter."))}
    assert networks == wanted
    assert any(n.startswith("controlnet.") for n in wanted) == (preset in CONTROLLED)
    temporal = base(preset) in TEMPORAL
    assert any(n.startswith("temporal.") for n in moved) == temporal
    assert any(n.startswith("temporal.") for n in everything) == temporal
    assert not any(n.startswith("temporal.") and ".norm." in n for n in moved), "its norms stay"
    ends = (".down.weight", ".up.weight")
    convolutions = {n for n in everything if n.startswith("temporal.") and n.endswith(ends)}
    assert bool(convolutions) == (base(preset) == "fatezero-shape") and convolutions <= moved
    adapter = preset == "contextdiff" or preset.endswith("+adapter")
    assert any(n.startswith("adapter.") for n in moved) == adapter
    assert (len(spy.during("tune")) > 0) == bool(moved)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_shift_is_there_where_there_is_an_adapter(spied, preset):
    spy = spied(preset)
    if preset == "contextdiff" or preset.endswith("+adapter"):
        assert spy.shifts[0] == ("tune", 0.0), "an untuned adapter changes nothing"
        for phase in ("invert", "edit"):
            assert all(size > 0 for at, size in spy.shifts if at == phase)
            assert any(at == phase for at, _ in spy.shifts)
    else:
        assert spy.shifts == [] and spy.adapter is None


@pytest.mark.parametrize("preset", PRESETS)
def test_the_controlnet_runs_beside_every_call_or_not_at_all(spied, preset):
    spy = spied(preset)
    residuals = [c.residual for c in spy.calls]
    if preset not in CONTROLLED:
        assert spy.control == [] and set(residuals) == {None}
        return
    assert all(r is not None and r > 0 for r in residuals)
    assert spy.control == [(c.phase, c.batch) for c in spy.calls], "for every branch"
    assert {c.phase for c in spy.calls} == {"tune", "invert", "edit"}


@pytest.mark.parametrize("preset", PRESETS)
def test_the_inversions_prompt_and_start(spied, preset):
    spy = spied(preset)
    inverted, edited = spy.during("invert"), spy.during("edit")
    if preset == "sdedit":
        top = round(STEPS * 0.6)
        assert inverted == [] and len(edited) == top < STEPS, "noise for part of the way, nothing inverted"
        assert edited[0].timestep < 1000 * 0.7
        return
    prompt = "" if base(preset) == "tune-a-video" else PROMPT
    wanted = spy.session.parts.backbone.embed([prompt]).repeat(F, 1, 1)
    assert len(inverted) == STEPS and all(torch.equal(c.words, wanted) for c in inverted)
    own = [c for c in edited if c.batch > F]
    assert len(own) == STEPS
    assert torch.equal(own[0].sample[-F:], spy.trajectory[-1].to(own[0].sample))
    assert [c.timestep for c in own] == [c.timestep for c in reversed(inverted)]


@pytest.mark.parametrize("preset", PRESETS)
def test_the_sources_attention_serves_in_its_steps(spied, preset):
    spy = spied(preset)
    steps = [c for c in spy.during("edit") if c.batch > F]
    fused = FUSED.get(base(preset), 0)
    blended = base(preset) == "fatezero-shape"
    # Replacement, where the words stand one for one, maps the target's own values; refinement some of them.
    values = None if base(preset) in ("fatezero", "fatezero-shape") else 2
    # Branches: 0 the source, 1 unconditional, 2 conditional.
    for number, call in enumerate(steps):
        here = number < fused
        assert call.batch == (3 if here else 2) * F
        assert ((0, 0, 2) in call.self_met) == here, "the source's self-attention on the target's values"
        assert ((0, 0, values) in call.cross_met) == here, "the source's cross-attention on its words"
        assert ((2, 2, 2) in call.self_met) == (here and blended), "the target's own inside a mask"
    masks = [c for c in spy.during("edit") if c.batch == F]
    assert len(masks) == (fused if blended else 0), "one pass of the source for each step's mask"


@pytest.mark.parametrize("preset", [p for p in PRESETS if base(p) in TEMPORAL])
def test_where_temporal_attention_stands_and_how_it_begins(spied, preset):
    spy = spied(preset)
    unet, names = spy.session.parts.backbone.unet, [n for n in spy.before if n.startswith("temporal.")]
    if base(preset) != "controlvideo":
        blocks = sum(type(m).__name__ == "BasicTransformerBlock" for m in unet.modules())
        closed = [n for n in names if ".to_out." in n]
        assert len(closed) == 2 * blocks and not any(spy.before[n].any() for n in closed)
        return
    closed = [n for n in names if ".zero." in n]
    assert closed and not any(spy.before[n].any() for n in closed)
    assert not any("mid_block" in n for n in names)
    for name in names:
        if name not in closed:
            there = name.removeprefix("temporal.").replace("/", ".")
            path, _, rest = there.rpartition(".to_")
            twin = f"unet.{path}.attn1.to_{rest}".replace("to_out.", "to_out.0.")
            assert torch.equal(spy.before[name], spy.before[twin]), "copied from self-attention"
