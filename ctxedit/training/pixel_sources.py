"""Images with classes, as exact pixels: CIFAR-10's binary archive, webdataset shards, or folders of images.

Likelihoods are defined on the files' exact pixels, so nothing is cropped or resized: an image of another
size is bad input.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ctxedit.errors import InputError
from ctxedit.files import expanded
from ctxedit.media.stills import SUFFIXES, to_rgb
from ctxedit.training.sources import CLASSES_HINT, Entry, list_shards, read_bytes

#: A record of CIFAR-10's binary version: a byte for the class, then 3 × 32 × 32 for red, green and blue.
_SIDE, _RECORD, _BATCH = 32, 1 + 3 * 32 * 32, 10_000
_PARTS = {"train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test": ("test_batch.bin",)}
_META = "batches.meta.txt"
#: The class of images that have none.
UNLABELLED = ("image",)

Split = Literal["train", "test"]


@dataclass
class PixelSet:
    """Images of one size with their classes.

    Attributes:
        names: of the classes.
        labels: (N,) int64.
        load: an image's number to RGB uint8 (size, size, 3), or the reason why it cannot be used.
        name: an image's number to its name in messages.
        lossless: whether the files hold the pixels exactly; JPEG does not.
        bad: left out: name to reason.
    """

    names: tuple[str, ...]
    labels: NDArray[np.int64]
    load: Callable[[int], NDArray[np.uint8] | str]
    name: Callable[[int], str]
    lossless: bool
    bad: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, number: int) -> NDArray[np.uint8]:
        """RGB uint8 (size, size, 3); raises InputError for an image that cannot be used."""
        found = self.load(number)
        if isinstance(found, str):
            raise InputError(f"{self.name(number)}: {found}", "likelihoods are of exact pixels")
        return found


def open_pixels(path: Path, size: int, split: Split = "train") -> PixelSet:
    """Images at a path.

    Args:
        path: ``cifar-10-binary.tar.gz`` or the folder it unpacks to; a webdataset shard or a folder of them,
            with ``.cls`` and ``classes.txt``; a folder with a folder for each class; or a folder of images,
            which then form one class.
        size: side in pixels that all have.
        split: which part, where the path has both.

    Raises:
        InputError: no such path, nothing usable in it, or an archive that is cut off.
    """
    path = expanded(path)
    if not path.exists():
        raise InputError(f"no {path}", "give CIFAR-10's binary archive, shards, or a folder of images")
    if path.is_file() and path.suffix != ".tar":
        return _of_archive(path, size, split)
    if path.is_dir() and (path / _PARTS[split][0]).is_file():
        wanted = (*_PARTS[split], _META)
        if missing := [name for name in wanted if not (path / name).is_file()]:
            raise InputError(f"{path} has no {missing[0]}", "unpack all of cifar-10-binary.tar.gz again")
        return _of_batches({name: (path / name).read_bytes() for name in wanted}, size, path)
    found = list(_shards(path, split))
    if found:
        return _of_shards(found, size)
    return _of_folder(path, size)


# -- CIFAR-10's binary version -----------------------------------------------------------------------------


def _of_archive(path: Path, size: int, split: Split) -> PixelSet:
    wanted, found = {*_PARTS[split], _META}, {}
    try:
        with tarfile.open(path, "r:*") as tar:
            for member in tar:
                name = Path(member.name).name
                if name in wanted and member.isfile() and (file := tar.extractfile(member)) is not None:
                    found[name] = file.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise InputError(
            f"{path} is damaged or truncated: {' '.join(str(error).split())[:100]}", "download it again"
        ) from error
    if any(name.startswith("data_batch") and "." not in name for name in _member_names(path)):
        raise InputError(f"{path} is the pickled version: not supported", "use cifar-10-binary.tar.gz")
    if missing := sorted(wanted - found.keys()):
        raise InputError(f"{path} has no {missing[0]}", "use the complete cifar-10-binary.tar.gz")
    return _of_batches(found, size, path)


def _member_names(path: Path) -> list[str]:
    with tarfile.open(path, "r:*") as tar:
        return [Path(name).name for name in tar.getnames()]


def _of_batches(files: dict[str, bytes], size: int, path: Path) -> PixelSet:
    if size != _SIDE:
        raise InputError(
            f"{path} has images of {_SIDE}×{_SIDE}, not {size}×{size}", "choose another data set"
        )
    names = tuple(files.pop(_META).decode("utf-8", "replace").split())
    for name, data in files.items():
        if not data or len(data) % _RECORD:
            raise InputError(f"{path}: {name} is truncated: {len(data)} bytes", "download it again")
    table = np.frombuffer(b"".join(files[name] for name in sorted(files)), np.uint8).reshape(-1, _RECORD)
    labels = table[:, 0].astype(np.int64)
    if labels.max() >= len(names):
        raise InputError(
            f"{path} has class {labels.max()}, and {_META} names {len(names)}", "download it again"
        )
    pixels = table[:, 1:].reshape(-1, 3, _SIDE, _SIDE)

    def load(number: int) -> NDArray[np.uint8]:
        return np.ascontiguousarray(pixels[number].transpose(1, 2, 0))

    return PixelSet(names, labels, load, lambda number: f"{path.name}, image {number}", True)


# -- shards ------------------------------------------------------------------------------------------------


def _shards(path: Path, split: Split) -> Iterator[Path]:
    """A shard, or those of a folder; if shards are named by split, only those of the split."""
    if path.is_file():
        yield path
        return
    found = sorted(path.glob("*.tar"))
    own = [file for file in found if file.name.startswith(split)]
    yield from own or found


def _of_shards(shards: list[Path], size: int) -> PixelSet:
    table = shards[0].parent / "classes.txt"
    if not table.is_file():
        raise InputError(f"no {table}", CLASSES_HINT)
    names = tuple(line.strip() for line in table.read_text(encoding="utf-8").splitlines() if line.strip())
    entries: list[Entry] = []
    bad: dict[str, str] = {}
    for shard in shards:
        listing = list_shards(shard, captions=False, classes=len(names))
        entries += listing.entries
        bad |= listing.bad
    if not entries:
        why = "; ".join(f"{name}: {reason}" for name, reason in list(bad.items())[:2])
        raise InputError(
            f"{shards[0].parent} has no image with a class ({why})",
            "each image needs two members, NAME.png and NAME.cls",
        )
    labels = np.array([entry.labels[0] for entry in entries], np.int64)
    return _of_entries(entries, names, labels, size, bad)


# -- folders -----------------------------------------------------------------------------------------------


def _of_folder(folder: Path, size: int) -> PixelSet:
    classes = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    names = tuple(classes) or UNLABELLED
    files: list[Path] = []
    labels: list[int] = []
    bad: dict[str, str] = {}
    for number, name in enumerate(names):
        place = folder / name if classes else folder
        own = sorted(p for p in place.iterdir() if p.suffix.lower() in SUFFIXES)
        files += own
        labels += [number] * len(own)
        if not own:
            bad[name] = "a class without images"
    if not files:
        raise InputError(
            f"{folder} has no images", "it should hold PNG files, or a folder of them for each class"
        )
    entries = [Entry(file.relative_to(folder).as_posix(), file, None, "") for file in files]
    return _of_entries(entries, names, np.array(labels, np.int64), size, bad)


def _of_entries(
    entries: list[Entry], names: tuple[str, ...], labels: NDArray[np.int64], size: int, bad: dict[str, str]
) -> PixelSet:
    suffixes = {(entry.suffix or entry.file.suffix).lower() for entry in entries}
    lossless = not suffixes & {".jpg", ".jpeg", ".webp", ".avif"}
    return PixelSet(
        names, labels, lambda i: _pixels(entries[i], size), lambda i: entries[i].name, lossless, bad
    )


def _pixels(entry: Entry, size: int) -> NDArray[np.uint8] | str:
    try:
        with Image.open(io.BytesIO(read_bytes(entry))) as image:
            pixels = to_rgb(image)
    except Exception as error:  # Pillow passes on any error of a format's parser
        return " ".join(str(error).split())[:100] or type(error).__name__
    if pixels.shape[:2] != (size, size):
        return f"{pixels.shape[1]}×{pixels.shape[0]} pixels, not {size}×{size}: images are not resized"
    return pixels
