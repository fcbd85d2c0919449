"""Figures of image sets against independent oracles: closed forms, scipy, slow loops."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from ctxedit.errors import ConfigError
from ctxedit.metrics import intervals
from ctxedit.metrics.images import fidelity, scores
from ctxedit.metrics.images.cmmd import cmmd


@pytest.fixture(scope="module", autouse=True)
def torch_fidelity():
    try:
        fidelity.library("metric_fid")
    except ConfigError:
        pytest.skip("torch-fidelity is not installed")


def exactly(mean, covariance, count=50, seed=0):
    """Features whose sample mean and covariance are exactly these."""
    raw = np.random.default_rng(seed).standard_normal((count, len(mean)))
    raw -= raw.mean(0)
    white = raw @ np.linalg.inv(np.linalg.cholesky(np.cov(raw, rowvar=False))).T
    return torch.from_numpy(white @ np.linalg.cholesky(covariance).T + mean)


def test_fid_of_gaussians_is_the_closed_form():
    one, two = np.diag([1.0, 4.0, 9.0]), np.diag([4.0, 1.0, 16.0])
    found = fidelity.fid(exactly([0, 0, 0], one), exactly([1, 2, 2], two, seed=1))
    assert found == pytest.approx(9 + (1 - 2) ** 2 + (2 - 1) ** 2 + (3 - 4) ** 2)


def test_fid_agrees_with_scipys_root():
    rng = np.random.default_rng(0)
    mix = [rng.standard_normal((5, 5)) for _ in range(2)]
    one, two = (m @ m.T + 0.1 * np.eye(5) for m in mix)
    a, b = exactly(np.zeros(5), one), exactly(np.arange(5.0), two, seed=1)
    root = scipy.linalg.sqrtm(one @ two).real
    assert fidelity.fid(a, b) == pytest.approx(30 + np.trace(one + two - 2 * root))
    assert fidelity.fid(a, a) == pytest.approx(0, abs=1e-6)


def test_kid_agrees_with_a_slow_loop():
    torch.manual_seed(0)
    x, y = torch.randn(7, 3).double(), torch.randn(7, 3).double() + 0.5

    def kernel(a, b):
        return (float(a @ b) / 3 + 1) ** 3

    n = len(x)
    own = [
        sum(kernel(p[i], p[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1)) for p in (x, y)
    ]
    cross = sum(kernel(a, b) for a in x for b in y) / n**2
    assert fidelity.kid(x, y, n, 2)[0] == pytest.approx(sum(own) - 2 * cross)


def test_inception_score_by_hand():
    # Two classes, each image sure of its own: exp(log 2) = 2; all alike: 1.
    sure = torch.tensor([[40.0, 0.0], [0.0, 40.0]] * 6)
    assert fidelity.inception_score(sure, 1)[0] == pytest.approx(2)
    assert fidelity.inception_score(sure[::2], 2) == (pytest.approx(1), pytest.approx(0))


def test_precision_and_recall_agree_with_a_slow_loop():
    torch.manual_seed(1)
    fake, real = torch.randn(12, 2), 1.5 * torch.randn(15, 2)

    def share(points, centres, k=3):
        inside = 0
        for p in points:
            near = [sorted(float((c - o).norm()) for o in centres)[k] for c in centres]
            inside += any(float((p - c).norm()) <= r for c, r in zip(centres, near, strict=True))
        return inside / len(points)

    found = fidelity.precision_recall(fake, real)
    assert found == (pytest.approx(share(fake, real)), pytest.approx(share(real, fake)))
    assert 0 < found[1] < 1


def test_cmmd_agrees_with_a_slow_loop_and_its_interval_with_leaving_groups_out():
    torch.manual_seed(2)
    x, y = (torch.nn.functional.normalize(torch.randn(n, 4) + s, dim=-1) for n, s in ((23, 0.0), (31, 0.5)))

    def slow(a, b):
        def mean(p, q):
            return np.mean([[math.exp(-float((u - v).square().sum()) / 200) for v in q] for u in p])

        return 1000 * (mean(a, a) + mean(b, b) - 2 * mean(a, b))

    value, (low, high) = cmmd(x, y)
    assert value == pytest.approx(slow(x, y), rel=1e-4)
    gx, gy = (intervals.groups_of(len(part)) for part in (x, y))
    without = [slow(x[gx != g], y[gy != g]) for g in range(10)]
    error = math.sqrt(0.9 * sum((v - np.mean(without)) ** 2 for v in without))
    assert (low, high) == (
        pytest.approx(value - 2.262157 * error, rel=1e-3), pytest.approx(value + 2.262157 * error, rel=1e-3)
    )  # fmt: skip
    assert cmmd(x, x)[0] == pytest.approx(0, abs=1e-9)


def test_the_jackknife_of_a_mean_is_the_standard_error_of_group_means():
    values = np.random.default_rng(0).standard_normal(200)
    groups = intervals.groups_of(200)
    means = np.array([values[groups == g].mean() for g in range(10)])
    low, high = intervals.jackknife(values.mean(), [values[groups != g].mean() for g in range(10)])
    assert high - low == pytest.approx(2 * 2.262157 * means.std(ddof=1) / math.sqrt(10))
    assert intervals.of_mean([1.0]) is None
    assert scipy.stats.t.ppf(0.975, 9) == pytest.approx(intervals.STUDENT)
    assert scipy.stats.norm.ppf(0.975) == pytest.approx(intervals.NORMAL)


def test_intervals_cover_the_truth():
    """The KID and FID intervals of two sets of one kind: most hold the values of far larger sets."""
    torch.manual_seed(3)
    shift, hits = 0.4, 0
    truth = fidelity.kid(torch.randn(1500, 4), torch.randn(1500, 4) + shift, 1500, 1)[0]
    for _ in range(20):
        sets = [scores._Set(torch.randn(120, 4) + s, torch.randn(120, 4), None) for s in (0, shift)]
        found = scores._Comparison(*sets, "toy", None, scores.Extractors(None)).score("kid")
        hits += found.low <= truth <= found.high
    assert hits >= 16


def test_what_features_means(tmp_path):
    (tmp_path / "weights").write_bytes(b"x")
    assert scores.features_from("clip") == ("clip", None)
    assert scores.features_from("inception") == ("inception", None)
    assert scores.features_from(str(tmp_path / "weights")) == ("inception", tmp_path / "weights")
    assert scores.features_from("gone.pth")[0] == "inception"
    assert scores.features_from("openai/clip-vit-base-patch32") == ("clip", "openai/clip-vit-base-patch32")
