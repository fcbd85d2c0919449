"""Which files of a checkpoint are loaded: weights by diffusers' and transformers' names, shards, variants.

The same choice serves a folder on disk and a repository's file listing: what is fetched is what is loaded.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from ctxedit.errors import WeightsError

PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle")
_SAFE = "convert it to safetensors on a machine where that is safe"
#: The half-precision copy of a weights file carries this in its name.
HALF = "fp16"
#: What diffusers and transformers call a network's weights.
_STEMS = ("diffusion_pytorch_model", "model")
_SETTINGS = (".json", ".txt", ".model")

#: Names in a repository or folder, and whether half precision is wanted, to the names that are needed.
Select = Callable[[Collection[str], bool], list[str]]


def refuse_other_formats(name: str, path: Path) -> None:
    """Raise WeightsError for pickled files, there or not, and for existing ones that are not safetensors."""
    suffix = path.suffix.lower()
    if suffix in PICKLES:
        raise WeightsError(
            f"{name}: pickled files are refused, because reading one can run any code in it", _SAFE
        )
    if suffix != ".safetensors" and os.path.isfile(path):
        raise WeightsError(
            f"{name} is not a .safetensors file",
            "GGUF, ONNX and other formats are not read: take the version in safetensors",
        )


@dataclass(frozen=True)
class Weights:
    """The weights of one network.

    Attributes:
        files: safetensors files, in order.
        index: the file that says which shard holds what; None for a single file.
        variant: ``fp16``, or None for the full precision.
        missing: shards that the names announce and that are not there.
    """

    files: tuple[str, ...]
    index: str | None = None
    variant: str | None = None
    missing: int = 0


def choose(names: Iterable[str], half: bool = False) -> Weights | None:
    """The weights among the file names of one folder; None where there are none.

    Args:
        names: file names, without a folder.
        half: prefer the fp16 variant, where there is one; otherwise it is the last resort.
    """
    inside = set(names)
    order = (HALF, None) if half else (None, HALF)
    found = [w for variant in order for stem in _STEMS for w in _of(inside, stem, variant)]
    whole = [weights for weights in found if not weights.missing]
    return next(iter([*whole, *found]), None)


def _of(names: set[str], stem: str, variant: str | None) -> list[Weights]:
    """A single file and shards of one name and variant, the one that its library prefers first."""
    dot = "" if variant is None else f".{variant}"
    single = f"{stem}{dot}.safetensors"
    index = f"{stem}.safetensors.index{dot}.json"
    # diffusers once wrote the variant behind the number.
    shape = re.compile(
        rf"{re.escape(stem)}(?:{dot}-\d{{5}}-of-(\d{{5}})|-\d{{5}}-of-(\d{{5}}){dot})\.safetensors"
    )
    shards = {name: int(m[1] or m[2]) for name in names if (m := shape.fullmatch(name))}
    found = [Weights((single,), None, variant)] if single in names else []
    if index in names:
        total = max(shards.values(), default=1)
        sharded = Weights(tuple(sorted(shards)), index, variant, total - len(shards))
        # Where both are there, diffusers reads the index and transformers the single file.
        found.insert(0 if stem == _STEMS[0] else len(found), sharded)
    return found


def flat(name: str) -> Select:
    """What a repository of one network (transformers, a ControlNet) must give; ``name`` is for errors."""

    def select(names: Collection[str], half: bool) -> list[str]:
        top = [n for n in names if "/" not in n]
        if "config.json" not in top:
            raise WeightsError(f"{name} has no config.json", "give a checkpoint in transformers' format")
        return _part(top, half, name)

    return select


def pipeline(networks: Sequence[str], others: Sequence[str], name: str) -> Select:
    """The parts of a diffusers repository that are needed: the folders of a family."""

    def select(names: Collection[str], half: bool) -> list[str]:
        wanted = ["model_index.json"]
        for part in (*networks, *others):
            inside = [n.removeprefix(f"{part}/") for n in names if n.startswith(f"{part}/")]
            inside = [n for n in inside if "/" not in n]
            if not inside:
                raise WeightsError(f"{name} has no folder {part}/", "fetch or save it again")
            found = _part(inside, half, f"{name}/{part}") if part in networks else _settings(inside)
            wanted += [f"{part}/{n}" for n in found]
        return wanted

    return select


def one_file(name: str, known: Sequence[str], inside: str | None = None) -> Select:
    """What a repository or folder of one small safetensors file must give.

    Args:
        name: for errors.
        known: what the file may be called where there are several.
        inside: the file that was asked for.
    """

    def select(names: Collection[str], half: bool) -> list[str]:
        weights = sorted(n for n in names if n.endswith(".safetensors"))
        wanted = [inside] if inside else [*known, *(weights if len(weights) == 1 else [])]
        found = [n for n in wanted if n in weights]
        if found:
            return found[:1]
        if weights:
            raise WeightsError(
                f"{name} has several safetensors files" if inside is None else f"{name} has no {inside}",
                f"name one of them: {', '.join(f'{name}/{n}' for n in weights[:5])}",
            )
        _refuse(names, name)

    return select


def _part(names: Sequence[str], half: bool, name: str) -> list[str]:
    weights = require(names, name, half)
    return [*_settings(names), *weights.files, *([weights.index] if weights.index else [])]


def require(names: Sequence[str], name: str, half: bool = False) -> Weights:
    """As :func:`choose`, of a folder called ``name``.

    Raises:
        WeightsError: there are no safetensors weights, or some of their shards are missing.
    """
    weights = choose(names, half)
    if weights is None:
        _refuse(names, name)
    if weights.missing:
        raise WeightsError(f"{name} lacks {weights.missing} of its weights' shards", "fetch or copy it again")
    return weights


def _refuse(names: Iterable[str], name: str) -> NoReturn:
    """Raise WeightsError for a folder without weights that can be loaded."""
    names = list(names)
    if any(n.endswith(PICKLES) for n in names):
        raise WeightsError(
            f"{name} holds only pickled weights, which are refused because reading them can run any code",
            "convert it with save_pretrained(safe_serialization=True), on a machine where that is safe",
        )
    known = " or ".join(f"{stem}.safetensors" for stem in _STEMS)
    if others := sorted(n for n in names if n.endswith(".safetensors")):
        raise WeightsError(
            f"{name} has no weights under a name that is loaded, but {others[0]}",
            f"to use one, rename a copy of it to {known}",
        )
    raise WeightsError(f"{name} has no safetensors weights", f"they are named {known}")


def _settings(names: Iterable[str]) -> list[str]:
    return sorted(n for n in names if n.endswith(_SETTINGS) and ".index." not in n)
