from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler

from ctxedit.diffusion.schedule import Levels, alphas_cumprod, levels

DIFFUSERS_NAME = {"scaled_linear": "scaled_linear", "linear": "linear", "cosine": "squaredcos_cap_v2"}


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
@pytest.mark.parametrize("kind", DIFFUSERS_NAME)
def test_alphas_cumprod_are_those_of_diffusers(kind, zero_terminal_snr):
    theirs = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule=DIFFUSERS_NAME[kind],
        rescale_betas_zero_snr=zero_terminal_snr,
    ).alphas_cumprod
    ours = alphas_cumprod(kind=kind, zero_terminal_snr=zero_terminal_snr)
    torch.testing.assert_close(ours, theirs.double(), rtol=1e-4, atol=1e-6)
    assert (ours[-1] == 0) == zero_terminal_snr


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("num_train", [1000, 100])
def test_timesteps_are_those_of_diffusers_for_every_number_of_steps(spacing, num_train):
    offset = 1
    theirs = DDIMScheduler(num_train, timestep_spacing=spacing, steps_offset=offset)
    bar = alphas_cumprod(num_train)
    compared = 0
    for steps in [*range(1, 101), 243, 250, 333, 500, 729, 999, 1000]:
        if steps > num_train or (spacing == "leading" and steps == num_train):
            continue
        theirs.set_timesteps(steps)
        if len(theirs.timesteps) != steps:  # their trailing arange overshoots for some counts
            continue
        assert torch.equal(levels(bar, steps, spacing, offset).timesteps, theirs.timesteps), steps
        compared += 1
    assert compared >= 60


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [1, 7, 20, 50])
def test_levels_rise_from_clean_data_and_timesteps_follow(spacing, steps):
    bar = alphas_cumprod()
    used = levels(bar, steps, spacing)
    assert used.steps == steps
    assert used.at(0) == (1.0, 0.0)
    for level in range(1, steps + 1):
        signal, noise = used.at(level)
        assert signal**2 == pytest.approx(float(bar[used.timestep(level)]), rel=1e-12)
        assert signal**2 + noise**2 == pytest.approx(1, rel=1e-12)
    assert used.timestep(steps) == used.timesteps[0] == used.timesteps.max()
    assert [used.timestep(start) for start, _ in used.down()] == used.timesteps.tolist()
    assert [used.timestep(end) for _, end in used.up()] == used.timesteps.tolist()[::-1]
    assert list(used.up()) == [(end, start) for start, end in used.down()][::-1]


def test_final_alpha_is_level_zero():
    bar = alphas_cumprod()
    signal, noise = levels(bar, 20, final_alpha=float(bar[0])).at(0)
    assert signal**2 == pytest.approx(1 - 0.00085, rel=1e-12)
    assert noise**2 == pytest.approx(0.00085, rel=1e-9)


@pytest.mark.parametrize("level", [0, -1, 21])
def test_only_noisy_levels_have_a_timestep(level, sd_levels):
    with pytest.raises(IndexError):
        sd_levels.timestep(level)


@pytest.mark.parametrize("level", [-1, 21])
def test_levels_do_not_wrap_around(level, sd_levels):
    with pytest.raises(IndexError):
        sd_levels.at(level)


@pytest.mark.parametrize(
    ("steps", "options"),
    [
        (0, {}),
        (1001, {}),
        (1000, {"steps_offset": 1}),
        (20, {"steps_offset": -1}),
        (20, {"spacing": "karras"}),
    ],
)
def test_steps_that_do_not_fit_are_refused(steps, options):
    with pytest.raises(ValueError):
        levels(alphas_cumprod(), steps, **options)


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="sigmoid"):
        alphas_cumprod(kind="sigmoid")


@pytest.mark.parametrize(
    ("timesteps", "sigma"), [([2, 1], [0.0, 0.5]), ([1, 2], [0.0, 0.5, 0.9]), ([2, 1], [0.0, 0.9, 0.5])]
)
def test_disordered_levels_are_refused(timesteps, sigma):
    sigma = torch.tensor(sigma)
    with pytest.raises(ValueError):
        Levels(torch.tensor(timesteps), 1 - sigma, sigma)
