"""Attention by matrix products: the fused kernel's result, whole and in slices; when which kernel is used."""

import pytest
import torch
import torch.nn.functional as F

from ctxedit.models import attention
from ctxedit.models.attention import explicit, sdpa


def draw(dtype, keys=12):
    generator = torch.Generator().manual_seed(0)
    sizes = ((5, 2, 7, 8), (5, 2, keys, 8), (5, 2, keys, 8))
    return [torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype) for size in sizes]


@pytest.mark.parametrize("at_once", [1, 24, 24 * 3, 24 * 7 * 2, 1 << 24])
def test_it_is_the_fused_kernels_result_in_slices_of_any_size(monkeypatch, at_once):
    monkeypatch.setattr(attention, "_AT_ONCE", at_once)
    q, k, v = draw(torch.float64)
    torch.testing.assert_close(explicit(q, k, v), F.scaled_dot_product_attention(q, k, v), rtol=0, atol=1e-12)


def test_bfloat16_on_a_cpu_stays_near_float32_and_so_do_its_gradients():
    exact, rounded = draw(torch.float32), draw(torch.bfloat16)
    for x in (*exact, *rounded):
        x.requires_grad_(True)
    wanted, got = F.scaled_dot_product_attention(*exact), sdpa(*rounded)
    for out in (wanted, got):
        out.float().sum().backward()
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), wanted, rtol=0, atol=0.03)
    for a, b in zip(exact, rounded, strict=True):
        torch.testing.assert_close(b.grad.float(), a.grad, rtol=0, atol=0.05)


def test_maps_too_large_to_keep_for_a_gradient_are_left_to_the_fused_kernel(monkeypatch):
    used = []
    monkeypatch.setattr(attention, "explicit", lambda q, k, v: used.append(len(q)) or v)
    monkeypatch.setattr(attention, "_MOST_KEPT", 5 * 2 * 7 * 12 - 1)
    q, k, v = draw(torch.bfloat16)
    sdpa(q, k, v)
    assert used == [5]  # nothing is kept without a gradient
    sdpa(q.requires_grad_(True), k, v)
    sdpa(*draw(torch.float32))
    assert used == [5]
    monkeypatch.setattr(attention, "_MOST_KEPT", 5 * 2 * 7 * 12)
    sdpa(q, k, v)
    assert used == [5, 5]
