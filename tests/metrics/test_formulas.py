"""Metrics against slow loops written from the definitions."""

import math

import numpy as np
import pytest
import torch

from ctxedit.errors import NumericsError
from ctxedit.metrics import formulas as metrics


def cosine(a, b):
    a, b = [float(v) for v in a], [float(v) for v in b]
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


@pytest.fixture
def frames():
    return torch.randn(5, 8, generator=torch.Generator().manual_seed(1)) * 3 + 0.5


@pytest.fixture
def texts():
    return torch.randn(2, 8, generator=torch.Generator().manual_seed(2))


def test_clip_text_is_the_mean_cosine(frames, texts):
    want = sum(cosine(f, texts[0]) for f in frames) / 5
    assert metrics.clip_text(frames, texts[0]) == pytest.approx(want, abs=1e-6)
    assert metrics.clip_text(frames, texts[:1]) == pytest.approx(want, abs=1e-6)
    with pytest.raises(ValueError):
        metrics.clip_text(frames, texts)


def test_clip_temp_is_over_all_pairs_and_the_other_over_neighbours(frames):
    pairs = [cosine(frames[i], frames[j]) for i in range(5) for j in range(i + 1, 5)]
    near = [cosine(frames[i], frames[i + 1]) for i in range(4)]
    assert len(pairs) == 10
    assert metrics.clip_temp(frames) == pytest.approx(sum(pairs) / 10, abs=1e-6)
    assert metrics.clip_temp_consecutive(frames) == pytest.approx(sum(near) / 4, abs=1e-6)
    assert abs(sum(pairs) / 10 - sum(near) / 4) > 1e-3  # the two differ here, so neither test passes by luck


def test_one_frame_has_no_agreement_and_equal_frames_agree_fully(frames):
    assert metrics.clip_temp(frames[:1]) is None
    assert metrics.clip_temp_consecutive(frames[:1]) is None
    same = frames[:1].expand(4, -1)
    assert metrics.clip_temp(same) == pytest.approx(1, abs=1e-9)
    assert metrics.clip_temp_consecutive(same) == pytest.approx(1, abs=1e-9)


def test_frame_accuracy_counts_frames_nearer_to_the_target():
    target, source = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    frames = torch.tensor([[2.0, 1.0], [1.0, 2.0], [3.0, 0.0], [1.0, 1.0]])  # yes, no, yes, tie
    assert metrics.frame_accuracy(frames, target, source) == 0.5
    assert metrics.frame_accuracy(frames, source, target) == 0.25


def test_nan_in_an_embedding_stops(frames, texts):
    frames[1, 1] = float("nan")
    with pytest.raises(NumericsError):
        metrics.clip_text(frames, texts[0])
    with pytest.raises(NumericsError):
        metrics.clip_temp(frames)


def noisy(seed, shape=(2, 16, 19, 3), spread=25):
    rng = np.random.default_rng(seed)
    a = rng.integers(0, 256, shape).astype(np.uint8)
    b = np.clip(a + rng.normal(0, spread, shape), 0, 255).astype(np.uint8)
    return a, b


def test_psnr_by_hand():
    a = np.zeros((1, 2, 2, 3), np.uint8)
    b = a.copy()
    b[0, 0, 0] = 255  # one pixel in four all wrong: mse 1/4
    assert metrics.psnr(a, b) == pytest.approx(10 * math.log10(4))
    keep = np.zeros((1, 2, 2), bool)
    keep[0, 0] = True  # one in two
    assert metrics.psnr(a, b, keep) == pytest.approx(10 * math.log10(2))
    assert metrics.psnr(a, b, ~keep) == math.inf
    assert metrics.psnr(a, b, np.zeros_like(keep)) is None


def test_psnr_against_a_loop_with_a_mask():
    a, b = noisy(3)
    keep = np.random.default_rng(4).random(a.shape[:3]) < 0.4
    total = count = 0
    for where in zip(*np.nonzero(keep), strict=True):
        for channel in range(3):
            total += ((int(a[where][channel]) - int(b[where][channel])) / 255) ** 2
            count += 1
    assert metrics.psnr(a, b, keep) == pytest.approx(-10 * math.log10(total / count), abs=1e-9)


def test_bytes_and_floats_and_tensors_say_the_same():
    a, b = noisy(5)
    fa, fb = (torch.from_numpy(x).float() / 255 for x in (a, b))
    assert metrics.psnr(fa, fb) == pytest.approx(metrics.psnr(a, b), abs=1e-4)
    assert metrics.ssim(fa, b) == pytest.approx(metrics.ssim(a, b), abs=1e-5)


def slow_map(x, y):
    """Wang et al.'s index at each place where an 11 × 11 window fits, one channel, as in the paper."""
    line = [math.exp(-((i - 5) ** 2) / (2 * 1.5**2)) for i in range(11)]
    weights = np.outer(line, line) / sum(line) ** 2
    height, width = x.shape
    out = np.empty((height - 10, width - 10))
    for i in range(height - 10):
        for j in range(width - 10):
            p, q = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
            mp, mq = (weights * p).sum(), (weights * q).sum()
            vp, vq = (weights * (p - mp) ** 2).sum(), (weights * (q - mq) ** 2).sum()
            cov = (weights * (p - mp) * (q - mq)).sum()
            c1, c2 = (0.01 * 1.0) ** 2, (0.03 * 1.0) ** 2
            out[i, j] = (2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2))
    return out


def slow_maps(a, b):
    return [
        np.stack([slow_map(p[..., c] / 255.0, q[..., c] / 255.0) for c in range(3)], -1)
        for p, q in zip(a, b, strict=True)
    ]


def test_ssim_against_a_slow_loop():
    a, b = noisy(6)
    want = float(np.mean([m.mean() for m in slow_maps(a, b)]))
    assert 0.2 < want < 0.995
    assert metrics.ssim(a, b) == pytest.approx(want, abs=1e-9)


def test_the_map_of_similarities_is_one_of_a_batch_and_can_be_learned_from():
    a, b = (torch.from_numpy(x).double().movedim(-1, 1) / 255 for x in noisy(6))
    want = torch.from_numpy(np.stack(slow_maps(*noisy(6)))).movedim(-1, 1)
    torch.testing.assert_close(metrics.ssim_map(a, b), want, atol=1e-9, rtol=0)
    small = a[0, :1, :12, :12].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: metrics.ssim_map(x, b[0, :1, :12, :12]), small)


def test_ssim_under_a_mask_averages_the_map():
    a, b = noisy(7)
    keep = np.random.default_rng(8).random(a.shape[:3]) < 0.5
    maps = slow_maps(a, b)
    want = np.mean([m[k[5:-5, 5:-5]].mean() for m, k in zip(maps, keep, strict=True)])
    assert metrics.ssim(a, b, keep) == pytest.approx(float(want), abs=1e-9)
    keep[1] = False  # the second frame has nothing to compare, and does not count
    assert metrics.ssim(a, b, keep) == pytest.approx(float(maps[0][keep[0, 5:-5, 5:-5]].mean()), abs=1e-9)
    keep[0, 5:-5, 5:-5] = False
    assert metrics.ssim(a, b, keep) is None


def test_ssim_falls_with_noise_and_is_one_for_equal_clips():
    a, b = noisy(9, spread=10)
    _, c = noisy(9, spread=60)
    assert metrics.ssim(a, a) == pytest.approx(1, abs=1e-12)
    assert 1 > metrics.ssim(a, b) > metrics.ssim(a, c)


def test_the_change_inside_a_mask_does_not_count():
    a, _ = noisy(10, shape=(2, 40, 40, 3))
    b, keep = a.copy(), np.ones((2, 40, 40), bool)
    b[:, 15:20, 15:20] = 0
    keep[:, 10:25, 10:25] = False  # five pixels wider: as far as a window reaches
    assert metrics.psnr(a, b, keep) == math.inf
    assert metrics.ssim(a, b, keep) == pytest.approx(1, abs=1e-12)
    assert metrics.psnr(a, b) < 40
    assert metrics.ssim(a, b) < 0.99


@pytest.mark.parametrize("figure", [metrics.psnr, metrics.ssim])
def test_what_cannot_be_compared_is_refused(figure):
    a, b = noisy(11)
    with pytest.raises(ValueError, match="two clips"):
        figure(a, b[:1])
    with pytest.raises(ValueError, match="boolean mask"):
        figure(a, b, np.ones(a.shape[:3], np.uint8))
    with pytest.raises(ValueError, match="boolean mask"):
        figure(a, b, np.ones(a.shape[1:3], bool))
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        figure(a.astype(np.float32), b.astype(np.float32))
    with pytest.raises(ValueError, match="uint8"):
        figure(a.astype(np.int32), b.astype(np.int32))
    with pytest.raises(NumericsError):
        figure(np.full(a.shape, np.nan), np.zeros(a.shape))


def test_ssim_needs_room_for_its_window():
    a, b = noisy(12, shape=(1, 10, 30, 3))
    with pytest.raises(ValueError, match="11 pixels"):
        metrics.ssim(a, b)
