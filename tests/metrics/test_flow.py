"""Warp error: known translations, known occlusion."""

import numpy as np
import pytest

from ctxedit.metrics.flow import optical_flow, visible, warp, warp_error


def texture(height=64, width=96, seed=0):
    """A smooth random picture, RGB uint8."""
    import cv2

    noise = np.random.default_rng(seed).random((height, width, 3), np.float32)
    soft = cv2.GaussianBlur(noise, (0, 0), 3)
    soft = (soft - soft.min()) / (soft.max() - soft.min())
    return (soft * 255).astype(np.uint8)


def sliding(step=(3, 2), frames=4, seed=0):
    """A clip that pans over a texture: what is at (x, y) is at (x, y) − step one frame later."""
    whole = texture(120, 160, seed)
    return np.stack(
        [whole[t * step[1] : t * step[1] + 64, t * step[0] : t * step[0] + 80] for t in range(frames)]
    )


def test_flow_of_a_known_translation():
    clip = sliding()
    for t in range(3):
        inner = optical_flow(clip[t], clip[t + 1])[12:-12, 12:-12]
        assert np.abs(np.median(inner, (0, 1)) - (-3, -2)).max() < 0.1
        assert np.abs(inner - (-3, -2)).mean() < 0.3


def test_warp_looks_up_where_the_flow_points():
    image = np.arange(48, dtype=np.float32).reshape(6, 8)
    flow = np.zeros((6, 8, 2), np.float32)
    flow[..., 0], flow[..., 1] = 2, 1
    assert np.array_equal(warp(image, flow)[:-1, :-2], image[1:, 2:])
    flow[..., 0] = 0.5
    assert np.allclose(warp(image, flow)[:-1, :-1], (image[1:, :-1] + image[1:, 1:]) / 2)


def test_pixels_without_a_counterpart_are_found():
    there = np.zeros((10, 20, 2), np.float32)
    there[..., 0] = 4
    back = -there
    seen = visible(there, back)
    assert seen[:, :16].all() and not seen[:, 16:].any(), "four columns leave the picture"
    back[3:6, 8:12] = 0  # something that stands still covers them in the other frame
    assert not visible(there, back)[3:6, 4:8].any() and visible(there, back)[7:, :16].all()


def test_an_edit_that_moves_along_has_no_error_and_one_that_stands_has():
    source, along = sliding(), sliding(seed=1)
    moving = warp_error(source, along)
    standing = warp_error(source, np.repeat(along[:1], 4, 0))
    flicker = along.copy()
    flicker[1::2] = np.clip(flicker[1::2].astype(int) + 51, 0, 255).astype(np.uint8)
    # The flow is right to a tenth of a pixel, so bilinear look-up leaves next to nothing.
    assert moving < 1e-4 and standing > 20 * moving
    assert warp_error(source, flicker) == pytest.approx(0.04, rel=0.25), "0.2 squared, less where it clips"


def test_what_has_no_meaning():
    clip = sliding(frames=2)
    assert warp_error(clip[:1], clip[:1]) is None
    with pytest.raises(ValueError, match="two clips"):
        warp_error(clip, clip[:, :10])
