"""What a part is trained on, through one interface: drawn scenes, a folder of pictures, webdataset shards.

Sample ``i`` is a function of the seed and ``i`` alone, so a training that was stopped goes on where it was
and several processes share one order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ctxedit.bundled.training.composition_samples import composition_item, composition_of, to_tensor
from ctxedit.bundled.training.sources import Listing, list_folder, list_shards, load_picture
from ctxedit.bundled.world import scenes
from ctxedit.bundled.world.vocabulary import GREY_STYLES
from ctxedit.errors import ConfigError, InputError

#: Names of bad input that an error mentions.
_NAMED = 3


@dataclass(frozen=True)
class DataConfig:
    """A recipe's ``[data]`` table.

    Attributes:
        source: ``scenes`` are drawn on the fly and need no path; ``folder`` holds pictures with captions,
            ``webdataset`` tar shards (see :mod:`ctxedit.bundled.training.sources` for the layouts).
        path: of the folder, or of one shard, a folder of shards, or a pattern such as ``data/*.tar``; in a
            recipe it is taken from the recipe's folder.
        size: side in pixels; pictures are cropped to a square and resized.
        compositions: share of compositions (:mod:`ctxedit.bundled.world.compositions`) among drawn scenes; 0
            is the easy split alone.
        on_error: bad input (a missing or unreadable picture, an empty caption, a broken shard) is counted,
            named and left out (``skip``), or ends the training (``stop``).
    """

    source: Literal["scenes", "folder", "webdataset"] = "scenes"
    path: str = ""
    size: int = 64
    compositions: float = 0.0
    on_error: Literal["skip", "stop"] = "skip"


class Data:
    """A task's samples, by seed.

    Args:
        config: the recipe's table.
        drawn: makes the data set of drawn scenes from (seed, size): a part knows what it wants drawn. One
            that can draw compositions takes their share as ``compositions``.
        captions: whether a picture without a caption is of no use.

    Raises:
        ConfigError: no path where one is needed; compositions that are no share, or not drawn.
        InputError: nothing there that could be used, or bad input where the recipe says ``stop``.
    """

    def __init__(self, config: DataConfig, drawn: Callable[..., Dataset[Any]], captions: bool = True) -> None:
        if not 0 <= config.compositions <= 1:
            raise ConfigError(f"data.compositions = {config.compositions}", "a share: 0 to 1")
        if config.compositions and config.source != "scenes":
            raise ConfigError(
                f'data.compositions with data.source = "{config.source}"', "they are drawn: leave one out"
            )
        self.config, self._drawn = config, drawn
        self.listing = None if config.source == "scenes" else open_listing(config, captions)

    @property
    def captions(self) -> list[str] | None:
        """Every caption there is; None for drawn scenes, which have no end."""
        return None if self.listing is None else [entry.caption for entry in self.listing.entries]

    def dataset(self, seed: int) -> Dataset[Any]:
        """Endless: ``image`` (3, size, size) in [−1, 1], ``caption``, and what a part had drawn besides."""
        if self.listing is None:
            share = self.config.compositions
            return self._drawn(seed, self.config.size, **({"compositions": share} if share else {}))
        return Pictures(self.listing, seed, self.config)


def open_listing(config: DataConfig, captions: bool) -> Listing:
    """List what lies at the path; errors as :class:`Data`'s."""
    if not config.path:
        raise ConfigError(f'data.source = "{config.source}" needs data.path', "or pass --data PATH")
    opener = list_folder if config.source == "folder" else list_shards
    listing = opener(Path(config.path).expanduser(), captions)
    if config.on_error == "stop":
        refuse(listing.bad)
    dataset = Pictures(listing, 0, config)
    for at in range(len(listing.entries)):
        # One that can be read is enough for skipping to come to an end.
        if not isinstance(dataset.read(at), str):
            return listing
    raise InputError(
        f"{config.path}: no picture that could be trained on, {len(listing.bad) + len(listing.entries)} bad",
        _names(listing.bad) or "every picture is unreadable",
    )


def refuse(bad: dict[str, str]) -> None:
    """Raise InputError when there is bad input, naming the first few."""
    if bad:
        raise InputError(
            f"{len(bad)} bad in the data: {_names(bad)}", 'data.on_error = "skip" leaves them out'
        )


def _names(bad: dict[str, str]) -> str:
    said = [f"{name} ({why})" for name, why in list(bad.items())[:_NAMED]]
    return ", ".join([*said, "…"] if len(bad) > _NAMED else said)


class Pictures(Dataset[dict[str, Any]]):
    """Listed pictures, every epoch in an order of its own.

    A picture that turns out to be unreadable gives way to the next in the order; ``bad`` of the sample says
    which, as lines of ``name<TAB>reason``: workers count nothing, the loop does.
    """

    def __init__(self, listing: Listing, seed: int, config: DataConfig) -> None:
        self.listing, self.seed, self.config = listing, seed, config
        self._order: tuple[int, np.ndarray] = (-1, np.zeros(0, np.int64))

    @property
    def bad(self) -> dict[str, str]:
        """What the listing already left out: name to reason."""
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
                return {"image": image, "caption": entry.caption, "bad": "\n".join(bad)}
            bad.append(f"{entry.name}\t{image}")
        raise InputError(f"{self.config.path}: no picture can be read any more", "did the data move?")

    def read(self, number: int) -> Tensor | str:
        """The picture (3, size, size) in [−1, 1], or why it cannot be read."""
        try:
            return to_tensor(load_picture(self.listing.entries[number], self.config.size))
        except Exception as error:  # Pillow's decoders raise whatever their format's parser does
            return " ".join(str(error).split())[:100] or type(error).__name__


class Scenes(Dataset[dict[str, Any]]):
    """Frames of drawn scenes with captions and the objects' masks; on request captions wrong in one word.

    Args:
        seed: of the whole set.
        size: side in pixels.
        wrong: also give ``wrong``, the caption of the scene with one part changed.
        test: draw held-out combinations.
        compositions: share of compositions; they change nothing about the other samples.
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
        """What a sample shows, and the generator that draws the rest of it."""
        rng = np.random.default_rng((self.seed, index, int(self.test)))
        return scenes.draw_scene(rng, test=self.test), rng

    def __getitem__(self, index: int) -> dict[str, Any]:
        composed = composition_of(self.seed, index, self.compositions, self.test)
        if composed is not None:
            return composition_item(*composed, self.size, self.wrong)
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
            # The same draws for both wordings, so that nothing but the part tells them apart.
            rng.bit_generator.state = state
            item["caption"] = scenes.caption(scene, rng)
            rng.bit_generator.state = state
            item["wrong"] = scenes.caption(changed, rng)
        return item


def one_part(scene: scenes.Scene, rng: np.random.Generator) -> str:
    """A part of the scene that its caption names: object, background, style or colour."""
    parts = ["object", "object", "background", "style"]
    if scene.actors[0].colour is not None and scene.style not in GREY_STYLES:
        parts.append("colour")
        parts.append("colour")
    return parts[rng.integers(len(parts))]
