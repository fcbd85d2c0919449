"""``ctxedit eval images``: FID, KID, IS, precision, recall, CMMD and CLIP score of a folder of images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ctxedit.cli import asked
from ctxedit.cli.failures import resumable
from ctxedit.cli.options import Base, Judging, Talk
from ctxedit.cli.output import Screen, print_table

if TYPE_CHECKING:
    from ctxedit.cli.progress import Teller
    from ctxedit.config import Config
    from ctxedit.metrics.images.scores import Extractors, Score
    from ctxedit.metrics.images.sets import ImageSet

Generated = Annotated[
    Path, typer.Argument(metavar="GENERATED", help="Folder of generated images.", show_default=False)
]
Reference = Annotated[
    Path, typer.Argument(metavar="REFERENCE", help="Folder of real images.", show_default=False)
]
Captions = Annotated[
    Path | None,
    typer.Option(
        "--captions",
        metavar="FILE",
        help="What each generated image should show (.txt, .json, .jsonl); adds the CLIP score.",
        show_default=False,
    ),
]
Features = Annotated[
    str,
    typer.Option(
        "--features",
        metavar="clip|inception|FILE|ID",
        help="Network for FID, KID, precision and recall: clip (--clip-model), torch-fidelity's inception, "
        "a file with its weights, or another CLIP by id or folder.",
    ),
]
Side = Annotated[
    int | None,
    typer.Option(
        "--size", min=1, help="Scale every image's shorter edge and crop the square.", show_default=False
    ),
]
Metrics = Annotated[
    str | None,
    typer.Option(
        "--metrics",
        metavar="A,B,C",
        help="Only these of fid, kid, is, precision, recall, cmmd, clip_score.",
        show_default=False,
    ),
]


def images(
    generated: Generated,
    reference: Reference,
    base: Base,
    judging: Judging,
    talk: Talk,
    captions: Captions = None,
    features: Features = "clip",
    size: Side = None,
    metrics: Metrics = None,
) -> None:
    """Compare generated images with real ones; prints a table with 95 % intervals.

    FID, KID, IS, precision and recall are torch-fidelity's (pip install 'ctxedit[images]'), on the features
    of a CLIP or of its Inception; CMMD and the CLIP score (mean cosine, not below 0) are always CLIP's.
    Figures of different features, or of different numbers of images, do not compare.
    """
    screen = Screen(talk.quiet, talk.json)
    keys = None if metrics is None else [k.strip() for k in metrics.split(",") if k.strip()]
    config = asked.settings(base, screen, judging)
    for path in (generated, reference, captions):
        if path is not None:
            asked.existing(path)

    from ctxedit.cli.progress import teller

    told = teller(screen)
    with resumable(None):
        sets, texts, networks, chosen = _prepared(
            generated, reference, captions, features, size, keys, config, base.offline, told
        )
        found = _scored(sets, networks, chosen, texts, told)
    show(screen, found, {"generated": generated, "reference": reference})


def _prepared(
    generated: Path, reference: Path, captions: Path | None, features: str, size: int | None,
    keys: list[str] | None, config: Config, offline: bool, told: Teller,
) -> tuple[tuple[ImageSet, ImageSet], list[str] | None, Extractors, tuple[str, ...]]:  # fmt: skip
    """Everything that can be wrong, found before the first feature is computed."""
    from ctxedit.metrics.images import scores
    from ctxedit.metrics.images.captions import read_captions
    from ctxedit.metrics.images.sets import open_set, same_size

    kind, which = scores.features_from(features)
    chosen = scores.chosen(keys, kind == "inception", captions is not None)
    networks = extractors(kind, which, chosen, config, offline, told.warn)
    sets = []
    for folder in (generated, reference):
        with told.task(f"check {folder.name}", 1) as step:
            sets.append(open_set(folder, size))
            step(1, f"{len(sets[-1])} images")
    mine, theirs = sets
    same_size(mine, theirs)
    scores.check_counts(chosen, len(mine), len(theirs))
    texts = None if captions is None else read_captions(captions, mine.files)
    return (mine, theirs), texts, networks, chosen


def extractors(
    kind: str, which: Any, chosen: tuple[str, ...], config: Config, offline: bool, warn: Callable[[str], None]
) -> Extractors:
    """The networks for these figures; a missing one is found here."""
    from ctxedit.metrics.evaluate import make_scorer
    from ctxedit.metrics.images import fidelity
    from ctxedit.metrics.images.scores import BY_FIDELITY, Extractors
    from ctxedit.models.device import pick_device
    from ctxedit.models.weights import own_folder
    from ctxedit.naming import BUILTIN

    device = pick_device(config.device)
    by_fidelity = any(key in BY_FIDELITY for key in chosen)
    inception = None
    if by_fidelity:
        fidelity.library("metric_fid")  # is it installed?
        if kind == "inception":
            inception = fidelity.inception(which, device, offline)
    clip = None
    if inception is None or len(chosen) > sum(key in BY_FIDELITY for key in chosen):
        name = which if kind == "clip" and which is not None else config.clip_model
        clip = make_scorer(str(name), own_folder(config.model), device, offline)
        if clip.name == BUILTIN:
            warn(
                "the built-in CLIP knows drawn scenes only; for photographs name a real one: "
                "--clip-model openai/clip-vit-large-patch14-336, which CMMD is defined on"
            )
    return Extractors(clip, inception, device=device)


def _scored(
    sets: tuple[ImageSet, ImageSet], networks: Extractors, chosen: tuple[str, ...], texts: list[str] | None,
    told: Teller,
) -> list[Score]:  # fmt: skip
    from ctxedit.metrics.images import scores

    return scores.score(*sets, networks, chosen, texts, told.warn, told.task)


def show(screen: Screen, found: list[Score], about: dict[str, Any]) -> None:
    """The scores as a table, or with everything about them as one JSON object."""
    if screen.json:
        screen.result("", {**about, "scores": [dataclasses.asdict(one) for one in found]})
        return
    rows = [("metric", "value", "95 % interval", "better", "images", "features", "interval by")]
    for one in found:
        bounds = "-" if one.low is None else f"{one.low:.{one.digits}f} to {one.high:.{one.digits}f}"
        count = f"{one.generated} / {one.reference}" if one.reference else str(one.generated)
        rows.append(
            (one.title, f"{one.value:.{one.digits}f}", bounds, one.better, count, one.features, one.interval)
        )
    print_table(rows)
