from __future__ import annotations

import pytest
import torch

from ctxedit.diffusion.guidance import guide, rescale
from ctxedit.diffusion.parameterization import to_x0


def test_guidance_extrapolates_from_the_unconditional_output():
    uncond, cond = torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0, 0.0]])
    assert guide(uncond, cond, 0.0).tolist() == uncond.tolist()
    assert guide(uncond, cond, 1.0).tolist() == cond.tolist()
    assert guide(uncond, cond, 7.5).tolist() == [[8.5, -13.0]]


def test_a_scale_for_each_sample(randn):
    uncond, cond = randn(), randn()
    both = guide(uncond, cond, torch.tensor([1.0, 3.0]))
    torch.testing.assert_close(both, torch.stack([cond[0], 3 * cond[1] - 2 * uncond[1]]))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_guiding_the_output_is_guiding_x0(kind, randn):
    uncond, cond, x_t = randn(), randn(), randn()
    of_output = to_x0(guide(uncond, cond, 7.5), x_t, 0.6, 0.8, kind)
    of_x0 = guide(*(to_x0(output, x_t, 0.6, 0.8, kind) for output in (uncond, cond)), 7.5)
    torch.testing.assert_close(of_output, of_x0, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("phi", [0.0, 0.7, 1.0])
def test_rescale_moves_each_samples_deviation_towards_the_conditional_one(phi, randn):
    cond = randn() * torch.tensor([1.0, 4.0]).reshape(2, 1, 1, 1)
    guided = 5 * randn()
    out = rescale(guided, cond, phi)
    for i in range(2):
        expected = phi * cond[i].std() + (1 - phi) * guided[i].std()
        torch.testing.assert_close(out[i].std(), expected, rtol=1e-10, atol=0)
        torch.testing.assert_close(
            out[i] / out[i].norm(), guided[i] / guided[i].norm()
        )  # only the size changes
