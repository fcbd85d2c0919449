"""Evaluates text to image over guidance scales or training steps from samples (figures 10, 11 and 12).

Every point of a curve is a set of images for the same captions and noise, scored as a set: FID on
CLIP features against drawn or real images of these captions, CLIP score, and for drawn compositions the
share of images in which the composition judge finds every object, colour, count and place right.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ctxedit.bench import coco
from ctxedit.config import Config, merge
from ctxedit.editing import text_to_image
from ctxedit.editing.reporter import Reporter
from ctxedit.errors import ConfigError, InputError
from ctxedit.files import expanded, neighbour
from ctxedit.media.stills import read_image
from ctxedit.media.temporary import atomic
from ctxedit.media.write import write_image
from ctxedit.metrics.images.scores import Extractors, Score, score
from ctxedit.metrics.images.sets import ImageSet, open_set
from ctxedit.metrics.intervals import Bounds, jackknife, of_mean, wilson
from ctxedit.models.weights import BUILTIN_FOLDER
from ctxedit.runs import key_of, slug
from ctxedit.synthetic import compositions
from ctxedit.synthetic.composition_captions import caption
from ctxedit.synthetic.composition_judge import SIDE, load
from ctxedit.synthetic.composition_verdict import detect, judge
from ctxedit.synthetic.compositions import Composed
from ctxedit.tables import parse
from ctxedit.training import record
from ctxedit.training.checks.compositions import FOLDER, held_out

KEYS = ("fid", "clip_score")
#: The judge's figure; only for drawn compositions.
ALL_RIGHT = "all_right"
#: The source of drawn captions.
DRAWN = "drawn compositions"
_SNAPSHOTS = "snapshots"


@dataclass(frozen=True)
class Model:
    """A model of the comparison.

    Attributes:
        label: names its curve.
        path: a model as ``--model`` takes it.
        steps: training steps of a snapshot; None for a finished model.
    """

    label: str
    path: str
    steps: int | None = None


@dataclass(frozen=True)
class Captions:
    """What to generate, and what to compare it with.

    Attributes:
        items: captions, each with its image.
        reference: these images.
        source: identifies where the captions are from.
        composed: the compositions that the captions describe; empty for captions of photographs.
    """

    items: tuple[coco.Item, ...]
    reference: ImageSet
    source: str
    composed: tuple[Composed, ...] = ()


@dataclass(frozen=True)
class Point:
    """One set of images: its model, guidance scale, and scores by key."""

    model: Model
    guidance: float
    scores: dict[str, Score]


def drawn(count: int, seed: int, folder: Path) -> Captions:
    """Captions of held-out compositions, the kinds in turn, with the drawn images in ``folder``."""
    composed = held_out(count, seed)
    folder.mkdir(parents=True, exist_ok=True)
    items = []
    for number, one in enumerate(composed):
        item = coco.Item(number, folder / f"{number:012d}.png", caption(one))
        write_image(item.image, compositions.render_objects(one.scene, 0.5)[0], overwrite=True)
        items.append(item)
    files = tuple(item.image for item in items)
    return Captions(tuple(items), open_set(folder, None, files), DRAWN, tuple(composed))


def snapshots(model: str, label: str) -> list[Model]:
    """A trained model and its snapshots, by training steps.

    Args:
        model: the folder that ``ctxedit train`` wrote.
        label: names their curve.

    Raises:
        InputError: no such folder.
        ConfigError: no snapshots there.
    """
    folder = expanded(model)
    if not folder.is_dir():
        raise InputError(
            f"{model} is not a folder", f"{neighbour(folder)}give the folder that `ctxedit train` wrote"
        )
    found = sorted(p for p in (folder / _SNAPSHOTS).glob("[0-9]*") if p.is_dir())
    if not found:
        raise ConfigError(
            f"{model} has no snapshots", "train with schedule.snapshots = 4, as the recipe arm-plain does"
        )
    parts = [Model(label, str(p), int(p.name)) for p in found]
    whole = _steps_of(folder)
    if whole is None:  # no record: what follows from equal parts
        whole = sum(int(p.name) for p in (found[0], found[-1]))
    # A training that was stopped may have gone no further than to its newest snapshot.
    return [*(part for part in parts if part.steps != whole), Model(label, model, whole)]


def _steps_of(folder: Path) -> int | None:
    """Steps of the training that left snapshots, by its record; None without one.

    Models that it started from may have records of their own in the folder, but have no snapshots.
    """
    for file in sorted(folder.glob(f"*/{record.FILE}")):
        known = record.read(file.parent) or {}
        steps = known.get("steps")
        with suppress(ValueError, KeyError, TypeError):  # a damaged record, or a recipe without that setting
            if parse(known["recipe"])["schedule"]["snapshots"] > 1 and isinstance(steps, int):
                return steps
    return None


def place_of(out: Path, models: Sequence[Model], model: Model, guidance: float) -> Path:
    """The folder in ``out`` for a model's images at a guidance scale."""

    def name(one: Model) -> str:
        return slug(one.label if one.steps is None else f"{one.label}-{one.steps}")

    own = name(model)
    if sum(name(one) == own for one in models) > 1:  # long names are cut, and letters beyond a to z lost
        own = f"{own}-{key_of(model.path)[:6]}"
    return out / f"{own}-g{guidance:g}"


def check(
    models: Sequence[Model],
    guidances: Sequence[float],
    config: Config,
    out: Path,
    source: str,
    offline: bool = False,
) -> int:
    """Raise for what would stop the comparison when some of its images are made already.

    Args:
        models, guidances, config, out, offline: as for :func:`measure`.
        source: of the captions; ``DRAWN``, or anything else.

    Returns:
        The side of the smallest model's images, in pixels.

    Raises:
        ConfigError: drawn compositions, and a model whose images have another size.
        WeightsError, ResourceError: a model that cannot be used.
        OutputError: ``out`` has images of other settings, or cannot be written.
    """
    sides = []
    for model in models:
        for guidance in guidances:
            settings, adapter = _settings(config, model, guidance)
            place = place_of(out, models, model, guidance)
            coco.check(place, settings, False, adapter, source, f"choose another --out, or delete {place}")
        plan = text_to_image.plan("a", settings, offline, place / "a.png", True, adapter)
        sides.append(int(plan["size"][0]))
        if source == DRAWN and sides[-1] != SIDE:
            raise ConfigError(
                f"{model.path} generates images of {sides[-1]} pixels, and drawn compositions have {SIDE}",
                "compare with photographs: --coco FILE --images DIR",
            )
    return min(sides)


def _settings(config: Config, model: Model, guidance: float) -> tuple[Config, Path | None]:
    """The settings of one set of images, and the model's own adapter."""
    settings = merge(config, {"model": model.path, "edit": {"guidance": guidance}})
    return settings, text_to_image.own_adapter(settings)


def measure(
    models: Sequence[Model],
    guidances: Sequence[float],
    captions: Captions,
    config: Config,
    networks: Extractors,
    out: Path,
    reporter: Reporter,
    offline: bool = False,
) -> list[Point]:
    """Generate the images of every model at every guidance scale and score them; resumes.

    Args:
        models: a model's own context adapter is used where it has one.
        guidances: classifier-free guidance scales; 1 is none.
        captions: from :func:`drawn`, or of COCO's.
        config: seed, steps and the rest of sampling.
        networks: for FID and CLIP score.
        out: a folder for each set of images is created here.
        reporter: receives progress.
        offline: fetch nothing.

    Raises:
        OutputError: ``out`` has images of other settings.
    """
    points = []
    texts = [item.caption for item in captions.items]
    for model in models:
        for guidance in guidances:
            settings, adapter = _settings(config, model, guidance)
            name = model.label if model.steps is None else f"{model.label}-{model.steps}"
            folder = place_of(out, models, model, guidance)
            files = coco.make(
                captions.items, folder, settings, offline, False, reporter, adapter, captions.source
            )
            images = open_set(folder, captions.reference.side, tuple(files))
            found = {
                s.key: s for s in score(images, captions.reference, networks, KEYS, texts, reporter.warn)
            }
            if captions.composed:
                found[ALL_RIGHT] = _judged(files, captions.composed)
            points.append(Point(model, guidance, found))
            reporter.say(f"{name}, guidance {guidance:g}: {_line(found)}")
    return points


def _judged(files: Sequence[Path], composed: Sequence[Composed]) -> Score:
    network = load(BUILTIN_FOLDER / FOLDER)
    detected = detect(network, np.stack([read_image(file) for file in files]))
    right = [judge(c.composition, s.objects).all_right for c, s in zip(composed, detected, strict=True)]
    low, high = wilson(sum(right), len(right))
    return Score(
        ALL_RIGHT, "all right", "higher", 3, float(np.mean(right)), low, high, len(right), 0,
        "composition judge", "Wilson's score interval", each=tuple(map(float, right)),
    )  # fmt: skip


def _line(found: dict[str, Score]) -> str:
    return ", ".join(f"{s.title} {s.value:.{s.digits}f}" for s in found.values())


def first_model(points: Sequence[Point], point: Point) -> Point | None:
    """The first model's point at the same guidance and training steps; None for its own points."""
    first = points[0].model.label
    if point.model.label == first:
        return None
    place = (point.guidance, point.model.steps)
    return next((p for p in points if (p.model.label, p.guidance, p.model.steps) == (first, *place)), None)


def difference(one: Score, other: Score) -> tuple[float, Bounds]:
    """``one`` minus ``other``, for images of the same captions and noise, with its 95 % interval.

    The interval is paired, image by image or by jackknife group. Differences in difficulty between captions
    cancel, so it is much narrower than the two figures' own intervals.
    """
    value = one.value - other.value
    if one.each and len(one.each) == len(other.each):
        return value, of_mean(np.subtract(one.each, other.each))
    if one.without and other.without:
        return value, jackknife(value, np.subtract(one.without, other.without))
    return value, None


def rows(points: Sequence[Point]) -> list[dict[str, str | int | float | None]]:
    """A row for each figure of each point, with its difference from the first model's."""
    table = []
    for point in points:
        base = first_model(points, point)
        for key, one in point.scores.items():
            value, bounds = difference(one, base.scores[key]) if base else (None, None)
            low, high = bounds or (None, None)
            table.append({
                "model": point.model.label, "steps": point.model.steps, "guidance": point.guidance,
                "metric": key, "value": one.value, "low": one.low, "high": one.high, "images": one.generated,
                "features": one.features, "difference_from": base.model.label if base else None,
                "difference": value, "difference_low": low, "difference_high": high,
            })  # fmt: skip
    return table


def write(points: Sequence[Point], out: Path, name: str, along: Callable[[Point], float], label: str) -> None:
    """Write ``NAME.csv`` and ``NAME.png`` into ``out``.

    Args:
        points: in the order of the curves.
        out: folder.
        name: of both files.
        along: a point's position on the horizontal axis.
        label: of that axis.
    """
    table = rows(points)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(table[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    with atomic(out / f"{name}.csv", True) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")
    with atomic(out / f"{name}.png", True) as temporary:
        _draw(points, temporary, along, label)


def _draw(points: Sequence[Point], file: Path, along: Callable[[Point], float], label: str) -> None:
    from matplotlib.figure import Figure

    keys = list(points[0].scores)
    figure = Figure(figsize=(4.2 * len(keys), 3.4), layout="constrained")
    axes = figure.subplots(1, len(keys), squeeze=False)[0]
    for axis, key in zip(axes, keys, strict=True):
        for model in dict.fromkeys(point.model.label for point in points):
            own = sorted((p for p in points if p.model.label == model), key=along)
            scores = [p.scores[key] for p in own]
            places = [along(p) for p in own]
            axis.plot(places, [s.value for s in scores], marker="o", label=model)
            if all(s.low is not None and s.high is not None for s in scores):
                axis.fill_between(places, [s.low for s in scores], [s.high for s in scores], alpha=0.15)
        one = points[0].scores[key]
        said = f"{one.title} ({one.better} is better)\n{one.generated} images, {one.features}"
        axis.set(xlabel=label, title=said)
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(file, format="png", dpi=110)
