from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ctxedit.errors import InputError
from ctxedit.media.geometry import plan_fit
from ctxedit.media.mask import read_mask

from .clips import encode

FIT = plan_fit(128, 96, target=64, multiple=8)


def _left_half(width: int, height: int, columns: int | None = None) -> np.ndarray:
    picture = np.zeros((height, width, 3), np.uint8)
    picture[:, : width // 2 if columns is None else columns] = 255
    return picture


@pytest.mark.parametrize("size", [(128, 96), (64, 48), (256, 192), (33, 25)])
def test_one_image_serves_every_frame(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.fromarray(_left_half(*size)).save(tmp_path / "mask.png")
    mask = read_mask(tmp_path / "mask.png", 5, 100, 3, FIT)
    assert mask.shape == (5, 48, 64) and mask.dtype == np.float32
    assert np.all(mask[:, :, :29] == 1) and np.all(mask[:, :, 35:] == 0)
    assert np.array_equal(mask[0], mask[4])


def test_grey_is_between_and_transparent_is_black(tmp_path: Path) -> None:
    Image.fromarray(np.full((96, 128), 128, np.uint8)).save(tmp_path / "grey.png")
    assert read_mask(tmp_path / "grey.png", 1, 0, 1, FIT) == pytest.approx(0.5, abs=0.01)
    picture = np.full((96, 128, 4), 255, np.uint8)
    picture[:, 64:, 3] = 0
    Image.fromarray(picture).save(tmp_path / "clear.png")
    mask = read_mask(tmp_path / "clear.png", 1, 0, 1, FIT)
    assert mask[0, :, :30].min() == 1 and mask[0, :, 34:].max() == 0


def _growing(count: int) -> np.ndarray:
    return np.stack([_left_half(128, 96, 8 * (index + 1)) for index in range(count)])


@pytest.mark.parametrize("kind", ["video", "folder"])
@pytest.mark.parametrize(("count", "columns"), [(12, [16, 24, 32, 40]), (4, [4, 8, 12, 16])])
def test_many_pictures(tmp_path: Path, kind: str, count: int, columns: list[int]) -> None:
    """Of 12, those at the source's indices 3, 5, 7 and 9; of exactly 4, one for each frame."""
    path = tmp_path / "mask"
    if kind == "video":
        path = encode(tmp_path / "mask.mp4", _growing(count), "-crf", 20, "-pix_fmt", "yuv420p")
    else:
        path.mkdir()
        for index, picture in enumerate(_growing(count)):
            Image.fromarray(picture).save(path / f"{index}.png")
    mask = read_mask(path, 4, 3, 2, FIT)
    assert (mask > 0.5).sum((1, 2)).tolist() == [48 * column for column in columns]
    assert mask[:, :, -10:].max() == 0


def test_masks_that_do_not_fit(tmp_path: Path) -> None:
    Image.fromarray(_left_half(100, 100)).save(tmp_path / "square.png")
    with pytest.raises(InputError, match="aspect ratios differ"):
        read_mask(tmp_path / "square.png", 2, 0, 1, FIT)
    Image.fromarray(np.zeros((96, 128), np.uint8)).save(tmp_path / "black.png")
    with pytest.raises(InputError, match="nothing may change"):
        read_mask(tmp_path / "black.png", 2, 0, 1, FIT)
    path = encode(tmp_path / "short.mp4", _growing(3))
    with pytest.raises(InputError, match="has 3 frames"):
        read_mask(path, 5, 0, 1, FIT)


def _layout(folder: Path, size: list[int], *boxes: list[float]) -> Path:
    listed = [{"label": "cat", "box": box} for box in boxes]
    (folder / "boxes.json").write_text(json.dumps({"size": size, "boxes": listed}))
    return folder / "boxes.json"


@pytest.mark.parametrize("scale", [1, 2])
def test_a_layout_is_white_in_its_boxes(tmp_path: Path, scale: int) -> None:
    boxes = [[scale * side for side in box] for box in ([16, 32, 64, 96], [100, 0, 127, 9])]
    mask = read_mask(_layout(tmp_path, [128 * scale, 96 * scale], *boxes), 3, 7, 2, FIT)
    wanted = np.zeros((48, 64), np.float32)
    wanted[16:48, 8:32] = 1
    wanted[0:5, 50:64] = 1  # a pixel that is covered in part may change
    assert mask.shape == (3, 48, 64) and mask.dtype == np.float32
    assert all(np.array_equal(frame, wanted) for frame in mask)


def test_a_layout_of_another_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the clip is 128×96: their aspect ratios differ"):
        read_mask(_layout(tmp_path, [64, 64], [1, 1, 9, 9]), 3, 0, 1, FIT)
