"""Scores of a set of images against a reference set, each with its interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ctxedit.errors import ConfigError, InputError, NumericsError
from ctxedit.files import expanded
from ctxedit.metrics.images import fidelity
from ctxedit.metrics.images.cmmd import cmmd
from ctxedit.metrics.images.sets import ImageSet, same_size
from ctxedit.metrics.intervals import GROUPS, NORMAL, STUDENT, Bounds, groups_of, jackknife, of_mean, wilson
from ctxedit.models.clip import ClipScorer

#: In the order of the table.
KEYS = ("fid", "kid", "is", "precision", "recall", "cmmd", "clip_score")
#: Those that are computed by torch-fidelity, on the features that were asked for.
BY_FIDELITY = ("fid", "kid", "is", "precision", "recall")
_NEIGHBOURS = 3
_SPLITS = 10
#: Each split's mean over the classes needs some hundreds of images.
_IS_IMAGES = 5000
#: Fewer images than these give no number worth the name.
_LEAST = {"fid": 2, "kid": 4, "is": _SPLITS, "precision": _NEIGHBOURS + 1, "recall": _NEIGHBOURS + 1,
          "cmmd": GROUPS, "clip_score": 1}  # fmt: skip


@dataclass(frozen=True)
class Score:
    """One figure.

    Attributes:
        value, low, high: the figure and its 95 % interval; None where too few images allow none.
        generated, reference: how many images of each set it is of (0: not used).
        features: the network whose features it is of.
        interval: how the interval was found.
        each: of a mean over images, the value of each image, in order; else empty.
        without: of a jackknifed figure, its value without each group of images; else empty.
    """

    key: str
    title: str
    better: Literal["higher", "lower"]
    digits: int
    value: float
    low: float | None
    high: float | None
    generated: int
    reference: int
    features: str
    interval: str
    each: tuple[float, ...] = ()
    without: tuple[float, ...] = ()

    def table(self) -> dict[str, str | int | float | None]:
        """As plain values, without the values of single images and groups."""
        return {k: v for k, v in asdict(self).items() if k not in ("each", "without")}


class Task(Protocol):
    """Receives progress; a ``Reporter``'s ``task`` fits."""

    def __call__(
        self, name: str, total: int, unit: str = ...
    ) -> AbstractContextManager[Callable[[int, str], None]]: ...


@dataclass(frozen=True)
class Extractors:
    """The networks that look at the images.

    Attributes:
        clip: for CMMD and CLIP score, and for all else where ``inception`` is None.
        inception: torch-fidelity's, or None.
        device: where Inception runs.
    """

    clip: ClipScorer | None
    inception: nn.Module | None = None
    inception_name: str = "inception-v3-compat"
    device: torch.device | str = "cpu"


def chosen(keys: Sequence[str] | None, inception: bool, captions: bool) -> tuple[str, ...]:
    """The figures to compute: the requested ones, or all that the inputs allow.

    Raises:
        ConfigError: an unknown one, or one that needs what is not given.
    """
    allowed = [k for k in KEYS if (k != "is" or inception) and (k != "clip_score" or captions)]
    if keys is None:
        return tuple(allowed)
    for key in keys:
        if key not in KEYS:
            raise ConfigError(f"unknown metric {key!r} of images", f"there are {', '.join(KEYS)}")
        if key not in allowed:
            raise ConfigError(
                "is needs Inception's classes, which CLIP does not have"
                if key == "is"
                else "clip_score needs --captions",
                "add --features inception" if key == "is" else "one caption for each generated image",
            )
    if not keys:
        raise ConfigError("no metric is named", f"there are {', '.join(KEYS)}")
    return tuple(key for key in KEYS if key in keys)


def check_counts(keys: Sequence[str], generated: int, reference: int, captions: int | None = None) -> None:
    """Raise InputError where a figure cannot be computed from so few images."""
    for key in keys:
        count = generated if key in ("is", "clip_score") else min(generated, reference)
        if count < _LEAST[key]:
            raise InputError(
                f"{key} needs at least {_LEAST[key]} images of each set, and there are {generated} generated "
                f"and {reference} reference images",
                "add images, or choose others with --metrics",
            )


def score(
    generated: ImageSet,
    reference: ImageSet,
    networks: Extractors,
    keys: Sequence[str],
    captions: Sequence[str] | None = None,
    warn: Callable[[str], None] = lambda text: None,
    task: Task | None = None,
) -> list[Score]:
    """Compute the figures ``keys``.

    Args:
        generated, reference: of one size.
        networks: as :class:`Extractors` says.
        keys: from :func:`chosen`.
        captions: one for each generated image, for ``clip_score``.
        warn: called with what makes a figure unreliable.
        task: receives progress.

    Raises:
        InputError: sets of different sizes, or too few images for a figure.
        NumericsError: NaN or infinity in a feature.
    """
    same_size(generated, reference)
    check_counts(keys, len(generated), len(reference))
    task = task or _silent
    mine, theirs = [
        _features(part, networks, keys, f"features of {part.folder.name}", task)
        for part in (generated, reference)
    ]
    name = networks.inception_name if networks.inception is not None else _clip_name(networks)
    _warn(mine.main.shape[1], len(generated), len(reference), keys, name, warn)
    compared = _Comparison(mine, theirs, name, captions, networks)
    found: list[Score] = []
    with task("distances", len(keys), "metric") as step:
        for done, key in enumerate(keys, 1):
            found.append(compared.score(key))
            step(done, key)
    return found


@dataclass(frozen=True)
class _Set:
    main: Tensor  # what torch-fidelity's figures are of
    clip: Tensor  # of unit length
    logits: Tensor | None


@contextmanager
def _silent(name: str, total: int, unit: str = "step") -> Iterator[Callable[[int, str], None]]:
    yield lambda done, note: None


def _clip_name(networks: Extractors) -> str:
    return "" if networks.clip is None else f"CLIP {networks.clip.name}"


def _features(part: ImageSet, networks: Extractors, keys: Sequence[str], name: str, task: Task) -> _Set:
    main, clip, logits = [], [], []
    inception = networks.inception if any(key in BY_FIDELITY for key in keys) else None
    with task(name, len(part), "image") as step:
        done = 0
        for batch in part.batches():
            if networks.clip is not None:
                clip.append(networks.clip.embed_images(batch, unit=False))
            if inception is not None:
                pixels = torch.from_numpy(batch).movedim(-1, 1).contiguous().to(networks.device)
                with torch.no_grad():
                    pooled, unbiased = inception(pixels)
                main.append(pooled.float().cpu())
                logits.append(unbiased.float().cpu())
            done += len(batch)
            step(done, "")
    clip_features = torch.cat(clip) if clip else torch.empty(len(part), 0)
    made = _Set(
        torch.cat(main) if main else clip_features,
        normalize(clip_features, dim=-1),
        torch.cat(logits) if logits else None,
    )
    if not all(bool(t.isfinite().all()) for t in (made.main, made.clip)):
        raise NumericsError(f"NaN or infinity in the features of {part.folder}", "try --dtype float32")
    return made


def _warn(
    width: int, generated: int, reference: int, keys: Sequence[str], name: str, warn: Callable[[str], None]
) -> None:
    if "fid" in keys and min(generated, reference) <= width:
        warn(
            f"FID of {width} features ({name}) needs more than {width} images in each set, better 10,000: "
            f"with {generated} and {reference} its bias dominates, so compare only with equal numbers"
        )
    if "is" in keys and generated < _IS_IMAGES:
        warn(
            f"IS of {_SPLITS} splits needs {_IS_IMAGES} images or more, better 50,000: with {generated} it "
            "is far too low, so compare only with equal numbers"
        )


@dataclass(eq=False)
class _Comparison:
    """Each figure of two sets of features; ``name`` is that of the main ones."""

    mine: _Set
    theirs: _Set
    name: str
    captions: Sequence[str] | None
    networks: Extractors

    def score(self, key: str) -> Score:
        """The figure of this key."""
        made: Score = getattr(self, f"_{key}")()
        return made

    @cached_property
    def _counts(self) -> tuple[int, int]:
        return len(self.mine.main), len(self.theirs.main)

    def _fid(self) -> Score:
        mine, theirs = self.mine.main, self.theirs.main
        value, bounds = fidelity.fid(mine, theirs), None
        without: tuple[float, ...] = ()
        if min(self._counts) >= 2 * GROUPS:
            gx, gy = (torch.from_numpy(groups_of(count)) for count in self._counts)
            without = tuple(fidelity.fid(mine[gx != g], theirs[gy != g]) for g in range(GROUPS))
            bounds = jackknife(value, without)
        made = self._made("fid", "FID", "lower", 3, value, bounds, f"jackknife of {GROUPS} groups")
        return replace(made, without=without)

    def _kid(self) -> Score:
        """KID is unbiased: subsets of any size have its mean, and their spread gives that of all images."""
        count = min(self._counts)
        size = min(1000, count // 2)
        mean, spread = fidelity.kid(self.mine.main, self.theirs.main, size)
        half = NORMAL * spread * math.sqrt(size / (count - size))
        return self._made(
            "kid", "KID", "lower", 5, mean, (mean - half, mean + half), f"100 subsets of {size}"
        )

    def _is(self) -> Score:
        assert self.mine.logits is not None
        mean, spread = fidelity.inception_score(self.mine.logits, _SPLITS)
        half = STUDENT * spread / math.sqrt(_SPLITS - 1)  # the spread was divided by SPLITS
        return self._made(
            "is", "IS", "higher", 3, mean, (mean - half, mean + half), f"{_SPLITS} splits", True
        )

    @cached_property
    def _shares(self) -> tuple[float, float]:
        return fidelity.precision_recall(self.mine.main, self.theirs.main, _NEIGHBOURS)

    def _precision(self) -> Score:
        return self._share("precision", self._shares[0], self._counts[0])

    def _recall(self) -> Score:
        return self._share("recall", self._shares[1], self._counts[1])

    def _share(self, key: str, share: float, count: int) -> Score:
        bounds = wilson(min(count, round(share * count)), count)
        return self._made(key, key, "higher", 3, share, bounds, "Wilson, over images")

    def _cmmd(self) -> Score:
        value, bounds = cmmd(self.mine.clip, self.theirs.clip)
        return self._made("cmmd", "CMMD", "lower", 3, value, bounds, f"jackknife of {GROUPS} groups")

    def _clip_score(self) -> Score:
        assert self.captions is not None and self.networks.clip is not None
        parts = [list(self.captions[i : i + 256]) for i in range(0, len(self.captions), 256)]
        texts = torch.cat([self.networks.clip.embed_texts(part) for part in parts])
        cosines = (self.mine.clip * texts).sum(1).clamp(min=0).double().numpy()
        bounds = of_mean(cosines)
        mean = float(cosines.mean())
        made = self._made("clip_score", "CLIP score", "higher", 4, mean, bounds, "over images", True)
        return replace(made, each=tuple(cosines.tolist()))

    def _made(
        self, key: str, title: str, better: Literal["higher", "lower"], digits: int, value: float,
        bounds: Bounds, interval: str, alone: bool = False,
    ) -> Score:  # fmt: skip
        low, high = bounds or (None, None)
        features = self.name if key in BY_FIDELITY else _clip_name(self.networks)
        mine, theirs = self._counts
        return Score(
            key, title, better, digits, value, low, high, mine, 0 if alone else theirs, features,
            "too few images" if bounds is None else interval,
        )  # fmt: skip


def features_from(name: str) -> tuple[Literal["clip", "inception"], str | Path | None]:
    """``--features`` as a kind of network, and which one: a file of Inception's weights, or a CLIP.

    Raises:
        ConfigError: an empty name.
    """
    if not name.strip():
        raise ConfigError("--features is empty", "it takes clip, inception, a file of weights, or a CLIP")
    if name == "clip":
        return "clip", None
    if name == "inception":
        return "inception", None
    path = expanded(name)
    if path.is_file() or path.suffix in (".pth", ".pt", ".safetensors"):
        return "inception", path
    return "clip", name
