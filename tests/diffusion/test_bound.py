"""The whole bound against oracles: Gaussian data, whose entropy and best denoiser are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Normal

from ctxedit.diffusion.forward import keep_norm, marginal, shift_scale
from ctxedit.diffusion.likelihood import (
    corrected_error,
    decoder_nll,
    discretised_nll,
    posterior_kl,
    prior_kl,
    snr_step,
    step_kl,
)
from ctxedit.diffusion.posterior import posterior
from ctxedit.diffusion.schedule import Levels, alphas_cumprod, levels

#: Of the Gaussian data; not 1, for which the noisy data would have the same variance at every level.
SIGMA = 0.5


def cosine(steps: int) -> Levels:
    return levels(alphas_cumprod(steps, kind="cosine"), steps, steps_offset=0)


def between_fixed_ends(steps: int) -> Levels:
    """Log-SNRs in equal steps from 9 to -9: its ends stay with more steps, the cosine schedule's do not."""
    bar = torch.sigmoid(torch.linspace(9, -9, steps, dtype=torch.float64))
    bar = torch.cat([torch.ones(1, dtype=torch.float64), bar])
    return Levels(torch.arange(steps).flip(0), bar.sqrt(), (1 - bar).sqrt())


class Gaussian:
    """Data N(0, SIGMA²), a shift ``k_t · c · x_0``, and the denoiser that is best for them.

    With ``ends_kept`` k is taken to zero at levels 1 and T.
    """

    def __init__(self, table: Levels, c: float = 0.0, ends_kept: bool = False) -> None:
        self.table, self.c = table, c
        self.k = c * shift_scale(table.alpha, table.sigma)
        if ends_kept:
            place = torch.arange(-1, table.steps, dtype=torch.float64) / (table.steps - 1)
            self.k = self.k * (math.pi * place.clamp(min=0)).sin()

    def shift(self, x0, level):
        return self.k[level].reshape(-1, 1) * x0

    def gain(self):
        """x̂_0 over x_t, for each level."""
        m = self.table.alpha + self.k
        return m * SIGMA**2 / (m**2 * SIGMA**2 + self.table.sigma**2)

    def predict(self, x_t, level):
        return self.gain()[level].reshape(-1, 1) * x_t

    def squared_error(self):
        """E (x_0 − x̂_0)² at each level."""
        m = self.table.alpha + self.k
        return SIGMA**2 * self.table.sigma**2 / (m**2 * SIGMA**2 + self.table.sigma**2)

    def factor(self):
        """Of level t = 2..T: the corrected error over the error of x_0, a number for a linear shift."""
        one = torch.ones(self.table.steps - 1, 1, dtype=torch.float64)
        pair = self.pairs()
        return corrected_error(one, self.k[2:, None] * one, self.k[1:-1, None] * one, *pair)[:, 0]

    def pairs(self):
        a, s = self.table.alpha, self.table.sigma
        return a[2:], s[2:], a[1:-1], s[1:-1]

    def steps(self, corrected=True):
        """The terms of levels 2..T in closed form."""
        factor = self.factor() if corrected else 1.0
        return 0.5 * snr_step(*self.pairs()) * factor**2 * self.squared_error()[2:]

    def ends(self):
        """Prior and decoder in closed form; the decoder has the deviation of x_0 given x_1."""
        m, s = self.table.alpha[-1] + self.k[-1], self.table.sigma[-1]
        prior = 0.5 * (m**2 * SIGMA**2 + s**2 - 1 - (s**2).log())
        return prior + 0.5 * (2 * math.pi * math.e * self.squared_error()[1]).log()

    def bound(self):
        return float(self.steps().sum() + self.ends())


ENTROPY = float(Normal(0.0, SIGMA).entropy())


@pytest.mark.parametrize("c", [0.0, 1.5])
def test_the_estimate_is_the_closed_form_for_gaussian_data(randn, c):
    """Every term by Monte Carlo through the public functions, against the expectation of each."""
    table = cosine(24)
    world, n = Gaussian(table, c), 20_000
    x0 = SIGMA * randn(n, 1)
    shift = world.shift if c else None
    found = []
    for t in range(2, table.steps + 1):
        level = torch.full((n,), t)
        found.append(step_kl(x0, randn(n, 1), level, table.alpha, table.sigma, world.predict, shift).mean())
    torch.testing.assert_close(torch.stack(found), world.steps(), rtol=0.05, atol=1e-9)
    one, last = torch.ones(n, dtype=torch.int64), torch.full((n,), table.steps)
    x1 = marginal(x0, randn(n, 1), *table.at(1), world.shift(x0, one))
    decoder = decoder_nll(x0, world.predict(x1, one), world.squared_error()[1].sqrt())
    prior = prior_kl(x0, *table.at(table.steps), world.shift(x0, last))
    assert float((decoder + prior).mean()) == pytest.approx(float(world.ends()), abs=0.02)


def test_the_bound_is_above_the_entropy_and_approaches_it_with_more_steps():
    """What is left is the prior's: the mutual information of x_0 and x_T."""
    worlds = [Gaussian(between_fixed_ends(steps)) for steps in (10, 100, 1000, 10_000)]
    gaps = [world.bound() - ENTROPY for world in worlds]
    assert all(gap > 0 for gap in gaps) and gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 0.004 < gaps[-2]


@pytest.mark.parametrize("dims", [(2, 4, 3, 5), (3, 7)])
def test_a_step_is_the_kl_of_the_two_posteriors(randn, dims):
    """With any shift, not only a linear one, and different levels in one batch."""
    table, x0, eps = cosine(30), randn(*dims), randn(*dims)
    level = torch.tensor([2, 17, 30])[: dims[0]]
    tilt = randn(*dims[1:])

    def shift(x, at):
        k = shift_scale(table.alpha, table.sigma)[at].reshape(-1, *[1] * (x.ndim - 1))
        return keep_norm(k * (torch.tanh(3 * x) + tilt), x, table.alpha[at])

    def predict(x_t, at):
        return 0.7 * x_t + 0.1

    a, s = table.alpha, table.sigma
    x_t = marginal(x0, eps, a[level], s[level], shift(x0, level))
    guess = predict(x_t, level)
    pair = (a[level], s[level], a[level - 1], s[level - 1])
    mean, variance = posterior(x_t, x0, *pair, shift(x0, level), shift(x0, level - 1))
    mean_model, _ = posterior(x_t, guess, *pair, shift(guess, level), shift(guess, level - 1))
    ours = step_kl(x0, eps, level, a, s, predict, shift)
    torch.testing.assert_close(ours, posterior_kl(mean, mean_model, variance), rtol=1e-8, atol=0)


def test_zero_shift_is_the_ordinary_bound(randn):
    table, x0, eps = cosine(50), randn(49, 6), randn(49, 6)
    level, world = torch.arange(2, 51), Gaussian(cosine(50))
    args = (x0, eps, level, table.alpha, table.sigma, world.predict)
    plain = step_kl(*args, None)
    for shift in (lambda x, at: torch.zeros_like(x), Gaussian(table, 0.0).shift):
        assert float((step_kl(*args, shift) - plain).abs().max()) < 1e-6


def test_the_bound_depends_on_the_ends_of_the_schedule_alone_as_steps_grow():
    """x_0 times a constant added to the mean is another noise schedule (Kingma et al. 2021, section 5.1):
    with the same ends, what differs is due to the size of the steps and goes like 1 / T."""
    differences = []
    for steps in (100, 400, 1600):
        table = between_fixed_ends(steps)
        loud = Gaussian(table, 4.0, ends_kept=True)
        other = Gaussian(Levels(table.timesteps, table.alpha + loud.k, table.sigma))
        assert float(other.squared_error().sum()) < 0.95 * float(Gaussian(table).squared_error().sum())
        differences.append(abs(other.bound() - Gaussian(table).bound()))
    assert differences[0] > 3 * differences[1] > 9 * differences[2]
    assert differences[-1] < 0.005


def test_writing_x0_louder_costs_what_the_kernel_says():
    """The paper's kernel (Eq 2) has that schedule's marginals, but carries the noise from step to step as the
    unshifted schedule does. With a mean ``a z x_0`` its terms tend to ``(z + z')^2`` times the plain ones, z'
    by the log-SNR, where the other schedule's have ``z^2 + 2 z z'``: the bound is worse by ``z'^2``."""
    table = between_fixed_ends(3200)
    plain, loud = Gaussian(table), Gaussian(table, 4.0, ends_kept=True)
    logs = 2 * (table.alpha[1:] / table.sigma[1:]).log()
    z = (table.alpha + loud.k)[1:] / table.alpha[1:]
    slope = torch.gradient(z, spacing=(logs,))[0]
    excess = 0.5 * torch.trapezoid(logs.exp() * slope**2 * loud.squared_error()[1:], logs).abs()
    assert float(excess) > 0.05
    assert loud.bound() - plain.bound() == pytest.approx(float(excess), rel=0.05)


def test_a_louder_end_costs_what_the_prior_says():
    """A shift that is not zero at the last level: the terms between gain less than the prior loses."""
    table = between_fixed_ends(1600)
    plain, loud = (Gaussian(table, c) for c in (0.0, 50.0))
    assert float(loud.ends()) > float(plain.ends()) + 0.01
    assert loud.bound() > plain.bound()


def test_without_the_correction_writing_louder_seems_to_pay():
    """The same shift under Eq 6's error of x_0: below the entropy, so no bound."""
    loud = Gaussian(between_fixed_ends(1600), 4.0, ends_kept=True)
    false = float(loud.steps(corrected=False).sum() + loud.ends())
    assert false < ENTROPY - 0.1 < loud.bound() - 0.1


def test_the_uncorrected_step_is_the_weighted_error_of_x0(randn):
    table, x0, eps = cosine(50), randn(3, 6), randn(3, 6)
    world, level = Gaussian(table, 4.0), torch.tensor([2, 20, 50])
    a, s = table.alpha, table.sigma
    guess = world.predict(marginal(x0, eps, a[level], s[level], world.shift(x0, level)), level)
    expected = 0.5 * snr_step(a[level], s[level], a[level - 1], s[level - 1]) * ((x0 - guess) ** 2).mean(1)
    found = step_kl(x0, eps, level, a, s, world.predict, world.shift, corrected=False)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


def test_the_last_step_needs_no_correction(randn):
    """Level 0 has no shift and its posterior does not look at x_t: the error of x_0 is all there is."""
    table, error, gap = cosine(10), randn(2, 5), randn(2, 5)
    found = corrected_error(error, gap, None, *table.at(1), *table.at(0))
    torch.testing.assert_close(found, error, rtol=0, atol=1e-12)


def test_the_intervals_of_the_discretised_decoder_share_out_all_probability():
    for mean, scale in ((0.3, 0.02), (-1.0, 0.5), (0.99, 4.0), (0.0, 1e-3)):
        values = (torch.arange(256, dtype=torch.float64) / 127.5 - 1)[:, None]
        nats = discretised_nll(values, torch.full_like(values, mean), scale)
        assert float((-nats).exp().sum()) == pytest.approx(1, abs=1e-9)


def test_the_discretised_decoder_is_exact_far_from_its_mean():
    """Forty deviations away, where the interval's mass is below the smallest double."""
    x0, scale = torch.tensor([[0.2 + 1 / 255]], dtype=torch.float64), 0.005
    for mean in (0.2 - 0.4, 0.2 + 0.4):
        nats = float(discretised_nll(x0, torch.full_like(x0, mean), scale))
        near = abs(float(x0) - mean) - 1 / 255  # the end that nearly all of the mass is at
        z = near / scale
        assert nats == pytest.approx(z * z / 2 + math.log(z * math.sqrt(2 * math.pi)), abs=1e-3)
        assert math.isfinite(nats) and nats > 700


def test_dequantised_bits_bound_the_discretised_ones(randn):
    """Jensen: the mean of -log p over an interval is at least -log of its mass, for any mean and scale."""
    values = (torch.arange(1, 255, dtype=torch.float64) / 127.5 - 1)[:, None].expand(-1, 2000)
    u = (
        torch.rand(values.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) - 0.5
    ) / 127.5
    mean, scale = values + 0.01 * randn(*values.shape), 0.01
    discrete = discretised_nll(values, mean, scale)
    uniform = decoder_nll(values + u, mean, scale) + math.log(127.5)
    assert bool((uniform > discrete).all())
