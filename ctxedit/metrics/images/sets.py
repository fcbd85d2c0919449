"""Sets of images in a folder: checked whole before anything is computed, read in batches of one size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ctxedit.errors import InputError
from ctxedit.files import neighbour
from ctxedit.media import stills

#: Pixels that are in memory together.
_MOST_PIXELS = 1 << 26
#: An image too long to be scaled whole is first cut to its middle, this many times as long as wide.
_STRIP = 8
_ONE_SIZE = "--size 256 scales every image's shorter edge and crops the central square"


@dataclass(frozen=True)
class ImageSet:
    """Images of one folder.

    Attributes:
        folder: where they are.
        files: in natural order.
        side: all are brought to this square (the shorter edge, then the central crop); None leaves them.
    """

    folder: Path
    files: tuple[Path, ...]
    side: int | None = None

    def __len__(self) -> int:
        return len(self.files)

    def batches(self, size: int = 32) -> Iterator[NDArray[np.uint8]]:
        """RGB uint8 (N, H, W, 3), in order; N is ``size``, or less where the images are very large."""
        width, height = (self.side, self.side) if self.side else stills.header(self.files[0]).size
        size = max(1, min(size, _MOST_PIXELS // (width * height)))
        for start in range(0, len(self.files), size):
            yield np.stack([self._read(file) for file in self.files[start : start + size]])

    def _read(self, file: Path) -> NDArray[np.uint8]:
        pixels = stills.read_image(file)
        return pixels if self.side is None else to_square(pixels, self.side)


def to_square(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """(H, W, 3) with its shorter edge scaled to ``side`` (bicubic, antialiased), then the central square."""
    height, width = pixels.shape[:2]
    if (height, width) == (side, side):
        return pixels
    scale = side / min(height, width)
    size = (max(side, round(width * scale)), max(side, round(height * scale)))
    if size[0] * size[1] > _MOST_PIXELS and (most := _STRIP * min(height, width)) < max(height, width):
        top, left = max(0, (height - most) // 2), max(0, (width - most) // 2)
        return to_square(pixels[top : top + most, left : left + most], side)
    image = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    return np.asarray(image.crop((left, top, left + side, top + side)))


def open_set(
    folder: Path, side: int | None = None, files: tuple[Path, ...] | None = None,
) -> ImageSet:  # fmt: skip
    """The images of a folder, each decoded once: a broken one is found now and not after hours.

    Args:
        folder: images of PNG, JPEG and the like; other files are passed over.
        side: as in :class:`ImageSet`.
        files: these of the folder instead of all.

    Raises:
        InputError: no such folder, no images, a broken one, or several sizes without ``side``.
    """
    if not folder.is_dir():
        guess = "" if folder.exists() else neighbour(folder)
        raise InputError(
            f"{folder} is not a folder of images", f"{guess}give the folder that the images are in"
        )
    found = tuple(stills.image_files(folder)) if files is None else files
    first: tuple[int, int] | None = None
    for file in found:
        height, width = stills.read_image(file).shape[:2]
        first = first or (width, height)
        if first != (width, height) and side is None:
            raise InputError(
                f"the images in {folder} differ in size: {found[0].name} is {first[0]}×{first[1]}, "
                f"{file.name} is {width}×{height}",
                _ONE_SIZE,
            )
    return ImageSet(folder, found, side)


def same_size(generated: ImageSet, reference: ImageSet) -> None:
    """Raise InputError for two sets of different sizes."""
    first, second = (stills.header(part.files[0]).size for part in (generated, reference))
    if generated.side is None and first != second:
        raise InputError(
            f"{generated.folder} holds images of {first[0]}×{first[1]}, {reference.folder} of "
            f"{second[0]}×{second[1]}: a distance would measure the resizing too",
            _ONE_SIZE,
        )
