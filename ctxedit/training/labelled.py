"""Images with labels: ImageNet's folder of class folders, webdataset shards with classes, COCO's instances.

Images are read one at a time when they are needed. For COCO, the list of boxes stays in memory.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from ctxedit.errors import ConfigError, InputError
from ctxedit.files import LIST_LIMIT, expanded, is_inside, read_json
from ctxedit.media.stills import SUFFIXES
from ctxedit.synthetic.vocabulary import THINGS
from ctxedit.training.data import Data, DataConfig, Images, check_usable
from ctxedit.training.labelled_scenes import LabelledScenes, padded
from ctxedit.training.sources import CLASSES_HINT, Entry, Listing, list_shards

#: Names of classes next to the data: one per line, or ``folder words`` as in ImageNet's synset files.
NAMES_FILES = ("classes.txt", "LOC_synset_mapping.txt")
#: A box whose cropped side is smaller than this share of the image's side is dropped.
_LEAST = 0.02
_COCO_HINT = "data.path is an instances_*.json of COCO's annotations, the images in COCO's folders next to it"


class LabelledData(Data):
    """Samples with labels: ``image``, ``caption``, ``labels`` (M,), ``boxes`` (M, 4); drawn ones a ``mask``.

    Args:
        config: the recipe's table; ``coco`` has boxes, ``classes`` and ``webdataset`` have one class per
            image.
        boxes: M, the most boxes an image may have; 0 for classes, which are one box over the whole image.

    Raises:
        ConfigError: a source without the labels that are asked for.
        InputError: no such data, broken annotations, no usable sample, or bad input with ``on_error = stop``.
    """

    def __init__(self, config: DataConfig, boxes: int = 0) -> None:
        self.boxes = boxes
        self.labels: list[str] = [thing.name for thing in THINGS]
        super().__init__(config, self._scenes, captions=False)

    def _scenes(self, seed: int, size: int, compositions: float = 0.0) -> Dataset[Any]:
        return LabelledScenes(seed, size, self.boxes, compositions)

    def held_out(self, seed: int) -> LabelledScenes:
        """Drawn scenes of the held-out combinations."""
        config = self.config
        return LabelledScenes(seed, config.size, self.boxes, config.compositions, test=True)

    def open(self, captions: bool) -> Listing:
        config = self.config
        wanted = ("coco",) if self.boxes else ("classes", "webdataset")
        if config.source not in wanted:
            kind = "a layout" if self.boxes else "a class"
            raise ConfigError(
                f'data.source = "{config.source}" has no labels for {kind} encoder',
                f"it takes scenes, {' or '.join(wanted)}",
            )
        if not config.path:
            raise ConfigError(f'data.source = "{config.source}" needs data.path', "or pass --data PATH")
        path = expanded(config.path)
        if config.source == "coco":
            listing, self.labels = list_coco(path, self.boxes)
        elif config.source == "classes":
            listing, self.labels = list_classes(path)
        else:
            self.labels = shard_classes(path)
            listing = list_shards(path, captions=False, classes=len(self.labels))
        check_usable(listing, config, self.images(listing, 0).read)
        return listing

    def images(self, listing: Listing, seed: int) -> Images:
        return LabelledImages(listing, seed, self.config, self.boxes)


class LabelledImages(Images):
    """Listed images with ``labels`` and ``boxes``; boxes follow the crop."""

    def __init__(self, listing: Listing, seed: int, config: DataConfig, boxes: int) -> None:
        super().__init__(listing, seed, config)
        self.boxes = boxes

    def more(self, entry: Entry) -> dict[str, Any]:
        if not self.boxes:
            return padded([(entry.labels[0], (0.0, 0.0, 1.0, 1.0))], 1)
        return padded(cropped(entry), self.boxes)

    def read(self, number: int) -> Tensor | str:
        """As for Images; an image whose size differs from that of its annotation is bad."""
        entry = self.listing.entries[number]
        if entry.sides is not None:
            try:
                with Image.open(entry.file) as image:
                    sides = (
                        ImageOps.exif_transpose(image).size
                        if image.getexif().get(0x0112, 1) > 1
                        else image.size
                    )
            except Exception as error:  # as Images.read
                return " ".join(str(error).split())[:100] or type(error).__name__
            if sides != entry.sides:
                return f"{sides[0]}×{sides[1]} pixels, annotated at {entry.sides[0]}×{entry.sides[1]}"
            if not cropped(entry):
                return "no box within the central square"
        return super().read(number)


def cropped(entry: Entry) -> list[tuple[int, tuple[float, float, float, float]]]:
    """Labels and boxes in sides of the central square, clipped to it; boxes outside are dropped."""
    assert entry.sides is not None
    width, height = entry.sides
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    found = []
    for label, (x0, y0, x1, y1) in zip(entry.labels, entry.boxes, strict=True):
        a, b = (min(max((x - left) / side, 0.0), 1.0) for x in (x0, x1))
        c, d = (min(max((y - top) / side, 0.0), 1.0) for y in (y0, y1))
        if b - a >= _LEAST and d - c >= _LEAST:
            found.append((label, (a, c, b, d)))
    return found


# -- classes -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClassFolders(Sequence[Entry]):
    """The images of class folders as entries, made on demand: ImageNet has over a million."""

    folder: Path
    names: tuple[str, ...]
    classes: NDArray[np.int32]
    files: list[str]

    def __len__(self) -> int:
        return len(self.files)

    @overload
    def __getitem__(self, at: int) -> Entry: ...
    @overload
    def __getitem__(self, at: slice) -> list[Entry]: ...
    def __getitem__(self, at: int | slice) -> Entry | list[Entry]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        number = int(self.classes[at])
        name = f"{self.names[number]}/{self.files[at]}"
        return Entry(name, self.folder / name, None, "", (number,))


def list_classes(folder: Path) -> tuple[Listing, list[str]]:
    """Images and class names of a folder with a folder for each class, in alphabetical order.

    A class is called by its folder's name, or as ``classes.txt`` or ``LOC_synset_mapping.txt`` next to the
    folders says in lines ``folder words``, of which the text before the first comma is used.

    Raises:
        InputError: no such folder, or no class folders in it.
    """
    if not folder.is_dir():
        raise InputError(f"no folder {folder}", "data.path is a folder of class folders")
    names = sorted(one.name for one in os.scandir(folder) if one.is_dir() and not one.name.startswith("."))
    if not names:
        raise InputError(f"{folder} has no class folders", "one folder of images for each class")
    classes: list[int] = []
    files: list[str] = []
    bad: dict[str, str] = {}
    for number, name in enumerate(names):
        inside = sorted(
            one.name for one in os.scandir(folder / name) if Path(one.name).suffix.lower() in SUFFIXES
        )
        if not inside:
            bad[name] = "a class without images"
        files += inside
        classes += [number] * len(inside)
    entries = ClassFolders(folder, tuple(names), np.array(classes, np.int32), files)
    known = {a: b for a, _, b in (line.partition(" ") for line in _names(folder))}
    labels = [known.get(name, "").split(",")[0].strip() or name for name in names]
    # ImageNet has two classes called crane, and two called maillot.
    return Listing(entries, bad), [
        label if labels.count(label) == 1 else name for label, name in zip(labels, names, strict=True)
    ]


def shard_classes(path: Path) -> list[str]:
    """Names of the classes of shards, from ``classes.txt`` next to them: one per line, in order."""
    folder = path if path.is_dir() else path.parent
    names = _names(folder)
    if not names:
        raise InputError(f"no classes.txt in {folder}", CLASSES_HINT)
    return names


def _names(folder: Path) -> list[str]:
    for name in NAMES_FILES:
        if (file := folder / name).is_file():
            lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
            return [" ".join(line.split()) for line in lines if line.strip()]
    return []


# -- COCO ----------------------------------------------------------------------------------------------------


def list_coco(file: Path, most: int) -> tuple[Listing, list[str]]:
    """Images with boxes of COCO's ``instances_*.json``, and its categories in order.

    The images are in ``../val2017`` for ``annotations/instances_val2017.json``, in the file's folder, or in
    ``images`` next to it. Crowds are left out. An image without boxes, with more than ``most``, with a box
    that is empty or outside it, or without its file is bad.

    Raises:
        InputError: no such file, a broken or partial one, or no image in any of these folders.
    """
    found = read_json(file, "list of boxes", LIST_LIMIT)
    try:
        categories = {int(one["id"]): str(one["name"]) for one in found["categories"]}
        images = {int(one["id"]): _image(one) for one in found["images"]}
        boxes: dict[int, list[tuple[int, tuple[float, ...]]]] = {}
        numbers = {known: number for number, known in enumerate(categories)}
        for one in found["annotations"]:
            if one.get("iscrowd", 0):
                continue
            x, y, w, h = (float(v) for v in one["bbox"])
            image = int(one["image_id"])
            if image not in images or int(one["category_id"]) not in numbers:
                raise InputError(
                    f"{file}: annotation {one['id']} is of an image or category that is not listed",
                    _COCO_HINT,
                )
            boxes.setdefault(image, []).append((numbers[int(one["category_id"])], (x, y, x + w, y + h)))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise InputError(f"{file} is not in COCO's instances format ({error!r})", _COCO_HINT) from error
    folder = _coco_images(file, [name for name, _ in images.values()])
    entries, bad = [], {}
    for number, (name, sides) in images.items():
        inside = boxes.get(number, [])
        if reason := _unusable(folder / name, sides, inside, most):
            bad[name] = reason
        else:
            labels, places = zip(*inside, strict=True)
            entries.append(Entry(name, folder / name, None, "", labels, places, sides))
    return Listing(entries, bad), list(categories.values())


def _image(one: Any) -> tuple[str, tuple[int, int]]:
    name = one["file_name"]
    if not isinstance(name, str) or not is_inside(name):
        raise ValueError(f"file_name {name!r} is not below the folder of images")
    return name, (int(one["width"]), int(one["height"]))


def _unusable(
    file: Path, sides: tuple[int, int], boxes: list[tuple[int, tuple[float, ...]]], most: int
) -> str:
    """Why an image cannot be used; empty if it can."""
    if not boxes:
        return "no boxes"
    if len(boxes) > most:
        return f"{len(boxes)} boxes, at most {most} are used"
    for _, (x0, y0, x1, y1) in boxes:
        if not (x1 > x0 and y1 > y0):
            return f"an empty box at {x0:g}, {y0:g}"
        if x0 >= sides[0] or y0 >= sides[1] or x1 <= 0 or y1 <= 0:
            return f"a box outside the image at {x0:g}, {y0:g}"
    return "" if file.is_file() else "no such file"


def _coco_images(file: Path, names: list[str]) -> Path:
    """The folder with the images of an instances file."""
    split = file.stem.removeprefix("instances_")
    places = [file.parent.parent / split, file.parent / split, file.parent, file.parent / "images",
              file.parent.parent / "images"]  # fmt: skip
    for place in places:
        if any((place / name).is_file() for name in names[:100]):
            return place
    raise InputError(f"none of the images of {file.name} is in {places[0]} or {file.parent}", _COCO_HINT)
