"""Inversion against diffusers' inverse scheduler; the way up and down again, the adapter on and off."""

import math

import pytest
import torch
from diffusers import DDIMInverseScheduler

from ctxedit.config import AdapterConfig, AttentionConfig
from ctxedit.diffusion.ddim import ddim
from ctxedit.diffusion.forward import keep_norm
from ctxedit.diffusion.schedule import alphas_cumprod, levels
from ctxedit.errors import NumericsError
from ctxedit.models.adapter import ContextAdapter
from ctxedit.models.attention import FrameView
from ctxedit.models.backbones import load_backbone
from ctxedit.models.shift import ContextShift
from ctxedit.patterns import attended_frames
from ctxedit.stages.invert import invert
from ctxedit.stages.sample import Sampling, sample

F, SIDE, STEPS = 2, (8, 8), 6
VIEW = FrameView(attended_frames(AttentionConfig(), F), SIDE)
PROMPT = "a tiger walking on the beach"


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module", params=["stable_diffusion", "stable_diffusion_2"])
def smooth(request):
    """The tiny networks with a small last layer: nearby levels predict nearly alike, as in a trained one."""
    backbone = load_backbone(str(request.getfixturevalue(request.param)), torch.device("cpu"), torch.float64)
    backbone.unet.conv_out.weight.data.mul_(0.1)
    with backbone.attention(AttentionConfig()):
        yield backbone


def shift_of(backbone, prompt=PROMPT, bound=0.1, zero=False):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = AdapterConfig(width=32, blocks=2, heads=4, bound=bound)
        adapter = ContextAdapter(config, 4, backbone.context_width).requires_grad_(False)
        if not zero:
            torch.nn.init.normal_(adapter.out.weight)
    return ContextShift(adapter, backbone.embed([prompt]), F)


def up(backbone, latents, shift=None, fixed_point_iterations=0, steps=STEPS, **more):
    return invert(
        backbone,
        latents,
        backbone.embed([PROMPT]),
        backbone.levels(steps),
        VIEW,
        shift,
        fixed_point_iterations,
        **more,
    )


def round_trip(backbone, latents, shift=None, fixed_point_iterations=0, steps=STEPS):
    """Relative error of inverting and sampling with the same prompt."""
    noise = up(backbone, latents, shift, fixed_point_iterations, steps)[-1]
    context = backbone.embed(["", PROMPT])
    back = sample(backbone, noise, context, backbone.levels(steps), VIEW, Sampling(1.0), shift)
    return float((back - latents).norm() / latents.norm())


@pytest.mark.parametrize("zero_shift", [False, True])
@pytest.mark.parametrize("steps", [1, 5, 10])
def test_without_a_shift_it_is_diffusers_inverse(smooth, steps, zero_shift):
    # Its neighbour of a level is num_train // steps away, ours the next used level: alike for "leading".
    scheduler = DDIMInverseScheduler.from_config({**smooth._scheduler, "set_alpha_to_one": True})
    scheduler.set_timesteps(steps)
    x, context = draw(F, 4, *SIDE), smooth.embed([PROMPT])
    want = [x]
    for t in scheduler.timesteps:
        with torch.no_grad():
            out = smooth.raw(want[-1], int(t), context, VIEW)
        want.append(scheduler.step(out, t, want[-1]).prev_sample)
    got = up(smooth, x, shift_of(smooth, zero=True) if zero_shift else None, steps=steps)
    assert got.shape == (steps + 1, F, 4, *SIDE)
    torch.testing.assert_close(got, torch.stack(want), rtol=1e-5, atol=1e-5)


class TestRoundTrip:
    x = draw(F, 4, *SIDE)

    def test_with_the_adapter_on_about_as_well_as_off(self, smooth):
        off, on = round_trip(smooth, self.x), round_trip(smooth, self.x, shift_of(smooth))
        print(f"round trip {smooth.prediction}: off {off:.1e}, on {on:.1e}")
        assert off < 0.6
        assert on < 1.5 * off

    def test_the_adapter_is_really_on(self, smooth):
        plain, shifted = up(smooth, self.x), up(smooth, self.x, shift_of(smooth))
        moved = (shifted - plain).flatten(1).norm(dim=1)
        # Leaving clean data the head's noise is taken as it is, its share of the shift included.
        assert (moved[:2] < 1e-12).all()
        assert (moved[2:] > 1e-3).all()
        # And only where both ways have it does one lead back.
        noise = up(smooth, self.x, shift_of(smooth), 4)[-1]
        context, used = smooth.embed(["", PROMPT]), smooth.levels(STEPS)
        errors = [
            (sample(smooth, noise, context, used, VIEW, Sampling(1.0), shift) - self.x).norm()
            for shift in (None, shift_of(smooth))
        ]
        assert errors[0] > 3 * errors[1]

    def test_refinements_lead_to_the_exact_inverse(self, smooth):
        errors = [round_trip(smooth, self.x, None, n) for n in (0, 1, 3, 10)]
        print("refined", smooth.prediction, *(f"{e:.1e}" for e in errors))
        assert errors == sorted(errors, reverse=True)
        assert errors[1] < 0.6 * errors[0]
        assert errors[3] < 1e-4

    def test_refinements_lead_there_with_the_adapter_too(self, smooth):
        errors = [round_trip(smooth, self.x, shift_of(smooth), n) for n in (0, 1, 3, 10)]
        print("refined, adapter on", smooth.prediction, *(f"{e:.1e}" for e in errors))
        assert errors[1] < 0.6 * errors[0]
        assert errors[3] < 3e-3

    def test_one_refined_step_is_the_step_down_undone(self, smooth):
        """Level by level: going down one step from a refined level gives the level below."""
        shift = shift_of(smooth, bound=0.02)
        trajectory = up(smooth, self.x, shift, 8)
        context, all_levels = smooth.embed(["", PROMPT]), smooth.levels(STEPS)
        for high in range(1, STEPS + 1):
            low = first_step(smooth, trajectory[high], context, all_levels, high, shift)
            torch.testing.assert_close(low, trajectory[high - 1], rtol=0, atol=2e-3)


def first_step(backbone, x, context, used, high, shift):
    """One step of the sampler, written out."""
    with torch.no_grad():
        x0 = backbone.predict_x0(x, used.timestep(high), context[1:], *used.at(high), VIEW)
        b, b_low = shift.at(x0, used, high), shift.at(x0, used, high - 1)
        return ddim(x, x0, *used.at(high), *used.at(high - 1), b, b_low)


@pytest.mark.parametrize("fixed_point_iterations", [0, 2])
def test_progress_counts_network_evaluations(smooth, fixed_point_iterations):
    told, calls = [], []
    hook = smooth.unet.register_forward_pre_hook(lambda *_: calls.append(1))
    up(
        smooth,
        draw(F, 4, *SIDE),
        fixed_point_iterations=fixed_point_iterations,
        progress=lambda *row: told.append(row),
    )
    hook.remove()
    total = STEPS * (1 + fixed_point_iterations)
    assert told == [(i + 1, total) for i in range(total)]
    assert len(calls) == total


def test_nan_is_said_with_its_timestep(smooth):
    x = draw(F, 4, *SIDE)
    x[0, 0, 0, 0] = math.nan
    with pytest.raises(NumericsError, match=f"timestep {smooth.levels(STEPS).timestep(1)}"):
        up(smooth, x)


def test_no_gradient_is_kept(smooth):
    assert not up(smooth, draw(F, 4, *SIDE), shift_of(smooth)).requires_grad


@pytest.mark.parametrize("norm", ["free", "kept"])
def test_a_perfect_network_is_inverted_exactly_whatever_the_shift(norm):
    """With x̂_0 known exactly the way up is the contextualized marginal's, at every level (Eq 9-11)."""
    used = levels(alphas_cumprod(), 8)
    clean, noise = draw(F, 4, *SIDE), draw(F, 4, *SIDE, seed=1)
    r = draw(F, 4, *SIDE, seed=2)

    def shift(a):
        return keep_norm(a * (1 - a) * r, clean, a) if norm == "kept" else a * (1 - a) * r

    class Perfect:
        prediction = "epsilon"

        def raw(self, x, t, context, view):
            # The effective noise of the level whose timestep is told.
            level = next(i for i in range(1, 9) if used.timestep(i) == t)
            a, s = used.at(level)
            return noise + shift(a) / s

    class Constant:
        def at(self, x0, levels_, level):
            a = levels_.alpha[level]
            return None if level == 0 else shift(a)

    got = invert(Perfect(), clean, None, used, VIEW, Constant())
    for level in range(9):
        a, s = used.at(level)
        want = a * clean + shift(a) + s * noise
        torch.testing.assert_close(got[level], want, rtol=0, atol=1e-10)


def test_a_head_for_x0_says_the_noise_of_the_level_it_was_told():
    """Its first step up starts from clean data, which holds no noise: x̂_0 itself is not taken for it."""
    used = levels(alphas_cumprod(), 4)
    clean, guess = draw(F, 4, *SIDE), draw(F, 4, *SIDE, seed=1)

    class Head:
        prediction = "sample"

        def raw(self, x, t, context, view):
            return guess

    got = invert(Head(), clean, None, used, VIEW)
    a, s = used.at(1)
    noise = (clean - a * guess) / s  # what the head takes for noise when it is told level 1
    torch.testing.assert_close(got[1], a * clean + s * noise, rtol=0, atol=1e-10)
