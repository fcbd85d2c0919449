"""``ctxedit eval classes`` and ``ctxedit eval layouts``: measure class to image and layout to image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ctxedit.cli import arguments
from ctxedit.cli.eval_images import Features, extractors, show
from ctxedit.cli.failures import resumable
from ctxedit.cli.options import ClipModelOptions, MessageOptions, SamplingOptions, SettingOptions
from ctxedit.cli.output import Screen
from ctxedit.errors import ConfigError, counted

if TYPE_CHECKING:
    from ctxedit.models.condition_encoder import Kind


@dataclass(frozen=True)
class LabelOptions:
    """Which images are generated and compared."""

    encoder: Annotated[
        Path | None,
        typer.Option(
            "--encoder", metavar="DIR", show_default=False, help="Encoder. [default: the model's own]"
        ),
    ] = None
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", metavar="PATH", show_default=False,
            help="Real images: class folders, or shards with classes; for layouts COCO's instances_*.json. "
            "[default: held-out drawn scenes]",
        ),
    ] = None  # fmt: skip
    count: Annotated[int, typer.Option("--count", min=1, help="Images to generate.")] = 200
    features: Features = "clip"
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="DIR", show_default=False,
            help="Folder for the images. [default: classes-MODEL or layouts-MODEL]",
        ),
    ] = None  # fmt: skip


def classes(
    base: SettingOptions,
    judging: ClipModelOptions,
    sampling: SamplingOptions,
    chosen: LabelOptions,
    messages: MessageOptions,
) -> None:
    """Generate images of classes and compare them with real ones: FID, IS, precision, recall.

    For drawn scenes, a classifier of their objects (the judge) says how often the class is right, and
    provides the inception score's class probabilities; with --features inception the score is Inception's.
    Run the same command again to resume.
    """
    _evaluate("class", base, judging, sampling, chosen, messages)


def layouts(
    base: SettingOptions,
    judging: ClipModelOptions,
    sampling: SamplingOptions,
    chosen: LabelOptions,
    messages: MessageOptions,
) -> None:
    """Generate images of layouts and compare them with real ones: FID, and boxes that contain their label.

    For drawn scenes, a detector of their objects (the composition judge) says in which boxes it finds the
    label, how often the label is anywhere, and in which boxes of the real images it finds it. Run the same
    command again to resume.
    """
    _evaluate("layout", base, judging, sampling, chosen, messages)


def _evaluate(
    kind: Kind,
    base: SettingOptions,
    judging: ClipModelOptions,
    sampling: SamplingOptions,
    chosen: LabelOptions,
    messages: MessageOptions,
) -> None:
    screen = Screen(messages.quiet, messages.json)
    config = arguments.without_upscaling(arguments.settings(base, screen, judging, sampling))
    data, count = chosen.data, chosen.count
    if data is not None:
        arguments.existing(data)

    from ctxedit.bench import labels
    from ctxedit.cli.progress import teller
    from ctxedit.editing import text_to_image
    from ctxedit.metrics.images import scores
    from ctxedit.metrics.images.sets import open_set
    from ctxedit.models.label_condition import open_encoder
    from ctxedit.runs import slug

    reporter = teller(screen)
    plural = "classes" if kind == "class" else "layouts"
    out = chosen.out or Path(f"{plural}-{slug(Path(config.model).name)}")
    kinds, which = scores.features_from(chosen.features)
    names = ["fid", "precision", "recall"] if kind == "class" else ["fid"]
    names += ["is"] if kind == "class" and kinds == "inception" else []
    keys = scores.chosen(names, kinds == "inception", False)
    scores.check_counts(keys, count, count)
    opened = open_encoder(kind, config.model, chosen.encoder)
    labels.check(out, opened, config, data)
    plan = text_to_image.plan("", config, base.offline, out / "a.png", True)
    if plan["upscaler"]:
        raise ConfigError("classes and layouts are not upscaled", "choose a size that needs no upscaling")
    warn = None if data is None else reporter.warn
    networks = extractors(kinds, which, keys, config, base.offline, warn)
    wanted = labels.wanted(kind, opened, data, count, arguments.seed_of_choice(config.seed), plan["size"][0])
    screen.say(f"seed {config.seed}, {counted(count, 'image')} in {out}")
    with resumable(out):
        mine, theirs = labels.make(wanted, opened, out, config, base.offline, reporter, data)
        found = labels.judged(kind, wanted, opened, mine, reporter.warn)
        if kinds == "inception":  # then IS is Inception's
            found = [one for one in found if one.key != "is"]
        sets = (open_set(mine[0].parent, None, tuple(mine)), open_set(theirs[0].parent, None, tuple(theirs)))
        found += scores.score(*sets, networks, keys, None, reporter.warn, reporter.task)
    about: dict[str, Any] = {"model": config.model, "encoder": opened.folder, "data": data or "drawn scenes"}
    show(screen, found, {**about, "seed": config.seed, "count": count, "out": out})
