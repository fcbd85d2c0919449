"""Intervals against theory."""

import numpy as np
import pytest

from ctxedit.bench.statistics import bootstrap, wilson


def test_single_values_agree_with_normal_theory():
    values = np.random.default_rng(1).normal(3, 2, 400)
    found = bootstrap(list(values), range(400))
    error = values.std() / 20
    assert found.mean == pytest.approx(values.mean()) and (found.count, found.groups) == (400, 400)
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)
    assert found == bootstrap(list(values), range(400))


def test_repeats_within_a_clip_do_not_narrow_the_interval():
    values = list(np.random.default_rng(2).normal(0, 1, 30))
    once = bootstrap(values, range(30))
    thrice = bootstrap(values * 3, list(range(30)) * 3)
    assert thrice.high - thrice.low == pytest.approx(once.high - once.low, rel=0.05)
    feigned = bootstrap(values * 3, range(90))
    assert feigned.high - feigned.low < 0.7 * (once.high - once.low)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng, hits = np.random.default_rng(3), 0
    for _ in range(200):
        level = np.repeat(rng.normal(0, 1, 25), 3)  # three edits share their clip
        found = bootstrap(list(level + rng.normal(0, 0.5, 75)), np.repeat(np.arange(25), 3).tolist(), 400)
        hits += found.low <= 0 <= found.high
    assert 0.88 <= hits / 200 <= 0.99


def test_one_clip_has_no_interval_and_nothing_no_mean():
    one = bootstrap([1.0, 3.0], ["a", "a"])
    assert (one.mean, one.low, one.high, one.groups) == (2.0, None, None, 1)
    assert bootstrap([], []) is None
    with pytest.raises(ValueError, match="groups"):
        bootstrap([1.0], [])


def test_wilson_against_published_values():
    # Newcombe 1998, table I, method 3: 81/263, 15/148, 0/20 and 1/29.
    for wins, count, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611),
                                   (1, 29, 0.0061, 0.1718)):  # fmt: skip
        assert wilson(wins, count) == pytest.approx((low, high), abs=5e-5)
    assert wilson(0, 0) == (0, 1) and wilson(20, 20)[1] == pytest.approx(1)
    with pytest.raises(ValueError):
        wilson(3, 2)
