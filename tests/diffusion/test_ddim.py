from __future__ import annotations

import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler

from ctxedit.diffusion.ddim import ddim, eta_std
from ctxedit.diffusion.forward import contextual_shift, marginal
from ctxedit.diffusion.parameterization import to_x0
from ctxedit.diffusion.posterior import ancestral, posterior
from ctxedit.diffusion.schedule import alphas_cumprod, levels

STABLE_DIFFUSION = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "steps_offset": 1,
}


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("to_one", [True, False])
def test_down_is_diffusers_ddim(kind, spacing, eta, to_one, randn, in_double):
    options = {"prediction_type": kind, "timestep_spacing": spacing, "set_alpha_to_one": to_one}
    theirs = in_double(DDIMScheduler(**STABLE_DIFFUSION, **options))
    theirs.set_timesteps(20)
    bar = theirs.alphas_cumprod
    used = levels(bar, 20, spacing, final_alpha=None if to_one else float(bar[0]))
    for start, end in used.down():
        x, output, z = randn(), randn(), randn()
        expected = theirs.step(output, used.timestep(start), x, eta=eta, variance_noise=z).prev_sample
        here, there = used.at(start), used.at(end)
        x0 = to_x0(output, x, *here, kind)
        ours = ddim(x, x0, *here, *there, std=eta_std(eta, *here, *there), z=z)
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_up_is_diffusers_inverse(kind, randn, in_double):
    theirs = in_double(DDIMInverseScheduler(**STABLE_DIFFUSION, prediction_type=kind))
    theirs.set_timesteps(20)
    used = levels(theirs.alphas_cumprod, 20)
    for start, end in used.up():
        x, output = randn(), randn()
        expected = theirs.step(output, used.timestep(end), x).prev_sample
        here, there = used.at(start), used.at(end)
        x0 = to_x0(output, x, *here, kind)
        # clean data holds no noise: there the output is the noise, for v too (v = eps at a = 1)
        ours = ddim(x, x0, *here, *there, eps=output if start == 0 else None)
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("schedule", ["scaled_linear", "cosine"])
@pytest.mark.parametrize("shifted", [False, True])
def test_down_then_up_with_the_same_prediction_is_exact(schedule, shifted, randn):
    used = levels(alphas_cumprod(kind=schedule), 10)
    x = start_from = randn()
    x0s, shifts = [randn() for _ in range(10)], [randn() if shifted else None for _ in range(11)]
    path = [x]
    for (start, end), x0 in zip(list(used.down())[:-1], x0s, strict=False):
        x = ddim(x, x0, *used.at(start), *used.at(end), shifts[start], shifts[end])
        path.append(x)
    assert not torch.allclose(x, start_from)
    for (start, end), x0 in zip(list(used.up())[1:], x0s[8::-1], strict=True):
        x = ddim(x, x0, *used.at(start), *used.at(end), shifts[start], shifts[end])
        torch.testing.assert_close(x, path[10 - end], rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("pair", [(20, 19), (7, 2), (3, 11), (1, 0)], ids=str)
def test_the_true_x0_carries_one_marginal_to_another(pair, sd_levels, randn):
    """With the true x_0 and its shifts, the same noise is kept: x_u is the marginal at u (Eq 8, 9)."""
    x0, eps, shifts = randn(), randn(), [randn(), randn()]
    here, there = sd_levels.at(pair[0]), sd_levels.at(pair[1])
    moved = ddim(marginal(x0, eps, *here, shifts[0]), x0, *here, *there, *shifts)
    torch.testing.assert_close(moved, marginal(x0, eps, *there, shifts[1]), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("kind", "vanishes"), [("noise", True), ("paper", False)])
@pytest.mark.parametrize("pair", [(20, 19), (12, 5), (2, 1), (4, 9)], ids=str)
def test_eq_11s_correction_vanishes_for_the_published_codes_shift(kind, vanishes, pair, sd_levels, randn):
    x, x0, r = randn(), randn(), randn()
    here, there = sd_levels.at(pair[0]), sd_levels.at(pair[1])
    shifts = [contextual_shift(r, *level, kind) for level in (here, there)]
    correction = ddim(x, x0, *here, *there, *shifts) - ddim(x, x0, *here, *there)
    if vanishes:
        assert correction.abs().max() < 1e-13
    else:
        expected = shifts[1] - there[1] / here[1] * shifts[0]
        torch.testing.assert_close(correction, expected, rtol=1e-9, atol=1e-12)
        assert correction.abs().max() > 1e-3


@pytest.mark.parametrize(("tau", "to"), [(1.0, 0.9), (0.5, 0.45), (0.3, 0.0), (0.4, 0.6)])
def test_flow_levels_give_the_euler_step(tau, to, randn):
    x, velocity = randn(), randn()
    x0 = x - tau * velocity  # dx/dtau = eps - x_0
    moved = ddim(x, x0, 1 - tau, tau, 1 - to, to)
    torch.testing.assert_close(moved, x + (to - tau) * velocity, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("pair", [(20, 19), (12, 5), (1, 0)], ids=str)
def test_eta_one_is_the_posterior(pair, sd_levels, randn):
    x, x0, b, b_prev, z = (randn() for _ in range(5))
    here, there = sd_levels.at(pair[0]), sd_levels.at(pair[1])
    sigma = eta_std(1.0, *here, *there)
    _, variance = posterior(x, x0, *here, *there)
    assert sigma**2 == pytest.approx(float(variance), abs=1e-14)
    torch.testing.assert_close(
        ddim(x, x0, *here, *there, b, b_prev, sigma, z),
        ancestral(x, x0, *here, *there, b, b_prev, z=z),
        rtol=1e-9,
        atol=1e-9,
    )


def test_zero_terminal_snr_starts_from_pure_noise(randn):
    used = levels(alphas_cumprod(zero_terminal_snr=True), 10, "trailing")
    here, there = used.at(10), used.at(9)
    x, x0, z = randn(), randn(), randn()
    torch.testing.assert_close(ddim(x, x0, *here, *there), marginal(x0, x, *there), rtol=1e-12, atol=1e-12)
    fresh = ddim(x, x0, *here, *there, std=eta_std(1.0, *here, *there), z=z)
    torch.testing.assert_close(fresh, marginal(x0, z, *there), rtol=1e-12, atol=1e-7)


def test_a_sigma_rounded_beyond_the_noise_is_all_of_it(randn):
    x, x0, z = randn(), randn(), randn()
    rounded = torch.nextafter(torch.tensor(0.6, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64))
    moved = ddim(x, x0, 0.6, 0.8, 0.8, 0.6, std=rounded, z=z)
    torch.testing.assert_close(moved, marginal(x0, z, 0.8, 0.6), rtol=1e-12, atol=1e-12)


def test_gradients_reach_the_shift(sd_levels, randn):
    x, x0 = randn(), randn()
    r = randn().requires_grad_()
    here, there = sd_levels.at(12), sd_levels.at(11)
    ddim(x, x0, *here, *there, contextual_shift(r, *here), contextual_shift(r, *there)).sum().backward()
    slope = there[0] * (1 - there[0]) - there[1] / here[1] * here[0] * (1 - here[0])
    torch.testing.assert_close(r.grad, slope.expand_as(r), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("levels_", "options", "message"),
    [
        ((1.0, 0.0, 0.8, 0.6), {}, "sigma must be positive"),
        ((0.6, 0.8, 0.8, 0.6), {"std": 0.7, "z": torch.zeros(2, 4, 3, 5)}, "std"),
        ((0.6, 0.8, 0.8, 0.6), {"std": -0.1, "z": torch.zeros(2, 4, 3, 5)}, "std"),
        ((0.6, 0.8, 0.8, 0.6), {"std": 0.1}, "needs noise z"),
    ],
    ids=["clean data without eps", "too much noise", "negative noise", "no z"],
)
def test_impossible_steps_are_refused(levels_, options, message, randn):
    x = randn()
    with pytest.raises(ValueError, match=message):
        ddim(x, x, *levels_, **options)


def test_eta_is_for_downward_steps():
    with pytest.raises(ValueError, match="downward"):
        eta_std(1.0, 0.8, 0.6, 0.6, 0.8)
