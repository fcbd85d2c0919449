from __future__ import annotations

import pytest
import torch

from ctxedit.diffusion.forward import (
    contextual_shift,
    effective_noise,
    keep_norm,
    marginal,
    shift_scale,
    step_forward,
)


@pytest.mark.parametrize("kind", ["paper", "noise"])
def test_clean_data_is_not_shifted(kind):
    assert shift_scale(1.0, 0.0, kind) == 0


def test_the_papers_scale_is_at_most_a_quarter_and_survives_stable_diffusions_last_level(sd_levels):
    k = shift_scale(sd_levels.alpha, sd_levels.sigma)
    assert 0.24 < k.max() <= 0.25
    assert shift_scale(0.5, 0.75**0.5) == 0.25
    # the last *training* timestep has alpha_bar 0.00466, so k_T is not the paper's 0
    assert shift_scale(0.00466**0.5, 1.0) == pytest.approx(0.064, abs=5e-4)


def test_the_published_codes_scale_is_a_part_of_the_noise():
    assert shift_scale(0.6, 0.8, "noise") == pytest.approx(0.0145)


def test_an_unknown_scale_is_refused():
    with pytest.raises(ValueError, match="linear"):
        shift_scale(0.6, 0.8, "linear")


@pytest.mark.parametrize("kind", ["paper", "noise"])
def test_the_shift_is_scaled_sample_by_sample(kind, randn):
    r = randn()
    signal, noise = torch.tensor([0.8, 0.6]), torch.tensor([0.6, 0.8])
    shift = contextual_shift(r, signal, noise, kind)
    k = [0.16, 0.24] if kind == "paper" else [0.018125 * 0.6, 0.018125 * 0.8]
    torch.testing.assert_close(shift, torch.stack([k[0] * r[0], k[1] * r[1]]), rtol=1e-6, atol=0)


class TestKeptNorm:
    def test_each_sample_keeps_its_norm_and_takes_the_shifts_direction(self, randn):
        x0, shift = randn(), 0.4 * randn()
        signal = torch.tensor([0.8, 0.6], dtype=x0.dtype)
        kept = keep_norm(shift, x0, signal)
        for i in range(2):
            clean, moved, free = signal[i] * x0[i], signal[i] * x0[i] + kept[i], signal[i] * x0[i] + shift[i]
            assert moved.norm().item() == pytest.approx(clean.norm().item(), rel=1e-12)
            torch.testing.assert_close(moved / moved.norm(), free / free.norm(), rtol=1e-10, atol=1e-12)

    def test_it_cannot_write_the_signal_louder(self, randn):
        x0 = randn()
        torch.testing.assert_close(keep_norm(0.7 * x0, x0, 0.5), torch.zeros_like(x0), rtol=0, atol=1e-12)
        assert not torch.allclose(keep_norm(randn(), x0, 0.5), torch.zeros_like(x0))

    def test_no_shift_and_no_signal_stay_none(self, randn):
        x0, nothing = randn(), torch.zeros_like(randn())
        assert torch.equal(keep_norm(nothing, x0, 0.3), nothing)
        assert torch.equal(keep_norm(randn(), nothing, 0.3), nothing)
        assert torch.equal(keep_norm(randn(), x0, 0.0), nothing)

    def test_a_signal_that_is_wiped_out_has_no_direction(self, randn):
        x0 = randn()
        assert torch.equal(keep_norm(-0.5 * x0, x0, 0.5), -0.5 * x0)
        large = torch.full((1, 4, 8, 8), 2.0)  # in float32, its norm over the smallest number is infinite
        assert torch.equal(keep_norm(-0.5 * large, large, 0.5), -0.5 * large)

    def test_the_gradient_is_finite_and_at_right_angles_to_the_signal_at_no_shift(self, randn):
        x0, shift = randn(), torch.zeros_like(randn()).requires_grad_(True)
        weight = randn()
        (gradient,) = torch.autograd.grad((keep_norm(shift, x0, 0.5) * weight).sum(), shift)
        assert gradient.isfinite().all() and gradient.norm() > 0
        along = (gradient * x0).flatten(1).sum(1)
        torch.testing.assert_close(along, torch.zeros_like(along), rtol=0, atol=1e-10)

    def test_the_marginal_takes_it_like_any_other(self, randn):
        x0, eps, shift = randn(), randn(), randn()
        kept = keep_norm(shift, x0, 0.6)
        x = marginal(x0, eps, 0.6, 0.8, kept)
        torch.testing.assert_close((x - 0.6 * x0 - kept) / 0.8, eps)


def test_steps_compose_to_the_marginal(sd_levels, randn):
    """Eq 2 repeated is Eq 1. The map is affine in the noises: mean and variance need no sampling."""
    x0, shifts = randn(1, 3), [torch.zeros(1, 3, dtype=torch.float64)] + [randn(1, 3) for _ in range(20)]
    alpha = (sd_levels.alpha[1:] / sd_levels.alpha[:-1]) ** 2

    def run(noises):
        x = x0
        for level in range(1, 21):
            x = step_forward(x, alpha[level - 1], shifts[level], shifts[level - 1], noises[level - 1])
        return x

    zeros, ones = torch.zeros(20, 1, 3, dtype=torch.float64), torch.eye(20, dtype=torch.float64)
    mean = run(zeros)
    variance = sum((run(zeros + ones[i, :, None, None]) - mean) ** 2 for i in range(20))
    signal, noise = sd_levels.at(20)
    torch.testing.assert_close(
        mean, marginal(x0, zeros[0], signal, noise, shifts[20]), rtol=1e-10, atol=1e-12
    )
    torch.testing.assert_close(variance, (noise**2).expand(1, 3), rtol=1e-10, atol=0)


def test_no_shift_is_a_zero_shift(randn):
    x, eps, zero = randn(), randn(), torch.zeros(2, 4, 3, 5, dtype=torch.float64)
    assert torch.equal(marginal(x, eps, 0.6, 0.8), marginal(x, eps, 0.6, 0.8, zero))
    assert torch.equal(step_forward(x, 0.9, None, None, eps), step_forward(x, 0.9, zero, zero, eps))


@pytest.mark.parametrize("shifted", [False, True])
def test_effective_noise_is_the_noise_and_the_shifts_share(shifted, randn):
    x0, eps, shift = randn(), randn(), randn()
    x_t = marginal(x0, eps, 0.6, 0.8, shift if shifted else None)
    expected = eps + shift / 0.8 if shifted else eps
    torch.testing.assert_close(effective_noise(x_t, x0, 0.6, 0.8), expected, rtol=1e-12, atol=1e-12)


def test_clean_data_holds_no_noise_to_read(randn):
    x = randn()
    with pytest.raises(ValueError, match="sigma must be positive"):
        effective_noise(x, x, 1.0, 0.0)


@pytest.mark.parametrize("r", [0.0, 0.1, 0.25])
@pytest.mark.parametrize("by", ["marginal", "steps"])
def test_toy_example(r, by, sd_levels, randn):
    """Appendix A.4: x_0 ~ N(mu, sigma^2), shift r x_0 (growing to r along the steps), best linear prediction.

    Eq 34 for r = 0 and Eq 35 for r > 0.
    """
    count, mu, sigma, level = 200_000, 0.7, 1.3, 12
    x0 = mu + sigma * randn(count)
    signal, noise = sd_levels.at(level)
    if by == "marginal":
        x_t = marginal(x0, randn(count), signal, noise, r * x0)
    else:
        x_t = x0
        for start, end in ((0, 3), (3, 8), (8, level)):
            alpha = (sd_levels.alpha[end] / sd_levels.alpha[start]) ** 2
            x_t = step_forward(x_t, alpha, r * end / level * x0, r * start / level * x0, randn(count))
    slope = torch.cov(torch.stack([x0, x_t]))[0, 1] / x_t.var()
    error = ((x0 - x0.mean() - slope * (x_t - x_t.mean())) ** 2).mean()

    bar = float(signal) ** 2

    def best(shift):
        return sigma**2 * (1 - bar) / (1 - bar + (shift + bar**0.5) ** 2 * sigma**2)

    assert float(error) == pytest.approx(best(r), rel=0.015)  # the estimate's deviation is 0.3 %
    if r > 0:
        assert float(error) < best(0) * 0.95
