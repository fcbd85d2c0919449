"""Fewer passes: guidance in an interval of the steps, and steps of second order; on the tiny network."""

import pytest
import torch

from ctxedit import config as configuration
from ctxedit.config import AttentionConfig, Config, merge
from ctxedit.errors import ConfigError
from ctxedit.models.attention import FrameView
from ctxedit.patterns import attended_frames
from ctxedit.stages import passes
from ctxedit.stages.invert import Inverter, history_of, invert
from ctxedit.stages.sample import Sampling, sample

STEPS, FRAMES = 6, 2
ATTENTION = AttentionConfig(frames="causal")
PLAIN = {"self_replace_steps": 0.0, "cross_replace_steps": 0.0}


class Walk:
    """Samples on the tiny network and counts its passes over the clip."""

    def __init__(self, backbone):
        self.backbone, self.passes = backbone, 0.0
        self.view = FrameView(attended_frames(ATTENTION, FRAMES), (8, 8))
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(FRAMES, 4, 8, 8, generator=generator, dtype=torch.float64)
        backbone.unet.register_forward_pre_hook(self._count)

    def _count(self, module, args):
        self.passes += len(args[0]) / FRAMES

    def sample(self, steps=STEPS, x=None, **how):
        self.passes = 0.0
        levels, context = self.backbone.levels(steps), self.backbone.condition(["", "a panda"])
        with self.backbone.attention(ATTENTION):
            return sample(
                self.backbone, self.x if x is None else x, context, levels, self.view, Sampling(**how)
            )

    def invert(self, steps, solver):
        levels, context = self.backbone.levels(steps), self.backbone.condition(["a panda"])
        with self.backbone.attention(ATTENTION):
            return invert(self.backbone, self.x, context, levels, self.view, solver=solver)


@pytest.fixture()
def walk(backbone):
    return Walk(backbone)


@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.0, 0.5), (0.34, 0.84), (0.5, 0.5), (0.9, 1.0)])
def test_guidance_outside_its_interval_costs_nothing_and_is_counted(walk, interval):
    walk.sample(guidance=3.0, interval=interval)
    table = {"edit": {"steps": STEPS, "guidance": 3.0, "guidance_interval": interval}, "fusion": PLAIN}
    assert walk.passes == passes.network_passes(merge(Config(), table))
    guided = [step for step in range(STEPS) if int(STEPS * interval[0]) <= step < int(STEPS * interval[1])]
    assert walk.passes == STEPS + len(guided)


def test_guidance_acts_where_the_interval_says(walk):
    whole, none = walk.sample(guidance=3.0), walk.sample(guidance=1.0)
    assert torch.equal(walk.sample(guidance=3.0, interval=(0.0, 1.0)), whole)
    assert torch.equal(walk.sample(guidance=3.0, interval=(0.0, 0.0)), none)
    early, late = (walk.sample(guidance=3.0, interval=i) for i in ((0.0, 0.5), (0.5, 1.0)))
    assert not torch.equal(early, late) and not torch.equal(early, whole)


def test_sampling_of_second_order_ends_nearer_to_the_exact_result(walk, monkeypatch):
    """Data ~ N(0.7, 0.4²): the best prediction is known, and so is where the equation ends."""
    monkeypatch.setattr(walk.backbone, "raw", gaussian_noise(walk.backbone.alphas_cumprod))
    a, s = walk.backbone.levels(160).at(160)
    exact = 0.7 + 0.4 / (a**2 * 0.16 + s**2).sqrt() * (walk.x - a * 0.7)
    ddim, second = (
        float((walk.sample(160, guidance=1.0, solver=solver) - exact).abs().max())
        for solver in ("ddim", "dpm++2m")
    )
    assert second < 0.6 * ddim < 0.1


def test_inversion_of_second_order_costs_as_much_and_begins_like_ddims(walk):
    """The step from clean data has no level to ask at: it is DDIM's. The others ask at their own level."""
    found = {}
    for solver in ("ddim", "dpm++2m"):
        walk.passes = 0.0
        found[solver] = walk.invert(STEPS, solver)
        assert walk.passes == STEPS
    assert torch.equal(found["ddim"][1], found["dpm++2m"][1])
    assert not torch.equal(found["ddim"][2], found["dpm++2m"][2])


def gaussian_noise(bars):
    """The best prediction of the noise for data ~ N(0.7, 0.4²)."""

    def noise(x, t, condition, view):
        a, s = bars[int(t)].sqrt(), (1 - bars[int(t)]).sqrt()
        return (x - a * (0.7 + a * 0.16 / (a**2 * 0.16 + s**2) * (x - a * 0.7))) / s

    return noise


def test_there_and_back_in_second_order_misses_less_at_equal_passes(walk, monkeypatch):
    monkeypatch.setattr(walk.backbone, "raw", gaussian_noise(walk.backbone.alphas_cumprod))
    missed = {}
    for solver in ("ddim", "dpm++2m"):
        top = walk.invert(40, solver)[-1]
        back = walk.sample(40, x=top, guidance=1.0, solver=solver)
        missed[solver] = float((back - walk.x).abs().max())
    assert missed["dpm++2m"] < 0.5 * missed["ddim"]


def test_a_second_order_inversion_goes_where_the_equation_does(walk, monkeypatch):
    """Data ~ N(0.7, 0.4²): x_T is known. Half the step, less than 0.4 of the error: DDIM halves it."""
    monkeypatch.setattr(walk.backbone, "raw", gaussian_noise(walk.backbone.alphas_cumprod))

    def error(steps):
        levels = walk.backbone.levels(steps)
        (a1, s1), (a, s) = levels.at(1), levels.at(steps)
        trajectory = walk.invert(steps, "dpm++2m")
        first = trajectory[1]  # where the steps of second order begin
        exact = a * 0.7 + (a**2 * 0.16 + s**2).sqrt() / (a1**2 * 0.16 + s1**2).sqrt() * (first - a1 * 0.7)
        return float((trajectory[-1] - exact).abs().max())

    assert error(200) < 0.4 * error(100)


def test_the_shift_is_carried_up_in_second_order(walk, monkeypatch):
    """A shift that is the same for every x_0: x − b walks as if there were none."""
    levels = walk.backbone.levels(STEPS)
    level_of = {levels.timestep(n): n for n in range(1, STEPS + 1)}
    r = torch.randn(FRAMES, 4, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    class Constant:
        def at(self, x0, levels, level):
            alpha = float(levels.at(level)[0])
            return alpha * (1 - alpha) * r if level else None

    def climbed(shift):
        def noise(x, t, condition, view):
            b = shift.at(None, levels, level_of[t]) if shift else torch.zeros_like(x)
            return torch.tanh(x - b) + b / float(levels.at(level_of[t])[1])  # the shift is part of the noise

        monkeypatch.setattr(walk.backbone, "raw", noise)
        history = history_of("dpm++2m")
        inverter = Inverter(walk.backbone, None, levels, walk.view, shift)
        x = walk.x + (shift.at(None, levels, 1) if shift else 0)
        for low in range(1, STEPS):
            x = inverter.step(x, low, history=history)
        return x

    moved = climbed(Constant()) - Constant().at(None, levels, STEPS)
    torch.testing.assert_close(moved, climbed(None))


@pytest.mark.parametrize(
    "table, name",
    [
        ({"edit": {"guidance_interval": [0.5]}}, "edit.guidance_interval"),
        ({"edit": {"guidance_interval": [0.8, 0.2]}}, "edit.guidance_interval"),
        ({"edit": {"guidance_interval": [0.0, 1.5]}}, "edit.guidance_interval"),
        ({"edit": {"solver": "euler"}}, "edit.solver"),
        ({"edit": {"solver": "dpm++2m", "eta": 0.5}}, "edit.eta"),
        (
            {"invert": {"solver": "dpm++2m", "fixed_point_iterations": 1}},
            "invert.fixed_point_iterations",
        ),
    ],
)
def test_refused_settings(table, name):
    with pytest.raises(ConfigError, match=name):
        configuration.load("ddim", flags=table, environ={})


@pytest.mark.parametrize(
    "value, said, hint",
    [
        (0.5, "= 0.5", "must be a list of numbers"),
        ([0.9, 0.1], "= [0.9, 0.1]", "it must be two shares in order, e.g. [0.2, 0.8]"),
        (["a", 1], "= 'a'", "must be a number"),
    ],
)
def test_an_interval_is_a_list_of_two_shares(value, said, hint):
    with pytest.raises(ConfigError) as refused:
        configuration.load("ddim", flags={"edit": {"guidance_interval": value}}, environ={})
    assert said in str(refused.value) and refused.value.hint == hint
