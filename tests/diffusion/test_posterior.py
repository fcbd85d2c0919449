from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDPMScheduler

from ctxedit.diffusion.parameterization import to_x0
from ctxedit.diffusion.posterior import ancestral, posterior
from ctxedit.diffusion.schedule import levels


def bayes(x_t, x0, level_t, level_prev, shift_t, shift_prev):
    """Mean and variance of q(x_prev | x_t, x0) from the forward kernels alone, by integrating on a grid."""
    (a, s), (a_prev, s_prev) = level_t, level_prev
    ratio = a / a_prev
    step_variance = s**2 - ratio**2 * s_prev**2
    centre = a_prev * x0 + shift_prev
    grid = torch.linspace(centre - 14 * s_prev, centre + 14 * s_prev, 400_001, dtype=torch.float64)
    log_prior = -((grid - centre) ** 2) / (2 * s_prev**2)
    log_likelihood = -((x_t - ratio * grid - shift_t + ratio * shift_prev) ** 2) / (2 * step_variance)
    weight = torch.softmax(log_prior + log_likelihood, dim=0)
    mean = (weight * grid).sum()
    return mean, (weight * (grid - mean) ** 2).sum()


def variance_preserving(bar):
    return math.sqrt(bar), math.sqrt(1 - bar)


@pytest.mark.parametrize(
    ("level_t", "level_prev"),
    [
        (variance_preserving(0.3), variance_preserving(0.5)),
        (variance_preserving(0.005), variance_preserving(0.02)),
        (variance_preserving(0.97), variance_preserving(0.98)),
        ((0.3, 0.7), (0.4, 0.6)),
    ],
    ids=["middle", "noisy", "nearly clean", "flow"],
)
@pytest.mark.parametrize(("shift_t", "shift_prev"), [(0.0, 0.0), (0.4, -0.3), (-0.2, 0.5)])
def test_posterior_is_bayes_rule(level_t, level_prev, shift_t, shift_prev):
    x_t, x0 = 0.6, 0.9
    tensors = [torch.tensor([[value]], dtype=torch.float64) for value in (x_t, x0, shift_t, shift_prev)]
    mean, variance = posterior(tensors[0], tensors[1], *level_t, *level_prev, *tensors[2:])
    true_mean, true_variance = bayes(x_t, x0, level_t, level_prev, shift_t, shift_prev)
    assert mean.item() == pytest.approx(true_mean.item(), abs=1e-8)
    assert variance.item() == pytest.approx(true_variance.item(), rel=1e-7)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("position", [0, 9, 18, 19])
def test_ancestral_step_is_diffusers_ddpm(kind, position, randn, in_double):
    options = {"prediction_type": kind, "clip_sample": False, "steps_offset": 1}
    theirs = in_double(DDPMScheduler(1000, 0.00085, 0.012, "scaled_linear", **options))
    theirs.set_timesteps(20)
    used = levels(theirs.alphas_cumprod, 20)
    start = 20 - position
    x, output = randn(), randn()
    timestep = used.timestep(start)
    assert timestep == theirs.timesteps[position]
    expected = theirs.step(output, timestep, x, generator=torch.Generator().manual_seed(3)).prev_sample
    z = torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=x.dtype)
    here, there = used.at(start), used.at(start - 1)
    ours = ancestral(x, to_x0(output, x, *here, kind), *here, *there, z=z)
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-8)


def test_shifts_are_taken_off_before_the_step_and_put_on_after_it(sd_levels, randn):
    x, x0, b, b_prev, z = (randn() for _ in range(5))
    here, there = sd_levels.at(9), sd_levels.at(8)
    shifted = ancestral(x + b, x0, *here, *there, b, b_prev, z=z)
    torch.testing.assert_close(shifted, ancestral(x, x0, *here, *there, z=z) + b_prev, rtol=1e-12, atol=1e-12)


def test_the_last_step_is_certain(sd_levels, randn):
    x, x0, b = randn(), randn(), randn()
    mean, variance = posterior(x, x0, *sd_levels.at(1), *sd_levels.at(0), b, None)
    torch.testing.assert_close(mean, x0, rtol=1e-12, atol=1e-12)
    assert variance == 0


@pytest.mark.parametrize(
    ("level_t", "level_prev"), [((1.0, 0.0), (1.0, 0.0)), ((0.0, 1.0), (0.0, 1.0)), ((0.8, 0.6), (0.6, 0.8))]
)
def test_levels_without_a_posterior_are_refused(level_t, level_prev, randn):
    x = randn()
    with pytest.raises(ValueError):
        posterior(x, x, *level_t, *level_prev)
