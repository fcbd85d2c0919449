"""Sizes: the picture keeps its shape, padding comes off again, nothing is resampled without need."""

from __future__ import annotations

import numpy as np
import pytest

from ctxedit.errors import ConfigError
from ctxedit.media.geometry import crop, pad, plan_fit, to_source, to_working

SIZES = [(64, 48), (48, 64), (63, 47), (47, 63), (1920, 1080), (1080, 1920), (718, 718), (1, 1), (5000, 3), (3, 5000)]


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("target", [64, 100, 512])
@pytest.mark.parametrize("multiple", [1, 8, 64])
def test_long_side_is_the_target_and_the_shape_is_kept(width: int, height: int, target: int, multiple: int) -> None:
    fit = plan_fit(width, height, target, multiple)
    assert (fit.source_width, fit.source_height) == (width, height)
    assert max(fit.width, fit.height) == target
    assert fit.scale == pytest.approx(target / max(width, height))
    ideal = min(width, height) * target / max(width, height)
    # No whole number is nearer; a side is never less than one pixel.
    assert abs(min(fit.width, fit.height) - ideal) <= 0.5 or min(fit.width, fit.height) == 1
    assert (fit.width >= fit.height) == (width >= height) or fit.width == fit.height


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("multiple", [1, 8, 64])
def test_padding_is_the_least_that_fits(width: int, height: int, multiple: int) -> None:
    fit = plan_fit(width, height, 100, multiple)
    for working, padded in ((fit.width, fit.padded_width), (fit.height, fit.padded_height)):
        assert padded % multiple == 0
        assert 0 <= padded - working < multiple


@pytest.mark.parametrize(("width", "height"), [(64, 48), (63, 47), (47, 63), (64, 64), (9, 64)])
def test_crop_undoes_pad(width: int, height: int) -> None:
    fit = plan_fit(width, height, 64, 32)
    frames = np.random.default_rng(0).integers(0, 256, (3, fit.height, fit.width, 3), np.uint8)
    padded = pad(frames, fit)
    assert padded.shape == (3, fit.padded_height, fit.padded_width, 3)
    assert padded.dtype == np.uint8
    np.testing.assert_array_equal(crop(padded, fit), frames)


def test_padding_repeats_the_edge() -> None:
    fit = plan_fit(64, 40, 64, 64)
    frames = np.random.default_rng(0).integers(0, 256, (2, 40, 64, 3), np.uint8)
    padded = pad(frames, fit)
    above = fit.pad_top
    for row in range(above):
        np.testing.assert_array_equal(padded[:, row], frames[:, 0])
    for row in range(above + 40, 64):
        np.testing.assert_array_equal(padded[:, row], frames[:, -1])


def test_equal_sizes_are_bit_exact() -> None:
    fit = plan_fit(64, 48, 64, 8)
    frames = np.random.default_rng(0).integers(0, 256, (2, 48, 64, 3), np.uint8)
    np.testing.assert_array_equal(to_working(frames, fit), frames)
    np.testing.assert_array_equal(to_source(frames, fit), frames)
    np.testing.assert_array_equal(crop(pad(frames, fit), fit), frames)
    assert fit.scale == 1


def test_scaling_keeps_colours_and_places() -> None:
    """A quadrant pattern comes out of working and source size with every quadrant where it was."""
    frames = np.zeros((2, 94, 126, 3), np.uint8)
    frames[:, :47, :63] = (200, 30, 30)
    frames[:, 47:, 63:] = (30, 200, 30)
    fit = plan_fit(126, 94, 63, 8)
    working = to_working(frames, fit)
    assert working.shape == (2, 47, 63, 3)
    back = to_source(working, fit)
    assert back.shape == frames.shape
    for y, x in ((10, 10), (80, 110), (10, 110), (80, 10)):
        np.testing.assert_allclose(back[:, y, x], frames[:, y, x].astype(int), atol=3)


def test_wrong_sizes_are_told() -> None:
    fit = plan_fit(63, 47, 63, 8)
    with pytest.raises(ValueError, match="63x47"):
        pad(np.zeros((1, 48, 64, 3), np.uint8), fit)
    with pytest.raises(ValueError, match="64x48"):
        crop(np.zeros((1, 47, 63, 3), np.uint8), fit)


@pytest.mark.parametrize(("target", "multiple"), [(0, 8), (-64, 8), (64, 0)])
def test_sizes_below_one_are_refused(target: int, multiple: int) -> None:
    with pytest.raises(ConfigError):
        plan_fit(64, 48, target, multiple)
