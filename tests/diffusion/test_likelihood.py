from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from ctxedit.diffusion.likelihood import (
    decoder_nll,
    discretised_nll,
    level_chances,
    posterior_kl,
    prior_kl,
    step_kl,
)
from ctxedit.diffusion.posterior import posterior

DIMS = 4 * 3 * 5


def normal(mean, deviation):
    """A distribution of latents whose log-density and divergence are sums over all but the batch."""
    return Independent(Normal(mean, torch.as_tensor(deviation).expand_as(mean)), mean.ndim - 1)


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("level", [1, 12, 20])
def test_prior_kl_is_torchs(shifted, level, sd_levels, randn):
    x0, shift = randn(), randn()
    signal, noise = sd_levels.at(level)
    mean = signal * x0 + (shift if shifted else 0)
    expected = kl_divergence(normal(mean, noise), normal(torch.zeros_like(mean), 1.0)) / DIMS
    ours = prior_kl(x0, signal, noise, shift if shifted else None)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)


def test_a_shift_that_carries_x0_to_the_end_costs_nats(sd_levels, randn):
    x0 = randn()
    plain, loud = (prior_kl(x0, *sd_levels.at(20), shift) for shift in (None, 0.25 * x0))
    assert (loud > 2 * plain).all()


@pytest.mark.parametrize("per_sample", [False, True])
def test_posterior_kl_is_torchs(per_sample, sd_levels, randn):
    x_t, x0, guess, shifts, guessed = randn(), randn(), randn(), [randn(), randn()], [randn(), randn()]
    t, prev = ([9, 14], [8, 13]) if per_sample else (9, 8)
    pair = (sd_levels.signal[t], sd_levels.noise[t], sd_levels.signal[prev], sd_levels.noise[prev])
    mean, variance = posterior(x_t, x0, *pair, *shifts)
    mean_model, _ = posterior(x_t, guess, *pair, *guessed)
    deviation = variance.sqrt()
    expected = kl_divergence(normal(mean, deviation), normal(mean_model, deviation)) / DIMS
    torch.testing.assert_close(posterior_kl(mean, mean_model, variance), expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("scale", [0.05, 2.0, torch.tensor([0.1, 3.0], dtype=torch.float64)])
def test_decoder_nll_is_torchs(scale, randn):
    x0, mean = randn(), randn()
    deviation = scale.reshape(2, 1, 1, 1) if isinstance(scale, torch.Tensor) else scale
    expected = -normal(mean, torch.as_tensor(deviation, dtype=x0.dtype)).log_prob(x0) / DIMS
    torch.testing.assert_close(decoder_nll(x0, mean, scale), expected, rtol=1e-10, atol=1e-12)


def test_the_bound_holds_and_is_tight_for_gaussian_data(randn):
    """One level, 1-D Gaussian data, the optimal linear decoder: the bound is within sampling error of its own
    closed form, entropy + KL(q(x_1) || prior), and above the entropy."""
    count, signal, noise, sigma = 200_000, 0.2, 0.96**0.5, 1.5
    x0 = sigma * randn(count, 1)
    x1 = signal * x0 + noise * randn(count, 1)
    total = signal**2 * sigma**2 + noise**2
    guess = signal * sigma**2 / total * x1
    scale = (sigma**2 * noise**2 / total) ** 0.5
    bound = (prior_kl(x0, signal, noise) + decoder_nll(x0, guess, scale)).mean()
    data, end = Normal(0.0, sigma), Normal(0.0, total**0.5)
    expected = data.entropy() + kl_divergence(end, Normal(0.0, 1.0))
    assert float(bound) == pytest.approx(float(expected), abs=0.006)


@pytest.mark.parametrize(
    "call",
    [
        lambda x: prior_kl(x, 1.0, 0.0),
        lambda x: posterior_kl(x, x, torch.zeros(())),
        lambda x: decoder_nll(x, x, 0.0),
    ],
    ids=["prior", "posterior", "decoder"],
)
def test_infinite_terms_are_refused(call, randn):
    with pytest.raises(ValueError, match="must be positive"):
        call(randn())


def test_discretised_masses_add_up_to_one():
    values = torch.arange(256, dtype=torch.float64)[:, None] / 127.5 - 1
    for mean, scale in ((0.3, 0.01), (-1.2, 0.2), (0.0, 3.0)):
        masses = (-discretised_nll(values, torch.full_like(values, mean), scale)).exp()
        assert float(masses.sum()) == pytest.approx(1, abs=1e-9)


def test_discretised_nll_is_exact_where_masses_round_to_zero():
    """40 standard deviations off: log Φ(−40) = −804.608…, of which a difference of Φ leaves nothing."""
    x, scale = torch.full((1, 1), 41 / 127.5 - 1, dtype=torch.float64), 1 / 127.5
    mean = x - (40 + 0.5) * scale  # the step's lower edge is 40 deviations above the mean
    found = float(discretised_nll(x, mean, scale))
    assert found == pytest.approx(804.608442, abs=1e-3)


def test_a_fine_step_has_the_density_times_its_width():
    x, mean = (
        torch.tensor([[0.2], [0.4]], dtype=torch.float64),
        torch.tensor([[0.25], [0.1]], dtype=torch.float64),
    )
    fine = discretised_nll(x, mean, 0.3, values=100_001)
    torch.testing.assert_close(fine, decoder_nll(x, mean, 0.3) - math.log(2 / 100_000), rtol=0, atol=1e-6)


# -- the whole bound, for Gaussian data and the optimal denoiser ---------------------------------------------


def whole_bound(signal, noise, sigma, gain=None, count=60_000):
    """Mean bound, in nats, of N(0, σ²) data over all levels, by ``step_kl`` with the optimal denoiser.

    ``gain``: (T + 1,) of a shift b_t = (gain_t − 1) a_t x_0, which only makes x_0 louder.
    """
    generator = torch.Generator().manual_seed(0)
    x0 = sigma * torch.randn(count, 1, generator=generator, dtype=torch.float64)
    louder = torch.ones_like(signal) if gain is None else gain

    def predict(x, level):
        a, s = (louder * signal)[level][:, None], noise[level][:, None]
        return a * sigma**2 / (a**2 * sigma**2 + s**2) * x

    def shift(x, level):
        return ((louder - 1) * signal)[level][:, None] * x

    used = None if gain is None else shift
    steps = len(signal) - 1
    total = prior_kl(
        x0, signal[-1], noise[-1], None if used is None else shift(x0, torch.full((count,), steps))
    )
    for t in range(1, steps + 1):
        level = torch.full((count,), t)
        eps = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
        if t > 1:
            total = total + step_kl(x0, eps, level, signal, noise, predict, used)
        else:
            a, s = float((louder * signal)[1]), float(noise[1])
            guess = predict(a * x0 + s * eps, level)
            total = total + decoder_nll(x0, guess, (sigma**2 * s**2 / (a**2 * sigma**2 + s**2)) ** 0.5)
    return float(total.mean())


def cosine(steps, last=0.02):
    """A variance-preserving schedule whose ends do not depend on the number of steps."""
    angle = torch.linspace(0.0, 1.0, steps, dtype=torch.float64) * (math.acos(last) - 0.1) + 0.1
    signal, noise = angle.cos(), angle.sin()
    clean = torch.tensor([1.0], dtype=torch.float64)
    return torch.cat([clean, signal]), torch.cat([1 - clean, noise])


def test_the_sum_of_terms_is_the_closed_form():
    """A term's expectation: half the fall of the SNR times the variance of x_0 given x_t."""
    sigma = 0.7
    signal, noise = cosine(12)
    snr = (signal / noise)[1:] ** 2
    variance = sigma**2 / (1 + snr * sigma**2)  # of x_0 given x_t, levels 1 … T
    terms = 0.5 * (snr[:-1] - snr[1:]) * variance[1:]
    end = (signal[-1] ** 2 * sigma**2 + noise[-1] ** 2).sqrt()
    prior = 0.5 * (end**2 - 1 - torch.log(noise[-1] ** 2))
    decoder = 0.5 * torch.log(2 * math.pi * math.e * variance[0])
    expected = float(prior + terms.sum() + decoder)
    assert whole_bound(signal, noise, sigma) == pytest.approx(expected, abs=0.01)
    assert expected > float(Normal(0.0, sigma).entropy())


def test_a_zero_shift_is_the_ordinary_bound():
    signal, noise = cosine(6)
    plain, zero = (whole_bound(signal, noise, 0.7, g, 2000) for g in (None, torch.ones_like(signal)))
    assert zero == pytest.approx(plain, abs=1e-6)


def test_writing_x0_louder_is_another_schedule_and_does_not_pay():
    """A shift of x_0 times a constant changes the path between the ends: with many steps the bound depends on
    the ends alone (Kingma et al. 2021); louder at the end, it costs the prior's term."""
    sigma, steps = 0.7, 150
    signal, noise = cosine(steps)
    bump = 1 + 0.6 * torch.sin(torch.linspace(0, math.pi, steps + 1, dtype=torch.float64)) * signal
    bump[1] = bump[0] = 1  # the ends stay
    plain, louder = (whole_bound(signal, noise, sigma, g, 8000) for g in (None, bump))
    assert louder == pytest.approx(plain, abs=0.02)
    few_signal, few_noise = cosine(8)
    to_the_end = torch.ones(9, dtype=torch.float64)
    to_the_end[-1] = 30.0
    quiet, loud = (whole_bound(few_signal, few_noise, sigma, g, 8000) for g in (None, to_the_end))
    assert loud > quiet + 0.005


def test_chances_of_levels_give_an_unbiased_sum():
    chances = level_chances(50)
    assert chances.shape == (49,) and float(chances.sum()) == pytest.approx(1)
    terms = 1 / torch.arange(2, 51, dtype=torch.float64) ** 2
    drawn = torch.multinomial(chances, 200_000, replacement=True, generator=torch.Generator().manual_seed(0))
    estimates = terms[drawn] / chances[drawn]
    error = float(estimates.std()) / 200_000**0.5
    assert abs(float(estimates.mean() - terms.sum())) < 4 * error
