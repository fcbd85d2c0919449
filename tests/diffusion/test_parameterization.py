from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler

from ctxedit.diffusion.forward import marginal
from ctxedit.diffusion.parameterization import from_x0, loss_weight, to_noise, to_x0
from ctxedit.diffusion.schedule import levels

KINDS = ["epsilon", "v_prediction", "sample"]
LEVELS = [(0.8, 0.6), (0.0683, (1 - 0.0683**2) ** 0.5), (0.3, 0.7)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", LEVELS, ids=["middle", "noisy", "flow"])
def test_to_x0_and_from_x0_are_inverse(kind, level, randn):
    output, x0, x_t = randn(), randn(), randn()
    back = to_x0(from_x0(x0, x_t, *level, kind), x_t, *level, kind)
    torch.testing.assert_close(back, x0, rtol=1e-10, atol=1e-10)
    forth = from_x0(to_x0(output, x_t, *level, kind), x_t, *level, kind)
    torch.testing.assert_close(forth, output, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_to_x0_is_diffusers(kind, randn, in_double):
    theirs = in_double(DDIMScheduler(clip_sample=False, prediction_type=kind))
    theirs.set_timesteps(20)
    used = levels(theirs.alphas_cumprod, 20, steps_offset=0)
    for level in (1, 10, 20):
        output, x_t = randn(), randn()
        expected = theirs.step(output, used.timestep(level), x_t).pred_original_sample
        torch.testing.assert_close(to_x0(output, x_t, *used.at(level), kind), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_without_a_shift_targets_are_the_ordinary_ones(kind, randn, in_double):
    theirs = in_double(DDIMScheduler(clip_sample=False))
    used = levels(theirs.alphas_cumprod, 20, steps_offset=0)
    x0, eps = randn(), randn()
    timestep = torch.tensor([used.timestep(10)] * 2)
    expected = eps if kind == "epsilon" else theirs.get_velocity(x0, eps, timestep)
    target = from_x0(x0, marginal(x0, eps, *used.at(10)), *used.at(10), kind)
    torch.testing.assert_close(target, expected, rtol=1e-9, atol=1e-9)


def test_with_a_shift_the_noise_head_gives_x0_without_knowing_it(randn):
    x0, eps, shift = randn(), randn(), randn()
    x_t = marginal(x0, eps, 0.6, 0.8, shift)
    torch.testing.assert_close(to_x0(eps + shift / 0.8, x_t, 0.6, 0.8, "epsilon"), x0, rtol=1e-12, atol=1e-12)


def test_snr_weight_makes_the_x0_loss_the_noise_loss(sd_levels, randn):
    signal, noise = sd_levels.alpha[[3, 17]], sd_levels.sigma[[3, 17]]
    x0, x_t, output = randn(), randn(), randn()
    x0_loss = ((to_x0(output, x_t, signal, noise, "epsilon") - x0) ** 2).flatten(1).mean(1)
    noise_loss = ((output - from_x0(x0, x_t, signal, noise, "epsilon")) ** 2).flatten(1).mean(1)
    torch.testing.assert_close(loss_weight(signal, noise) * x0_loss, noise_loss, rtol=1e-10, atol=0)


def test_other_weights():
    signal = torch.tensor([0.99, 0.8, 0.1], dtype=torch.float64)
    noise = (1 - signal**2).sqrt()
    assert loss_weight(signal, noise, "one").tolist() == [1, 1, 1]
    bounded = loss_weight(signal, noise, "min_snr", gamma=3.0)
    torch.testing.assert_close(bounded, torch.tensor([3.0, 0.64 / 0.36, 0.01 / 0.99], dtype=torch.float64))


@pytest.mark.parametrize(
    "call",
    [
        lambda x: to_x0(x, x, 0.6, 0.8, "score"),
        lambda x: from_x0(x, x, 0.6, 0.8, "score"),
        lambda x: loss_weight(0.6, 0.8, "p2"),
        lambda x: to_x0(x, x, 0.0, 1.0, "epsilon"),
        lambda x: from_x0(x, x, 1.0, 0.0, "v_prediction"),
        lambda x: loss_weight(1.0, 0.0),
    ],
    ids=[
        "to",
        "from",
        "weight",
        "noise head at zero alpha",
        "clean data has no velocity",
        "infinite weight",
    ],
)
def test_what_has_no_meaning_is_refused(call, randn):
    with pytest.raises(ValueError):
        call(randn())


@pytest.mark.parametrize(
    ("kind", "level"),
    [("epsilon", (0.6, 0.8)), ("v_prediction", (0.6, 0.8)), ("sample", (0.6, 0.8)), ("flow", (0.3, 0.7))],
)
def test_every_head_says_the_same_noise_and_signal(kind, level, randn):
    """Each head's target at x_t = a x_0 + s eps stands for that x_0 and that eps."""
    x0, eps = randn(), randn()
    a, s = level
    x_t = a * x0 + s * eps
    output = {"epsilon": eps, "v_prediction": a * eps - s * x0, "sample": x0, "flow": eps - x0}[kind]
    torch.testing.assert_close(to_x0(output, x_t, a, s, kind), x0)
    torch.testing.assert_close(to_noise(output, x_t, a, s, kind), eps)
    torch.testing.assert_close(from_x0(x0, x_t, a, s, kind), output)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "flow"])
def test_at_clean_data_the_head_alone_says_the_noise(kind, randn):
    x0, eps = randn(), randn()
    output = eps - x0 if kind == "flow" else eps
    torch.testing.assert_close(to_noise(output, x0, 1.0, 0.0, kind), eps)
    with pytest.raises(ValueError):
        to_noise(x0, x0, 1.0, 0.0, "sample")


def test_velocity_is_known_at_zero_signal(randn):
    output, x_t = randn(), randn()
    assert torch.equal(to_x0(output, x_t, 0.0, 1.0, "v_prediction"), -output)
