from __future__ import annotations

import numpy as np
import pytest

from ctxedit.media.montage import contact_sheet, side_by_side

from .clips import draw, far


def test_source_left_edit_right() -> None:
    a, b = draw(3, 64, 48), draw(3, 63, 48)[:, :, ::-1]
    both = side_by_side(a, b)
    assert both.shape[:2] == (3, 48) and both.shape[2] % 2 == 0
    assert np.array_equal(both[:, :, :64], a) and np.array_equal(both[:, :, -63:], b)
    assert np.all(both[:, :, 64:-63] == 255) and 2 <= both.shape[2] - 127 <= 4


def test_the_lower_one_is_enlarged() -> None:
    small = draw(2, 64, 48)
    both = side_by_side(draw(2, 128, 96), small)
    assert both.shape[1] == 96 and 256 < both.shape[2] < 264
    assert far(both[:, ::2, -128::2], small) < 6
    with pytest.raises(ValueError, match="beside"):
        side_by_side(draw(2), draw(3))


def test_sheet_has_a_label_and_a_row_for_each() -> None:
    frames = draw(20, 64, 48)
    one = contact_sheet([("source", frames)], columns=4)
    two = contact_sheet([("source", frames), ("a cat in the snow", frames[:3])], columns=4)
    assert one.dtype == np.uint8 and one.shape[1] == two.shape[1] == 4 * (128 + 4) + 4
    assert two.shape[0] == 2 * one.shape[0] - 4
    bare = contact_sheet([("", frames)], columns=4)
    assert one.shape[0] - bare.shape[0] == 18
    strip = one[4:18]
    assert strip.min() < 100 and (strip == 255).mean() > 0.8  # ink on paper
    tiles = [one[-104:-8, 4 + 132 * column : 132 + 132 * column] for column in range(4)]
    shown = [np.asarray(tile)[8, 8:112:16].mean(-1) > 128 for tile in tiles]
    assert [sum(int(bit) << place for place, bit in enumerate(row)) for row in shown] == [0, 6, 13, 19]


def test_large_frames_are_reduced_other_shapes_fit_and_long_labels_wrap() -> None:
    sheet = contact_sheet([("a", draw(2, 640, 360)), ("b", draw(2, 30, 60))])
    assert sheet.shape[1] == 2 * (320 + 4) + 4
    short = contact_sheet([("word", draw(1))])
    long = contact_sheet([("a label of very many words " * 4, draw(1))])
    assert long.shape[1] == short.shape[1] and long.shape[0] > short.shape[0] + 18
    for rows, columns in (([], 8), ([("a", draw(1))], 0), ([("a", draw(1)[:0])], 8)):
        with pytest.raises(ValueError, match="contact sheet"):
            contact_sheet(rows, columns)
