"""The default lists: held-out pairs of the built-in world, which are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
from numpy.typing import NDArray

from ctxedit.media.temporary import atomic
from ctxedit.media.write import write_clip
from ctxedit.synthetic import scenes
from ctxedit.synthetic.composition_pairs import CompositionPair
from ctxedit.synthetic.composition_pairs import draw_pairs as draw_composition_pairs
from ctxedit.synthetic.judge import truth
from ctxedit.synthetic.pairs import Pair, draw_pairs
from ctxedit.synthetic.samples import FPS, FRAMES, SIZE

#: The drawn world of a default list: one object per clip, or several
#: (:mod:`ctxedit.synthetic.compositions`).
EASY, COMPOSITIONS = "easy", "compositions"
#: 14 clips, 46 pairs: slightly more than the paper has videos. The seed is fixed, so that the list is always
#: the same.
CLIPS, COLOURS, SEED = 14, 4, 2024
NAME = "clips.toml"
AnyPair = Pair | CompositionPair


def default_pairs(seed: int = SEED) -> list[Pair]:
    """The pairs of the default list; another seed draws another list, to choose settings on."""
    return draw_pairs(CLIPS, seed, COLOURS)


def composition_pairs(seed: int = SEED) -> list[CompositionPair]:
    """The pairs of the default list of compositions: the same numbers of clips and pairs."""
    return draw_composition_pairs(CLIPS, seed)


def default_list(folder: Path, limit: int | None = None, seed: int = SEED, world: str = EASY) -> Path:
    """The default list as files in a folder (clips, masks, ideal edits, ``clips.toml``): drawn if it does not
    exist.

    Args:
        folder: renamed into place, so that it is either complete or absent.
        limit: draw only this many clips; such a list has its own folder next to it.
        seed: as for :func:`default_pairs`; the folder is one seed's.
        world: ``EASY`` or ``COMPOSITIONS``; the folder is one world's.
    """
    folder = _folder(folder, limit)
    if not (folder / NAME).is_file():
        drawn: Sequence[AnyPair] = default_pairs(seed) if world == EASY else composition_pairs(seed)
        pairs = [list(group) for _, group in groupby(drawn, lambda pair: pair.clip)]
        with atomic(folder, True) as temporary:
            temporary.mkdir()
            write_list(temporary, [pair for group in pairs[:limit] for pair in group])
    return folder / NAME


def is_drawn(folder: Path, limit: int | None = None) -> bool:
    """Whether the list of :func:`default_list` already exists."""
    return (_folder(folder, limit) / NAME).is_file()


def _folder(folder: Path, limit: int | None) -> Path:
    return folder if limit is None or limit >= CLIPS else folder.with_name(f"{folder.name}-{limit}")


def write_list(folder: Path, pairs: Sequence[AnyPair]) -> None:
    """Draw the clips of these pairs into a folder, with their list."""
    entries = []
    for name, group in groupby(pairs, lambda pair: pair.clip):
        of_clip = list(group)
        source = of_clip[0].source
        frames, mask = scenes.render(source, FRAMES, SIZE)
        write_clip(folder / f"{name}.mp4", frames, FPS)
        write_clip(folder / f"{name}-mask.mp4", _grey(mask), FPS)
        targets = [_target(folder, pair, mask) for pair in of_clip]
        entries.append(
            {
                "name": name,
                "path": f"{name}.mp4",
                "prompt": of_clip[0].source_prompt,
                "mask": f"{name}-mask.mp4",
                "targets": targets,
            }
        )
    (folder / NAME).write_text(tomli_w.dumps({"clips": entries}), encoding="utf-8")


def _target(folder: Path, pair: AnyPair, mask: NDArray[np.float32]) -> dict[str, Any]:
    """A target's entry; its ideal edit and, where the object's outline changes, its mask are drawn."""
    if isinstance(pair, CompositionPair):
        return _composition_target(folder, pair)
    stem = f"{pair.clip}-{pair.kind}"
    frames, own = scenes.render(pair.target, FRAMES, SIZE)
    write_clip(folder / f"{stem}.mp4", frames, FPS)
    # An object without visible colour (a sketch) has none to judge.
    expect = {k: v for k, v in truth(pair.target).items() if (k, v) != ("colour", "none")}
    table = {"prompt": pair.target_prompt, "kind": pair.kind, "ideal": f"{stem}.mp4", "expect": expect}
    if pair.kind == "object":
        # What may change is where the old object was and where the new one is.
        write_clip(folder / f"{stem}-mask.mp4", _grey(np.maximum(mask, own)), FPS)
        table["mask"] = f"{stem}-mask.mp4"
    return table


def _composition_target(folder: Path, pair: CompositionPair) -> dict[str, Any]:
    """As :func:`_target`, but the mask covers only the objects that change."""
    stem = f"{pair.clip}-{pair.kind}" + (f"-{pair.number}" if pair.number > 1 else "")
    write_clip(folder / f"{stem}.mp4", scenes.render(pair.target, FRAMES, SIZE)[0], FPS)
    write_clip(folder / f"{stem}-mask.mp4", _grey(pair.mask(FRAMES, SIZE)), FPS)
    changed = {} if pair.changed is None else {"changed": pair.changed}
    return {
        "prompt": pair.target_prompt, "kind": pair.kind, "ideal": f"{stem}.mp4", "mask": f"{stem}-mask.mp4",
        **changed, "expect": {"background": pair.target.background},
        "composition": pair.after.composition.to_table(),
    }  # fmt: skip


def _grey(mask: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.rint(mask[..., None] * 255).astype(np.uint8).repeat(3, -1)
