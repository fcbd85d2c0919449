"""Images, animated images and folders of images, through Pillow."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ctxedit.errors import InputError
from ctxedit.files import check_file, reason

#: Of images that are read.
SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".webp", ".avif", ".bmp", ".tif", ".tiff", ".apng", ".ppm", ".pgm",
)  # fmt: skip
_FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "BMP", "TIFF", "PPM")
_ANIMATED = ("PNG", "WEBP", "AVIF")
_ROWS = 256
_NO_DELAY = 100  # milliseconds that browsers show a frame which names no time, or nearly none
# Orientations 5 to 8 of EXIF lie on their side.
_EXIF_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Header:
    """An image before its pixels are read: upright size, stored size, format, Pillow's mode."""

    size: tuple[int, int]
    coded_size: tuple[int, int]
    codec: str
    mode: str
    bit_depth: int
    has_alpha: bool
    frames: int = 1


@dataclass(frozen=True)
class Animation:
    """When the frames of an APNG or an animated WebP or AVIF are shown: a clock, in milliseconds."""

    pts: np.ndarray
    end: int
    time_base: Fraction = Fraction(1, 1000)
    start_time: Fraction = Fraction(0)
    declared_rates: tuple[Fraction | None, ...] = ()
    literal: bool = True

    @property
    def count(self) -> int:
        return len(self.pts)


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sorts ``frame2`` before ``frame10``."""
    return [
        (0, int(part), "") if part.isdigit() else (1, 0, part.casefold()) for part in re.split(r"(\d+)", name)
    ]


def image_files(folder: Path) -> list[Path]:
    """The images of a folder in natural order; hidden files, folders and other files are skipped.

    Raises:
        InputError: there is none, or what is named like an image is a FIFO, a device or a broken link.
    """
    files = []
    for file in folder.iterdir():
        if file.suffix.lower() not in SUFFIXES or file.name.startswith(".") or file.is_dir():
            continue
        check_file(file, "frame")  # skipped, the frames after it would move up by one
        files.append(file)
    if not files:
        below = "its subfolders are not read; " if any(one.is_dir() for one in folder.iterdir()) else ""
        raise InputError(
            f"the folder {folder} holds no images",
            f"{below}frames are files ending in {', '.join(sorted(SUFFIXES))}",
        )
    return sorted(files, key=lambda file: (natural_key(file.name), file.name))


def is_image(path: Path) -> bool:
    """Whether Pillow reads the file (GIF is read as a video). By content, or by name when damaged."""
    if path.suffix.lower() in SUFFIXES:
        return True
    try:
        with _open(path):
            return True
    except InputError:
        return False


def header(path: Path) -> Header:
    """Read an image's header.

    Raises:
        InputError: not an image, a larger one than is read, or several pages in one TIFF file.
    """
    with _open(path) as image:
        frames = int(getattr(image, "n_frames", 1))
        if image.format not in _ANIMATED:
            # A JPEG of several pictures (MPO) is a photo with its previews: its first one is the photo.
            if image.format != "MPO" and frames > 1:
                raise InputError(
                    f"{path} holds several images in one {image.format} file",
                    "turn it into a GIF, an MP4 or a folder of images",
                )
            frames = 1
        turned = image.getexif().get(_EXIF_ORIENTATION, 1) in (5, 6, 7, 8)
        return Header(
            size=image.size[::-1] if turned else image.size,
            coded_size=image.size,
            codec=(image.format or "").lower(),
            mode=image.mode,
            bit_depth=16 if image.mode.startswith("I") else 32 if image.mode == "F" else 8,
            has_alpha=image.has_transparency_data,
            frames=frames,
        )


def read_image(path: Path, background: int = 255) -> np.ndarray:
    """One image as (H, W, 3) uint8 RGB: upright, transparency over grey level `background`.

    Raises:
        InputError: it cannot be decoded.
    """
    with _open(path) as image:
        return to_rgb(image, background)


def animation(path: Path) -> Animation:
    """The clock of an animated image; every frame is decoded once, none is kept.

    Raises:
        InputError: a frame cannot be decoded.
    """
    stat = path.stat()
    return _animation(path.absolute(), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=8)
def _animation(path: Path, size: int, mtime: int) -> Animation:
    times = []
    with _open(path) as image:
        for index in range(int(getattr(image, "n_frames", 1))):
            image.seek(index)
            image.load()  # WebP and AVIF tell a frame's time no sooner
            duration = round(image.info.get("duration", 0))
            times.append(duration if duration > 10 else _NO_DELAY)
    ends = list(accumulate(times))
    return Animation(np.array([0, *ends[:-1]], np.int64), ends[-1])


def animation_frames(path: Path, indices: Sequence[int], background: int = 255) -> Iterator[np.ndarray]:
    """The frames of these rising indices, one by one, as ``read_image`` gives them."""
    with _open(path) as image:
        for index in indices:
            image.seek(index)
            yield to_rgb(image, background)


def to_rgb(opened: Image.Image, background: int = 255) -> np.ndarray:
    """An image as (H, W, 3) uint8 RGB: upright, transparency over grey level `background`.

    Raises:
        InputError: its pixels have no range that can be known, so that black and white would be a guess.
        OSError, ValueError and others: as Pillow's decoders do.
    """
    opened.load()
    if opened.mode == "F" or (opened.mode == "I" and np.asarray(opened).max(initial=0) > 65535):
        kind = "floating-point" if opened.mode == "F" else "32-bit"
        raise InputError(f"an image has {kind} pixels", "save it with 8 or 16 bits, as PNG")
    # An animation's frame is drawn on the one before it, which must stay.
    image = opened if opened.getexif().get(_EXIF_ORIENTATION, 1) == 1 else ImageOps.exif_transpose(opened)
    if image.mode.startswith("I;16") or image.mode == "I":
        # Pillow clips 16-bit grey at 255 when it converts.
        values = np.asarray(image).astype(np.float64) / 257.0
        grey = np.clip(np.rint(values), 0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.has_transparency_data:
        return flatten(np.asarray(image.convert("RGBA")), background)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def flatten(rgba: np.ndarray, background: int) -> np.ndarray:
    """Lay (..., 4) uint8 RGBA with straight alpha over a grey level; gives (..., 3) uint8."""
    out = np.empty((*rgba.shape[:-1], 3), np.uint8)
    for top in range(0, len(rgba), _ROWS):  # the wider integers of a whole large picture would fill memory
        rows = rgba[top : top + _ROWS]
        alpha = rows[..., 3:].astype(np.uint32)
        mixed = rows[..., :3] * alpha + np.uint32(background) * (255 - alpha)
        out[top : top + _ROWS] = (mixed + 127) // 255
    return out


@contextmanager
def _open(path: Path) -> Iterator[Image.Image]:
    """An image, opened; any error that Pillow raises while it is used becomes an InputError."""
    Image.init()  # Pillow knows five formats until it is asked to load the others
    try:
        with warnings.catch_warnings():
            # Pillow refuses what is twice as large as it warns of; what memory it takes is checked elsewhere.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=_FORMATS) as image:
                yield image
    except Image.DecompressionBombError as error:
        raise InputError(
            f"{path} has more than {2 * (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000} megapixels",
            "scale it down first: models use a thousandth of that",
        ) from error
    except InputError as error:
        raise InputError(f"{path}: {error.message}", error.hint) from error
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        if isinstance(error, OSError) and error.strerror:  # of the system; Pillow's own have none
            raise InputError(
                f"{path} cannot be read: {reason(error)}", "check the path and its permissions"
            ) from error
        raise InputError(
            f"{path} cannot be read as an image", "it is damaged or of another kind; save it again as PNG"
        ) from error
