"""``ctxedit eval guidance``, ``convergence`` and ``cost``: evaluate text to image, and measure its cost."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ctxedit.cli import arguments
from ctxedit.cli.failures import resumable
from ctxedit.cli.options import ClipModelOptions, MessageOptions, SamplingOptions, SettingOptions
from ctxedit.cli.output import Screen, print_table
from ctxedit.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ctxedit.bench.sweeps import Model, Point

_LEAST = 10

Models = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL...",
        help="Models to compare, as --model takes them; one curve each.",
        show_default=False,
    ),
]
Trained = Annotated[
    list[str],
    typer.Argument(
        metavar="FOLDER...",
        help="Folders that `ctxedit train` wrote, with snapshots; one curve each.",
        show_default=False,
    ),
]
Values = Annotated[str, typer.Option("--values", metavar="A,B,C", help="Classifier-free guidance scales.")]
Count = Annotated[
    int, typer.Option("--count", min=_LEAST, help="Number of captions, and so of images in each set.")
]
Coco = Annotated[
    Path | None,
    typer.Option(
        "--coco",
        metavar="FILE",
        help="Captions in COCO's format, instead of drawn compositions; needs --images.",
        show_default=False,
    ),
]
Images = Annotated[
    Path | None, typer.Option("--images", metavar="DIR", help="Folder of COCO's images.", show_default=False)
]
Out = Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for images, CSV and PNG.")]


def guidance(
    models: Models,
    base: SettingOptions,
    judging: ClipModelOptions,
    sampling: SamplingOptions,
    messages: MessageOptions,
    values: Values = "1.5,3,5,7,9",
    count: Count = 200,
    coco: Coco = None,
    images: Images = None,
    out: Out = Path("guidance"),
) -> None:
    """Compare text-to-image models over guidance scales and print a table with 95 % intervals.

    Images of the same held-out captions, with the same noise, are generated at every scale and scored: FID
    on CLIP features, CLIP score and, for drawn compositions, the share of images in which the judge finds
    everything right. Writes guidance.csv and guidance.png. Run the same command again to resume.
    """
    from ctxedit.bench.sweeps import Model

    scales = _numbers(values)
    chosen = [Model(_label(name, models), name) for name in models]
    _run(
        chosen, scales, count, (coco, images), out, (base, judging, sampling), messages,
        ("guidance", lambda point: point.guidance, "guidance scale"),
    )  # fmt: skip


def convergence(
    models: Trained,
    base: SettingOptions,
    judging: ClipModelOptions,
    sampling: SamplingOptions,
    messages: MessageOptions,
    count: Count = 200,
    coco: Coco = None,
    images: Images = None,
    out: Out = Path("convergence"),
) -> None:
    """Compare training runs over their steps by sampling their snapshots, and print a table.

    As `ctxedit eval guidance`, at --guidance, for every snapshot that a training exported
    (schedule.snapshots). Writes convergence.csv and convergence.png.
    """
    from ctxedit.bench import sweeps

    chosen = [one for name in models for one in sweeps.snapshots(name, _label(name, models))]
    _run(
        chosen, None, count, (coco, images), out, (base, judging, sampling), messages,
        ("convergence", lambda point: float(point.model.steps or 0), "training steps"),
    )  # fmt: skip


Batch = Annotated[int, typer.Option("--batch", min=1, help="Images per training step.")]
Repeats = Annotated[int, typer.Option("--repeats", min=1, help="Number of measured rounds.")]


def cost(
    base: SettingOptions,
    sampling: SamplingOptions,
    messages: MessageOptions,
    batch: Batch = 4,
    repeats: Repeats = 5,
) -> None:
    """Measure what the context adapter and upscaling cost: parameters, seconds per trained and sampled image.

    The plain denoiser, the same one with the adapter (the model's own, or one of the preset's sizes) and,
    where images are upscaled, the cascade are timed in turn on this machine, so that the ratios are reliable
    even if the absolute times vary.
    """
    screen = Screen(messages.quiet, messages.json)
    config = arguments.settings(base, screen, sampling)

    from ctxedit.bench import cost as costs
    from ctxedit.cli.progress import teller

    with resumable(None):
        found = costs.measure(config, batch, repeats, teller(screen), base.offline)
    rows = [row.table(found[0]) for row in found]
    if screen.json:
        screen.result("", {"model": config.model, "rows": rows})
        return
    lines = [("", "parameters", "s per training image", "ratio", "s per image", "ratio")]
    for row in rows:
        seconds = [f"{row[key]:.3g}" for key in ("seconds_per_training_image", "seconds_per_image")]
        ratios = [f"{row[key]:.2f}" for key in ("training_ratio", "sampling_ratio")]
        lines.append(
            (str(row["way"]), f"{row['parameters']:,}", seconds[0], ratios[0], seconds[1], ratios[1])
        )
    print_table(lines)


def _numbers(text: str) -> list[float]:
    try:
        found = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        found = []
    if not found or not all(math.isfinite(v) and v >= 1 for v in found):
        raise ConfigError(f"--values {text!r}", "guidance scales of 1 or more, e.g. 1.5,3,5")
    return list(dict.fromkeys(float(f"{v:g}") for v in found))  # as the folders of their images are called


def _label(name: str, names: Sequence[str]) -> str:
    """The last part of a model's name, or the full name where two models share that part."""
    last = Path(name).name or name
    return last if sum(Path(other).name == last for other in names) == 1 else name


def _run(
    models: list[Model], scales: list[float] | None, count: int, real: tuple[Path | None, Path | None],
    out: Path, options: tuple[SettingOptions, ClipModelOptions, SamplingOptions], messages: MessageOptions,
    plot: tuple[str, Callable[[Point], float], str],
) -> None:  # fmt: skip
    base, judging, sampling = options
    screen = Screen(messages.quiet, messages.json)
    config = arguments.without_upscaling(arguments.settings(base, screen, judging, sampling))
    if len({model.path for model in models}) < len(models):
        raise ConfigError("a model is named twice", "name each once")

    from ctxedit.bench import coco, sweeps
    from ctxedit.cli.eval_images import COCO_SIDE, extractors
    from ctxedit.cli.progress import teller
    from ctxedit.config import merge
    from ctxedit.media.temporary import check_writable
    from ctxedit.metrics.images.sets import open_set
    from ctxedit.runs import fingerprint

    reporter = teller(screen)
    captions, images = real
    if (captions is None) != (images is None):
        raise ConfigError("--coco and --images go together", "the captions and the images that they describe")
    seed = arguments.seed_of_choice(config.seed)
    scales = scales or [config.edit.guidance]
    items: tuple[coco.Item, ...] = ()
    source = sweeps.DRAWN
    if captions is not None and images is not None:
        items = tuple(coco.choose(captions, images, count, seed))
        source = fingerprint(captions)
    side = min(COCO_SIDE, sweeps.check(models, scales, config, out, source, base.offline))
    check_writable(out / ".ctxedit", True)
    with resumable(out):
        if images is None:
            what = sweeps.drawn(count, seed, out / "reference")
        else:
            reference = open_set(images, side, tuple(item.image for item in items))
            what = sweeps.Captions(items, reference, source)
        warn = None if captions is None else reporter.warn
        networks = extractors(
            "clip", None, sweeps.KEYS, merge(config, {"model": models[0].path}), base.offline, warn
        )
        points = sweeps.measure(models, scales, what, config, networks, out, reporter, base.offline)
        name, along, label = plot
        sweeps.write(points, out, name, along, label)
    _show(screen, points, out, name)


def _show(screen: Screen, points: list[Point], out: Path, name: str) -> None:
    from ctxedit.bench.sweeps import rows

    files = {"csv": out / f"{name}.csv", "png": out / f"{name}.png"}
    if screen.json:
        screen.result("", {"rows": rows(points), **files})
        return
    keys = list(points[0].scores)
    titles = [points[0].scores[key].title for key in keys]
    table = [("model", "steps", "guidance", *titles, "images", "features")]
    for point in points:
        scores = [point.scores[key] for key in keys]
        cells = [_cell(one.value, (one.low, one.high), one.digits) for one in scores]
        table.append((*_place(point), *cells, str(scores[0].generated), scores[0].features))
    print_table(table)
    _show_differences(points)
    screen.say(f"{files['csv']}, {files['png']}")


def _show_differences(points: list[Point]) -> None:
    """Each model's differences from the first one, for the same captions and noise."""
    from ctxedit.bench.sweeps import difference, first_model

    first = points[0]
    pairs = [(point, base) for point in points if (base := first_model(points, point))]
    if not pairs:
        return
    titles = [one.title for one in first.scores.values()]
    table = [(f"minus {first.model.label}", "steps", "guidance", *titles)]
    for point, base in pairs:
        cells = []
        for key, one in point.scores.items():
            value, bounds = difference(one, base.scores[key])
            cells.append(_cell(value, bounds or (None, None), one.digits, "+"))
        table.append((*_place(point), *cells))
    print_table(table)


def _place(point: Point) -> tuple[str, str, str]:
    steps = "" if point.model.steps is None else str(point.model.steps)
    return point.model.label, steps, f"{point.guidance:g}"


def _cell(value: float, bounds: tuple[float | None, float | None], digits: int, sign: str = "") -> str:
    form, (low, high) = f"{sign}.{digits}f", bounds
    return f"{value:{form}}" + ("" if low is None or high is None else f" ({low:{form}} to {high:{form}})")
