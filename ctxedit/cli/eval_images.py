"""``ctxedit eval images``: FID, KID, IS, precision, recall, CMMD and CLIP score of a folder of images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ctxedit.cli import arguments
from ctxedit.cli.failures import resumable
from ctxedit.cli.options import ClipModelOptions, MessageOptions, SamplingOptions, SettingOptions
from ctxedit.cli.output import Screen, print_table
from ctxedit.cli.output_options import OverwriteOption
from ctxedit.errors import ConfigError, counted

if TYPE_CHECKING:
    from ctxedit.cli.progress import CommandReporter
    from ctxedit.config import Config
    from ctxedit.metrics.images.scores import Extractors, Score
    from ctxedit.metrics.images.sets import ImageSet

_COCO = "Zero-shot on COCO"
#: Image sizes at which FID-30K is reported.
COCO_SIDE = 256
#: Up to this size, memory is not checked.
_ORDINARY = 4096

Generated = Annotated[
    Path | None, typer.Argument(metavar="GENERATED", help="Folder of generated images.", show_default=False)
]
Reference = Annotated[
    Path | None, typer.Argument(metavar="REFERENCE", help="Folder of real images.", show_default=False)
]
Coco = Annotated[
    Path | None,
    typer.Option(
        "--coco",
        metavar="FILE",
        rich_help_panel=_COCO,
        help="Generate an image for each of --count captions in COCO's format, then score them.",
        show_default=False,
    ),
]
Real = Annotated[
    Path | None,
    typer.Option(
        "--images", metavar="DIR", rich_help_panel=_COCO, help="Folder of COCO's images.", show_default=False
    ),
]
Count = Annotated[
    int | None,
    typer.Option(
        "--count",
        min=1,
        rich_help_panel=_COCO,
        help="Number of captions. [default: 30000]",
        show_default=False,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        metavar="DIR",
        rich_help_panel=_COCO,
        help="Folder for the generated images. [default: coco-MODEL]",
        show_default=False,
    ),
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
    base: SettingOptions,
    judging: ClipModelOptions,
    sampling: SamplingOptions,
    overwrite: OverwriteOption,
    messages: MessageOptions,
    generated: Generated = None,
    reference: Reference = None,
    captions: Captions = None,
    features: Features = "clip",
    size: Side = None,
    metrics: Metrics = None,
    coco: Coco = None,
    images: Real = None,
    count: Count = None,
    out: Out = None,
) -> None:
    """Compare generated images with real ones and print a table with 95 % intervals.

    FID, KID, IS, precision and recall are torch-fidelity's (the optional extra `images`), on the features
    of a CLIP or of its Inception; CMMD and the CLIP score (mean cosine, not below 0) are always CLIP's.
    Scores from different features or different numbers of images are not comparable.

    With --coco, --images and --model, an image is generated for each of --count captions first, as for the
    zero-shot FID-30K; run the same command again to resume. Both sets are then scored at 256 pixels, or at
    the model's size where that is smaller.
    """
    screen = Screen(messages.quiet, messages.json)
    _check_side(size)
    keys = None if metrics is None else list(arguments.split_names(metrics))
    if coco is not None:
        wanted = _Coco(coco, images, 30000 if count is None else count, out, overwrite.yes)
        if generated or reference or captions:
            raise ConfigError(
                "--coco brings its own folders and captions", "leave out GENERATED, REFERENCE and --captions"
            )
        config = arguments.without_upscaling(arguments.settings(base, screen, judging, sampling))
        _from_coco(wanted, features, size, keys, config, base, screen)
        return
    _only_with_coco(images, count, out, overwrite.yes, sampling)
    if generated is None or reference is None:
        raise ConfigError(
            "two folders are compared: GENERATED and REFERENCE", "or generate first: --coco FILE --images DIR"
        )
    config = arguments.without_upscaling(arguments.settings(base, screen, judging))
    for path in (generated, reference, captions):
        if path is not None:
            arguments.existing(path)

    from ctxedit.cli.progress import teller

    reporter = teller(screen)
    with resumable(None):
        sets, texts, networks, chosen = _prepared(
            generated, reference, captions, features, size, keys, config, base.offline, reporter
        )
        found = _scored(sets, networks, chosen, texts, reporter)
    show(screen, found, {"generated": generated, "reference": reference})


def _check_side(size: int | None) -> None:
    """Raise ResourceError if memory cannot hold a single image, as bytes and as floats."""
    if size is None or size <= _ORDINARY:
        return
    import torch

    from ctxedit.editing.machine import GIB, memory_available
    from ctxedit.errors import ResourceError

    needed, available = 3 * size**2 * (1 + 2 * 4), memory_available(torch.device("cpu"))
    if needed > available:
        raise ResourceError(
            f"--size {size}: one image takes about {needed / GIB:.1f} GiB of memory, "
            f"{available / GIB:.1f} GiB are available",
            "papers compare at 256 pixels",
        )


@dataclasses.dataclass(frozen=True)
class _Coco:
    captions: Path
    images: Path | None
    count: int
    out: Path | None
    overwrite: bool


def _only_with_coco(images: Any, count: Any, out: Any, yes: bool, sampling: SamplingOptions) -> None:
    given = {"--images": images, "--count": count, "--out": out, "--yes": yes or None}
    given |= {f"--{name.replace('_', '-')}": value for name, value in dataclasses.asdict(sampling).items()}
    for option, value in given.items():
        if value is not None:
            raise ConfigError(
                f"{option} needs --coco", "it affects generated images, and none are generated here"
            )


def _from_coco(
    wanted: _Coco,
    features: str,
    size: int | None,
    keys: list[str] | None,
    config: Config,
    base: SettingOptions,
    screen: Screen,
) -> None:
    """Check everything, generate what is missing, score."""
    if wanted.images is None:
        raise ConfigError("--coco needs --images", "the folder of COCO's images, e.g. val2014")
    arguments.existing(wanted.captions)

    from ctxedit.bench import coco
    from ctxedit.cli.progress import teller
    from ctxedit.editing import text_to_image
    from ctxedit.metrics.images import scores
    from ctxedit.metrics.images.sets import open_set
    from ctxedit.runs import fingerprint, slug

    reporter = teller(screen)
    out = wanted.out or Path(f"coco-{slug(Path(config.model).name)}")
    kind, which = scores.features_from(features)
    chosen = scores.chosen(keys, kind == "inception", True)
    scores.check_counts(chosen, wanted.count, wanted.count)
    seed = arguments.seed_of_choice(config.seed)
    items = coco.choose(wanted.captions, wanted.images, wanted.count, seed)
    source = fingerprint(wanted.captions)
    coco.check_apart(out, wanted.captions, wanted.images)
    coco.check(out, config, wanted.overwrite, source=source)
    plan = text_to_image.plan("a", config, base.offline, out / items[0].name, True)
    side = size or min(COCO_SIDE, *plan["size"])
    networks = extractors(kind, which, chosen, config, base.offline, reporter.warn)
    with reporter.task("check the real images", 1) as step:
        real = open_set(wanted.images, side, tuple(item.image for item in items))
        step(1, counted(len(real), "image"))
    screen.say(f"seed {config.seed}, {len(items)} captions, images in {out}, scored at {side} pixels")
    with resumable(out):
        files = coco.make(items, out, config, base.offline, wanted.overwrite, reporter, source=source)
        sets = (open_set(out, side, tuple(files)), real)
        found = _scored(sets, networks, chosen, [item.caption for item in items], reporter)
    about = {"generated": out, "reference": wanted.images, "captions": wanted.captions, "model": config.model}
    show(screen, found, {**about, "seed": config.seed, "count": len(items), "size": side})


def _prepared(
    generated: Path, reference: Path, captions: Path | None, features: str, size: int | None,
    keys: list[str] | None, config: Config, offline: bool, reporter: CommandReporter,
) -> tuple[tuple[ImageSet, ImageSet], list[str] | None, Extractors, tuple[str, ...]]:  # fmt: skip
    """Check all inputs before the first feature is computed."""
    from ctxedit.metrics.images import scores
    from ctxedit.metrics.images.captions import read_captions
    from ctxedit.metrics.images.sets import open_set, same_size

    kind, which = scores.features_from(features)
    chosen = scores.chosen(keys, kind == "inception", captions is not None)
    networks = extractors(kind, which, chosen, config, offline, reporter.warn)
    sets = []
    for folder in (generated, reference):
        with reporter.task(f"check {folder.name}", 1) as step:
            sets.append(open_set(folder, size))
            step(1, counted(len(sets[-1]), "image"))
    mine, theirs = sets
    same_size(mine, theirs)
    scores.check_counts(chosen, len(mine), len(theirs))
    texts = None if captions is None else read_captions(captions, mine.files)
    return (mine, theirs), texts, networks, chosen


def extractors(
    kind: str, which: Any, chosen: tuple[str, ...], config: Config, offline: bool,
    warn: Callable[[str], None] | None,
) -> Extractors:  # fmt: skip
    """The networks for these figures; a missing one is found here.

    ``warn`` is told that the built-in CLIP knows drawn scenes only; None where all images are drawn scenes.
    """
    from ctxedit.metrics.evaluate import make_scorer
    from ctxedit.metrics.images import fidelity
    from ctxedit.metrics.images.scores import BY_FIDELITY, Extractors
    from ctxedit.model_names import BUILTIN
    from ctxedit.models.device import pick_device
    from ctxedit.models.weights import own_folder

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
        if clip.name == BUILTIN and warn is not None:
            warn(
                "the built-in CLIP knows drawn scenes only; for photographs name a real one: "
                "--clip-model openai/clip-vit-large-patch14-336, which CMMD is defined on"
            )
    name = "inception-v3-compat" + (f" ({which.name})" if inception is not None and which else "")
    return Extractors(clip, inception, name, device)


def _scored(
    sets: tuple[ImageSet, ImageSet], networks: Extractors, chosen: tuple[str, ...], texts: list[str] | None,
    reporter: CommandReporter,
) -> list[Score]:  # fmt: skip
    from ctxedit.metrics.images import scores

    return scores.score(*sets, networks, chosen, texts, reporter.warn, reporter.task)


def show(screen: Screen, found: list[Score], about: dict[str, Any]) -> None:
    """The scores as a table, or with everything about them as one JSON object."""
    if screen.json:
        screen.result("", {**about, "scores": [one.table() for one in found]})
        return
    rows = [("metric", "value", "95 % interval", "better", "images", "features", "interval by")]
    for one in found:
        bounds = "-" if one.low is None else f"{one.low:.{one.digits}f} to {one.high:.{one.digits}f}"
        count = f"{one.generated} / {one.reference}" if one.reference else str(one.generated)
        rows.append(
            (one.title, f"{one.value:.{one.digits}f}", bounds, one.better, count, one.features, one.interval)
        )
    print_table(rows)
