from __future__ import annotations

import pytest
import torch

from ctxedit.diffusion.guidance import guide, guide_by_all
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


def test_several_conditions_add_their_weighted_differences(randn):
    uncond, first, second = randn(), randn(), randn()
    assert torch.equal(guide_by_all(uncond, [first], 7.5), guide(uncond, first, 7.5)), "bit for bit"
    got = guide_by_all(uncond, [first, second], 3.0, (0.7, -0.2))
    want = uncond + 3.0 * (0.7 * (first - uncond) - 0.2 * (second - uncond))
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError):
        guide_by_all(uncond, [first, second], 3.0, (1.0,))
