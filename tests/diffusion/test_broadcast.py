from __future__ import annotations

import pytest
import torch

from ctxedit.diffusion.broadcast import as_level, per_sample, positive
from ctxedit.diffusion.ddim import ddim
from ctxedit.diffusion.forward import effective_noise, marginal, step_forward
from ctxedit.diffusion.likelihood import decoder_nll, posterior_kl, prior_kl
from ctxedit.diffusion.parameterization import from_x0, to_x0
from ctxedit.diffusion.posterior import ancestral

KERNELS = {
    "marginal": lambda x, y, z, a, s: marginal(x, y, a, s, z),
    "step_forward": lambda x, y, z, a, s: step_forward(x, a**2, y, z, y),
    "effective_noise": lambda x, y, z, a, s: effective_noise(x, y, a, s),
    "ancestral": lambda x, y, z, a, s: ancestral(x, y, a, s, (1 + a) / 2, s / 2, y, z, z=z),
    "ddim": lambda x, y, z, a, s: ddim(x, y, a, s, a / 2, (1 + s) / 2, y, z, std=s / 3, z=z),
    "to_x0": lambda x, y, z, a, s: to_x0(x, y, a, s, "v_prediction"),
    "from_x0": lambda x, y, z, a, s: from_x0(x, y, a, s, "v_prediction"),
    "prior_kl": lambda x, y, z, a, s: prior_kl(x, a, s, y),
    "posterior_kl": lambda x, y, z, a, s: posterior_kl(x, y, s),
    "decoder_nll": lambda x, y, z, a, s: decoder_nll(x, y, s),
}


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS.keys())
@pytest.mark.parametrize("shape", [(3, 4, 5, 3), (3, 3), (3, 2, 4, 5, 5)], ids=str)
def test_a_level_for_each_sample_equals_one_sample_at_a_time(kernel, shape, randn):
    x, y, z = randn(*shape), randn(*shape), randn(*shape)
    signal = torch.tensor([0.95, 0.6, 0.2], dtype=torch.float64)
    noise = (1 - signal**2).sqrt()
    together = kernel(x, y, z, signal, noise)
    for i in range(3):
        alone = kernel(x[i : i + 1], y[i : i + 1], z[i : i + 1], signal[i], noise[i])
        as_floats = kernel(x[i : i + 1], y[i : i + 1], z[i : i + 1], float(signal[i]), float(noise[i]))
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(as_floats, alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(4,), (2,), (3, 1), (3, 4, 1, 1)], ids=str)
def test_a_level_that_is_not_per_sample_is_refused(shape):
    with pytest.raises(ValueError, match="does not fit a batch"):
        per_sample(torch.rand(shape), torch.zeros(3, 4, 4, 4))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("level", [0.3, torch.tensor(0.3), torch.tensor([0.3]), torch.full((2,), 0.3)])
def test_the_latents_dtype_is_kept(level, dtype):
    latents = torch.ones(2, 4, 2, 2, dtype=dtype)
    assert marginal(latents, latents, level, level).dtype == dtype
    assert per_sample(level, latents).ndim in (0, 4)


def test_floats_become_double_precision_levels():
    assert as_level(0.1).item() == 0.1


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), torch.tensor([1.0, 0.0])])
def test_a_level_that_cannot_divide_is_refused(value):
    with pytest.raises(ValueError, match="sigma must be positive"):
        positive(value, "sigma")
