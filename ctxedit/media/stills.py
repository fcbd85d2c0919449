"""Images and folders of images, through Pillow."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ctxedit.errors import InputError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"})
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM")
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


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sorts ``frame2`` before ``frame10``."""
    return [
        (0, int(part), "") if part.isdigit() else (1, 0, part.casefold()) for part in re.split(r"(\d+)", name)
    ]


def image_files(folder: Path) -> list[Path]:
    """The images of a folder in natural order; hidden and other files are passed over.

    Raises:
        InputError: there is none.
    """
    files = [
        file
        for file in folder.iterdir()
        if file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()
    ]
    if not files:
        raise InputError(
            f"the folder {folder} holds no images",
            f"frames are files ending in {', '.join(sorted(SUFFIXES))}",
        )
    return sorted(files, key=lambda file: (natural_key(file.name), file.name))


def is_image(path: Path) -> bool:
    """Whether Pillow knows the file as a still image (GIF is a clip). By content, or by name when damaged."""
    if path.suffix.lower() in SUFFIXES:
        return True
    try:
        with _open(path):
            return True
    except (OSError, Image.DecompressionBombError, ValueError, SyntaxError):
        return False


def header(path: Path) -> Header:
    """Read an image's header.

    Raises:
        InputError: not an image, or several in one file (APNG, animated WebP, multi-page TIFF).
    """
    try:
        with _open(path) as image:
            # A JPEG of several pictures (MPO) is a photo with its previews: its first one is the photo.
            if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
                raise InputError(
                    f"{path} holds several pictures in one {image.format} file",
                    "turn it into a GIF, an MP4 or a folder of images",
                )
            turned = image.getexif().get(_EXIF_ORIENTATION, 1) in (5, 6, 7, 8)
            return Header(
                size=image.size[::-1] if turned else image.size,
                coded_size=image.size,
                codec=(image.format or "").lower(),
                mode=image.mode,
                bit_depth=16 if image.mode.startswith("I") else 32 if image.mode == "F" else 8,
                has_alpha=image.has_transparency_data,
            )
    except (OSError, Image.DecompressionBombError, ValueError, SyntaxError) as error:
        raise _unreadable(path) from error


def read_image(path: Path, background: int = 255) -> np.ndarray:
    """One image as (H, W, 3) uint8 RGB: upright, transparency over grey level `background`.

    Raises:
        InputError: it cannot be decoded.
    """
    try:
        with _open(path) as opened:
            opened.load()
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I;16") or image.mode == "I":
                # Pillow clips 16-bit grey at 255 when it converts.
                values = np.asarray(image).astype(np.float64) / 257.0
                grey = np.clip(np.rint(values), 0, 255).astype(np.uint8)
                return np.repeat(grey[..., None], 3, axis=2)
            if image.has_transparency_data:
                return flatten(np.asarray(image.convert("RGBA")), background)
            return np.array(image.convert("RGB"))
    except (OSError, Image.DecompressionBombError, ValueError, SyntaxError) as error:
        raise _unreadable(path) from error


def flatten(rgba: np.ndarray, background: int) -> np.ndarray:
    """Lay (..., 4) uint8 RGBA with straight alpha over a grey level; gives (..., 3) uint8."""
    alpha = rgba[..., 3:].astype(np.uint32)
    mixed = rgba[..., :3] * alpha + np.uint32(background) * (255 - alpha)
    return ((mixed + 127) // 255).astype(np.uint8)


def _open(path: Path) -> Image.Image:
    Image.init()  # Pillow knows five formats until it is asked to load the others
    return Image.open(path, formats=_FORMATS)


def _unreadable(path: Path) -> InputError:
    return InputError(
        f"{path} cannot be read as an image", "it is damaged or of another kind; save it again as PNG"
    )
