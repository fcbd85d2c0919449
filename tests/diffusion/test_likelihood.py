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
    pair = (sd_levels.alpha[t], sd_levels.sigma[t], sd_levels.alpha[prev], sd_levels.sigma[prev])
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


def test_a_fine_step_has_the_density_times_its_width():
    x, mean = (
        torch.tensor([[0.2], [0.4]], dtype=torch.float64),
        torch.tensor([[0.25], [0.1]], dtype=torch.float64),
    )
    fine = discretised_nll(x, mean, 0.3, values=100_001)
    torch.testing.assert_close(fine, decoder_nll(x, mean, 0.3) - math.log(2 / 100_000), rtol=0, atol=1e-6)


def test_chances_of_levels_give_an_unbiased_sum():
    chances = level_chances(50)
    assert chances.shape == (49,) and float(chances.sum()) == pytest.approx(1)
    terms = 1 / torch.arange(2, 51, dtype=torch.float64) ** 2
    drawn = torch.multinomial(chances, 200_000, replacement=True, generator=torch.Generator().manual_seed(0))
    estimates = terms[drawn] / chances[drawn]
    error = float(estimates.std()) / 200_000**0.5
    assert abs(float(estimates.mean() - terms.sum())) < 4 * error
