from __future__ import annotations

import numpy as np
import pytest

from ctxedit.errors import ConfigError
from ctxedit.media.geometry import crop, pad, plan_fit, resize, to_working

from .clips import draw, far


def test_aspect_is_kept_to_half_a_pixel_and_padding_is_the_least() -> None:
    random = np.random.default_rng(0)
    for width, height, target in random.integers(1, 4000, (3000, 3)).tolist():
        fit = plan_fit(width, height, target, 8)
        assert max(fit.width, fit.height) == target
        short, exact = min(fit.width, fit.height), target * min(width, height) / max(width, height)
        assert abs(short - exact) <= 0.5 or (short == 1 and exact < 0.5)
        assert (fit.width >= fit.height) == (width >= height) or fit.width == fit.height
        for padded, size in ((fit.padded_width, fit.width), (fit.padded_height, fit.height)):
            assert padded % 8 == 0 and 0 <= padded - size < 8


@pytest.mark.parametrize(
    ("source", "working", "padded"),
    [
        ((1920, 1080), (64, 36), (64, 40)),
        ((1080, 1920), (36, 64), (40, 64)),
        ((63, 47), (64, 48), (64, 48)),
        ((512, 512), (64, 64), (64, 64)),
        ((4000, 3), (64, 1), (64, 8)),
    ],
)
def test_known_sizes(source: tuple[int, int], working: tuple[int, int], padded: tuple[int, int]) -> None:
    fit = plan_fit(*source, target=64, multiple=8)
    assert (fit.width, fit.height) == working
    assert (fit.padded_width, fit.padded_height) == padded
    assert fit.scale == 64 / max(source)


@pytest.mark.parametrize("source", [(63, 47), (47, 63), (64, 64), (99, 10)])
def test_crop_undoes_pad_and_the_edge_is_repeated(source: tuple[int, int]) -> None:
    fit = plan_fit(*source, target=61, multiple=16)
    frames = draw(3, fit.width, fit.height)
    padded = pad(frames, fit)
    assert padded.shape == (3, fit.padded_height, fit.padded_width, 3)
    assert np.array_equal(crop(padded, fit), frames)
    assert np.array_equal(padded[:, 0, fit.pad_left], frames[:, 0, 0])
    assert np.array_equal(padded[:, -1, -1], frames[:, -1, -1])
    mask = np.random.default_rng(0).random((3, fit.height, fit.width), np.float32)
    assert np.array_equal(crop(pad(mask, fit), fit), mask)


def test_there_and_back() -> None:
    frames = draw(2, 301, 169)
    fit = plan_fit(301, 169, target=128, multiple=8)
    small = to_working(frames, fit)
    assert small.shape == (2, 72, 128, 3) and small.dtype == np.uint8
    assert resize(small, fit.source_width, fit.source_height).shape == frames.shape
    assert far(resize(small, fit.source_width, fit.source_height)[:, 16:], frames[:, 16:]) < 2
    same = plan_fit(301, 169, target=301, multiple=1)
    assert np.array_equal(to_working(frames, same), frames)


def test_wrong_numbers_and_wrong_frames() -> None:
    for numbers in ((0, 4, 64, 8), (4, 0, 64, 8), (4, 4, 0, 8), (4, 4, 64, 0)):
        with pytest.raises(ConfigError):
            plan_fit(*numbers)
    fit = plan_fit(64, 48, 32, 8)
    with pytest.raises(ValueError, match="32x24"):
        pad(draw(1, 64, 48), fit)
