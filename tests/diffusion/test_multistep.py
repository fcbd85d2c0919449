"""Second-order steps: diffusers' DPM-Solver++(2M) where there is no shift; the order of convergence."""

import math

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from ctxedit.diffusion.ddim import ddim
from ctxedit.diffusion.multistep import History, extrapolate
from ctxedit.diffusion.parameterization import to_x0
from ctxedit.diffusion.schedule import Levels, alphas_cumprod, levels


def sampled(predict, x, used, solver="dpm++2m", shift=lambda x0, level: None):
    """Down all levels with a prediction of x_0."""
    history = History(solver != "ddim")
    for start, end in used.down():
        x0 = predict(x, start)
        best = history.improve(x0, used.at(start), used.at(end))
        x = ddim(x, best, *used.at(start), *used.at(end), shift(x0, start), shift(x0, end))
    return x


@pytest.mark.filterwarnings("ignore:__array__")  # diffusers hands a tensor to numpy
@pytest.mark.parametrize("steps", [8, 20])
def test_down_is_diffusers_dpm_solver(steps, randn):
    """Its levels are in float32, hence the tolerance; its last step, to clean data, is of first order."""
    theirs = DPMSolverMultistepScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1,
        timestep_spacing="leading", final_sigmas_type="zero",
    )  # fmt: skip
    theirs.set_timesteps(steps)
    outputs = [randn() for _ in range(steps)]
    x = expected = randn()
    for output, t in zip(outputs, theirs.timesteps, strict=True):
        expected = theirs.step(output, t, expected).prev_sample
    # This scheduler's leading spacing counts one stride more than DDIM's: its timesteps, our levels of them.
    bar = alphas_cumprod()[theirs.timesteps.flip(0)]
    used = Levels(
        theirs.timesteps,
        torch.cat([torch.ones(1), bar.sqrt()]),
        torch.cat([torch.zeros(1), (1 - bar).sqrt()]),
    )
    got = sampled(lambda x, level: to_x0(outputs[steps - level], x, *used.at(level), "epsilon"), x, used)
    torch.testing.assert_close(got, expected, rtol=2e-3, atol=2e-3)


def gaussian(used, mean, deviation):
    """The perfect prediction of x_0 for data ~ N(mean, deviation²), and the exact end of the equation."""

    def predict(x, level):
        a, s = (float(v) for v in used.at(level))
        return mean + a * deviation**2 / (a**2 * deviation**2 + s**2) * (x - a * mean)

    def exact(x):
        a, s = (float(v) for v in used.at(used.steps))
        return mean + deviation / math.hypot(a * deviation, s) * (x - a * mean)

    return predict, exact


def error(steps, solver, randn_like):
    used = levels(alphas_cumprod(), steps, "linspace", 0)
    predict, exact = gaussian(used, 0.7, 0.4)
    return float((sampled(predict, randn_like, used, solver) - exact(randn_like)).abs().max())


def test_it_is_of_second_order(randn):
    """Half the step, a quarter of the error; DDIM halves it."""
    x = randn()
    for solver, low, high in (("ddim", 1.7, 2.2), ("dpm++2m", 3.0, 4.5)):
        assert low < error(80, solver, x) / error(160, solver, x) < high


def test_a_shift_is_carried_through(randn):
    """y = x − b walks as if there were no shift: a constant r, whatever the order."""
    used = levels(alphas_cumprod(), 12)
    predict, _ = gaussian(used, 0.2, 0.5)
    x, r = randn(), randn()

    def shift(x0, level):
        a, _ = used.at(level)
        return (a * (1 - a)).to(x) * r if level else None

    plain = sampled(predict, x, used)
    moved = sampled(lambda z, level: predict(z - shift(z, level), level), x + shift(x, 12), used, shift=shift)
    torch.testing.assert_close(moved, plain)


@pytest.mark.parametrize("signals", [(1.0, 0.9, 0.8), (0.9, 0.5, 0.0)])
def test_clean_data_and_pure_noise_take_a_first_order_step(signals, randn):
    now, before = randn(), randn()
    previous, left, reached = ((a, math.sqrt(1 - a * a)) for a in signals)
    assert extrapolate(now, before, previous, left, reached) is now
    assert extrapolate(now, None, None, left, reached) is now


def test_flow_levels_take_it_as_well(randn):
    """λ = log((1 − τ) / τ): a prediction that is linear in it is followed exactly."""
    taus = (0.8, 0.6, 0.4)
    lambdas = [math.log((1 - t) / t) for t in taus]
    slope, now = randn(), randn()
    before = now + slope * (lambdas[0] - lambdas[1])
    got = extrapolate(now, before, *((1 - t, t) for t in taus))
    torch.testing.assert_close(got, now + slope * (lambdas[2] - lambdas[1]) / 2)
