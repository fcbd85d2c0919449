"""Class to image and layout to image (ContextDiff, section 4.3): the request, and the images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ctxedit.config import SOURCE, Config
from ctxedit.editing.parts import warn_of_unknown_words
from ctxedit.editing.reporter import Reporter
from ctxedit.editing.upscaling import enlarged, image_side
from ctxedit.errors import ConfigError
from ctxedit.media.layouts import Layout, draw_boxes
from ctxedit.media.montage import labelled_grid
from ctxedit.models.backbones import Backbone, check_addons, open_with_addons
from ctxedit.models.device import pick_device, pick_dtype
from ctxedit.models.label_condition import LabelEncoder, Labels, open_encoder
from ctxedit.models.weights import is_half, locate, own_folder
from ctxedit.stages import generate as generating

#: Samples in a grid of one class or layout.
SAMPLES = 8
_COLUMNS = 8


@dataclass(frozen=True)
class Picture:
    """One requested picture: what it shows, its seed, and what it is called in a grid."""

    labels: Labels
    seed: int
    name: str


@dataclass(frozen=True)
class LabelRequest:
    """Pictures of labels.

    Attributes:
        encoder: the condition encoder.
        text: what else they show; may be empty.
        pictures: one, or those of a grid.
        labels: what is drawn, in the layout's order, or by the number of the class.
        layout: whose boxes are drawn over the pictures of a grid, or None.
    """

    encoder: LabelEncoder
    text: str
    pictures: tuple[Picture, ...]
    labels: tuple[str, ...]
    layout: Layout | None = None

    @property
    def shows(self) -> str:
        """What is drawn, for people: labels, and the text where there is one."""
        many = len(self.labels) > _COLUMNS
        labels = [f"{len(self.labels)} labels"] if many else self.labels
        return ", ".join([*labels, *([self.text] if self.text else [])])


def class_request(
    name: str | None, text: str, config: Config, encoder: Path | None = None, grid: bool = False
) -> LabelRequest:
    """Request a class; with ``grid`` for samples of it, or without a name for one picture of each class.

    Raises:
        ConfigError, WeightsError: no encoder for the model, or a broken one.
        InputError: an unknown class.
    """
    opened = open_encoder("class", config.model, encoder)
    names = [name] if name is not None else list(opened.encoder.labels)
    wanted = [(opened.class_of(one), one) for one in names]
    if name is not None and grid:
        wanted *= SAMPLES
    seeds = [config.seed + (i if name is not None else 0) for i in range(len(wanted))]
    pictures = tuple(Picture(one, s, n) for (one, n), s in zip(wanted, seeds, strict=True))
    return LabelRequest(opened, text, pictures, tuple(names))


def layout_request(
    layout: Layout, text: str, config: Config, encoder: Path | None = None, grid: bool = False
) -> LabelRequest:
    """Request a layout; with ``grid`` for several samples of it. ``text`` goes before the layout's own.

    Raises:
        ConfigError, WeightsError: no encoder for the model, or a broken one.
        InputError: as of :meth:`ctxedit.models.label_condition.LabelEncoder.layout_of`.
    """
    opened = open_encoder("layout", config.model, encoder)
    labels = opened.layout_of(layout.boxes)
    count = SAMPLES if grid else 1
    names = tuple(label for label, _ in layout.boxes)
    titles = [f"{', '.join(names)}, seed {config.seed + i}" for i in range(count)]
    pictures = tuple(Picture(labels, config.seed + i, title) for i, title in enumerate(titles))
    return LabelRequest(opened, text or layout.text, pictures, names, layout)


def open_model(config: Config, offline: bool, reporter: Reporter) -> Backbone:
    """The settings' model; raises ConfigError for settings that labels do not go with."""
    if config.control.kind != "none":
        raise ConfigError(
            "there is no clip to compute a control map from", "choose a preset without a ControlNet"
        )
    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, device)
    checkpoint = locate(config.model, offline, is_half(dtype))
    addons = check_addons(config, checkpoint, offline)
    return open_with_addons(config, checkpoint, addons, device, dtype, reporter.say)


def generate(request: LabelRequest, config: Config, offline: bool, reporter: Reporter) -> NDArray[np.uint8]:
    """The pictures: RGB uint8 (N, H, W, 3), each a function of its labels, seed, text and the settings.

    Larger sizes are reached by a cascade, as of :func:`ctxedit.editing.upscaling.image_side`.

    Args:
        request: from :func:`class_request` or :func:`layout_request`.
        config: model, edit.steps, guidance, negative prompt, ``clip.size``, ``upscale``.
        offline: fetch nothing.
        reporter: receives progress.
    """
    backbone = open_model(config, offline, reporter)
    request.encoder.fit(backbone)
    own = own_folder(config.model) is not None
    side, upscaled = image_side(config, backbone.resolution, backbone.multiple, own)
    small = replace(config, clip=replace(config.clip, size=side))
    if request.text:
        warn_of_unknown_words(backbone, request.text, reporter)
    made = []
    with reporter.task(f"image “{request.shows}”", len(request.pictures), "image") as progress:
        for done, one in enumerate(request.pictures, 1):
            made.append(
                picture(backbone, request.encoder, one.labels, request.text, replace(small, seed=one.seed))
            )
            progress(done, one.name)
    pictures = np.stack(made)
    return enlarged(pictures, request.text, config, offline, reporter) if upscaled else pictures


def picture(
    backbone: Backbone, encoder: LabelEncoder, labels: Labels, text: str, config: Config
) -> NDArray[np.uint8]:
    """One picture (H, W, 3) of labels, by a model that the encoder was fitted to."""
    side = config.clip.size
    negative = config.edit.negative_prompt.replace(SOURCE, "")
    condition = encoder.condition(backbone, (negative, text), labels)
    shift = encoder.shift(condition, backbone.device)
    sides = (side, side) if side else None
    return generating.generate(backbone, text, config, 1, sides, shift, condition=condition)[0]


def grid(request: LabelRequest, pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The images in a row with their names, those of layouts with boxes drawn."""
    tiles: Sequence[NDArray[np.uint8]] = list(pictures)
    if request.layout is not None:
        tiles = [draw_boxes(one, request.layout) for one in tiles]
    named = [(one.name, tile[None]) for one, tile in zip(request.pictures, tiles, strict=True)]
    return labelled_grid(named, 4 if request.layout is not None else _COLUMNS)[0]
