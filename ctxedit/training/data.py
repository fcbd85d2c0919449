"""Training data behind one interface: drawn scenes, a folder of images, or webdataset shards.

Sample ``i`` is a function of the seed and ``i`` alone. A training can therefore resume at any step, and
several processes can share one order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ctxedit.config import Range
from ctxedit.errors import ConfigError, InputError, counted
from ctxedit.files import expanded
from ctxedit.synthetic import scenes
from ctxedit.synthetic.tensors import to_tensor
from ctxedit.synthetic.vocabulary import GREY_STYLES
from ctxedit.training import composition_samples
from ctxedit.training.sources import Entry, Listing, list_folder, list_shards, load_image

#: How many bad samples an error message lists.
_LISTED = 3


@dataclass(frozen=True)
class DataConfig:
    """A recipe's ``[data]`` table.

    Attributes:
        source: ``scenes`` are drawn on the fly and need no path; ``folder`` is a folder of images with
            captions, ``webdataset`` tar shards (see :mod:`ctxedit.training.sources` for the layouts);
            ``classes`` is a folder of class folders, ``coco`` an ``instances_*.json``
            (:mod:`ctxedit.training.labelled`).
        path: the folder; or a shard, a folder of shards, or a pattern such as ``data/*.tar``. A relative path
            in a recipe is relative to the recipe's folder.
        size: side in pixels; images are cropped to a square and resized. A multiple of 16, as networks halve
            it up to four times.
        compositions: share of compositions (:mod:`ctxedit.synthetic.compositions`) among drawn scenes.
        on_error: what to do about bad input (a missing or unreadable image, an empty caption, a damaged
            shard): ``skip`` it and report it, or ``stop`` the training.
    """

    source: Literal["scenes", "folder", "webdataset", "classes", "coco"] = "scenes"
    path: str = ""
    size: Annotated[int, Range(16, 4096, 16)] = 64
    compositions: Annotated[float, Range(0, 1)] = 0.0
    on_error: Literal["skip", "stop"] = "skip"


class Data:
    """A task's samples.

    Args:
        config: the recipe's table.
        drawn: creates the task's own data set of drawn scenes from (seed, size). One that can draw
            compositions takes their share as ``compositions``.
        captions: whether images need a caption.

    Raises:
        ConfigError: the source needs a path and has none; or other data than drawn scenes have
            ``compositions``.
        InputError: there is no usable sample, or there is bad input and ``on_error`` is ``stop``.
    """

    def __init__(self, config: DataConfig, drawn: Callable[..., Dataset[Any]], captions: bool = True) -> None:
        if config.compositions and config.source != "scenes":
            raise ConfigError(
                f'data.compositions with data.source = "{config.source}"',
                "only drawn scenes have compositions: leave one of the two out",
            )
        self.config, self._drawn = config, drawn
        self.listing = None if config.source == "scenes" else self.open(captions)

    def open(self, captions: bool) -> Listing:
        """List the samples at ``config.path``."""
        return open_listing(self.config, captions)

    def images(self, listing: Listing, seed: int) -> Images:
        """The data set of listed images."""
        return Images(listing, seed, self.config)

    @property
    def captions(self) -> list[str] | None:
        """All captions; None for drawn scenes, which are endless."""
        return None if self.listing is None else [entry.caption for entry in self.listing.entries]

    def dataset(self, seed: int) -> Dataset[Any]:
        """Endless samples: ``image`` (3, size, size) in [−1, 1], ``caption``, and what ``drawn`` adds."""
        if self.listing is None:
            share = self.config.compositions
            return self._drawn(seed, self.config.size, **({"compositions": share} if share else {}))
        return self.images(self.listing, seed)


def open_listing(config: DataConfig, captions: bool) -> Listing:
    """List the samples at ``config.path``; raises as :class:`Data`."""
    if not config.path:
        raise ConfigError(f'data.source = "{config.source}" needs data.path', "or pass --data PATH")
    openers: dict[str, Callable[[Path, bool], Listing]] = {"folder": list_folder, "webdataset": list_shards}
    if config.source not in openers:
        raise ConfigError(
            f'data.source = "{config.source}" has labels and no captions',
            "it is for class-encoder and layout-encoder; other parts take folder, webdataset or scenes",
        )
    listing = openers[config.source](expanded(config.path), captions)
    check_usable(listing, config, Images(listing, 0, config).read)
    return listing


def check_usable(listing: Listing, config: DataConfig, read: Callable[[int], object]) -> None:
    """Raise InputError if no listed image can be used, or for bad input where ``on_error`` is ``stop``.

    ``read`` returns the image with a given number, or as text the reason why it cannot be used.
    """
    if config.on_error == "stop":
        raise_if_bad(listing.bad)
    for at in range(len(listing.entries)):
        # With one readable image, skipping unreadable ones always ends.
        if not isinstance(read(at), str):
            return
    raise InputError(
        f"{config.path} has no usable images ({len(listing.bad) + len(listing.entries)} bad)",
        _names(listing.bad) or "no image can be read",
    )


def raise_if_bad(bad: dict[str, str]) -> None:
    """Raise InputError if there is bad input, listing the first few samples."""
    if bad:
        raise InputError(
            f"{counted(len(bad), 'sample')} cannot be used: {_names(bad)}",
            'set data.on_error = "skip" to skip them',
        )


def _names(bad: dict[str, str]) -> str:
    listed = [f"{name} ({why})" for name, why in list(bad.items())[:_LISTED]]
    return ", ".join([*listed, "…"] if len(bad) > _LISTED else listed)


class Images(Dataset[dict[str, Any]]):
    """Listed images, reshuffled in every epoch.

    An unreadable image is replaced by the next one in the order and reported in the sample's ``bad``, as
    lines of ``name<TAB>reason``: data workers share no state, so the training loop collects them.
    """

    def __init__(self, listing: Listing, seed: int, config: DataConfig) -> None:
        self.listing, self.seed, self.config = listing, seed, config
        self._order: tuple[int, np.ndarray] = (-1, np.zeros(0, np.int64))

    @property
    def bad(self) -> dict[str, str]:
        """Samples that the listing left out: name to reason."""
        return self.listing.bad

    @property
    def on_error(self) -> str:
        return self.config.on_error

    def __len__(self) -> int:
        return 1 << 40

    def __getitem__(self, index: int) -> dict[str, Any]:
        epoch, at = divmod(index, len(self.listing.entries))
        if self._order[0] != epoch:
            rng = np.random.default_rng((self.seed, epoch))
            self._order = (epoch, rng.permutation(len(self.listing.entries)))
        bad: list[str] = []
        for step in range(len(self.listing.entries)):
            number = int(self._order[1][(at + step) % len(self.listing.entries)])
            image = self.read(number)
            entry = self.listing.entries[number]
            if not isinstance(image, str):
                sample = {"image": image, "caption": entry.caption, "bad": "\n".join(bad)}
                return sample | self.more(entry)
            bad.append(f"{entry.name}\t{image}")
        raise InputError(f"{self.config.path}: images can no longer be read", "was the data moved?")

    def more(self, entry: Entry) -> dict[str, Any]:
        """Additional values of a sample."""
        return {}

    def read(self, number: int) -> Tensor | str:
        """The image (3, size, size) in [−1, 1], or the reason why it cannot be read."""
        try:
            return to_tensor(load_image(self.listing.entries[number], self.config.size))
        except Exception as error:  # Pillow passes on any error of the format's parser
            return " ".join(str(error).split())[:100] or type(error).__name__


class Scenes(Dataset[dict[str, Any]]):
    """Frames of drawn scenes with captions and object masks.

    Args:
        seed: of the data set.
        size: side in pixels.
        wrong: add ``wrong``, the caption of the scene with one attribute changed.
        test: draw held-out combinations.
        compositions: share of compositions; the other samples are the same with any share.
    """

    def __init__(
        self,
        seed: int,
        size: int = 64,
        *,
        wrong: bool = False,
        test: bool = False,
        compositions: float = 0.0,
    ) -> None:
        self.seed, self.size, self.wrong, self.test = seed, size, wrong, test
        self.compositions = compositions

    def __len__(self) -> int:
        return 1 << 40

    def scene(self, index: int) -> tuple[scenes.Scene, np.random.Generator]:
        """The scene of a sample, and the generator for everything else that is random in the sample."""
        rng = np.random.default_rng((self.seed, index, int(self.test)))
        return scenes.draw_scene(rng, test=self.test), rng

    def __getitem__(self, index: int) -> dict[str, Any]:
        composed = composition_samples.draw(self.seed, index, self.compositions, self.test)
        if composed is not None:
            return composition_samples.item(*composed, self.size, self.wrong)
        scene, rng = self.scene(index)
        frame, mask = scenes.render_frame(scene, float(rng.random()), self.size)
        item: dict[str, Any] = {
            "image": to_tensor(frame),
            "mask": torch.from_numpy(mask),
            "caption": scenes.caption(scene, rng),
        }
        if self.wrong:
            state = rng.bit_generator.state
            part = one_part(scene, rng)
            changed = scenes.change(scene, rng, part)
            # The same random state for both captions, so that they differ in that attribute only.
            rng.bit_generator.state = state
            item["caption"] = scenes.caption(scene, rng)
            rng.bit_generator.state = state
            item["wrong"] = scenes.caption(changed, rng)
        return item


def one_part(scene: scenes.Scene, rng: np.random.Generator) -> str:
    """A random attribute that the scene's caption mentions: object, background, style or colour."""
    parts = ["object", "object", "background", "style"]
    if scene.actors[0].colour is not None and scene.style not in GREY_STYLES:
        parts.append("colour")
        parts.append("colour")
    return parts[rng.integers(len(parts))]
