"""``ctxedit run``: all stages."""

from __future__ import annotations

from typing import Annotated

import typer

from ctxedit.cli import asked
from ctxedit.cli.failures import resumable
from ctxedit.cli.options import (
    Base,
    Captioning,
    Clip,
    Dry,
    Overwrite,
    Place,
    Result,
    Sampling,
    Scoring,
    Size,
    Span,
    Talk,
    TargetOption,
    Tuning,
)
from ctxedit.cli.output import Screen
from ctxedit.errors import ConfigError

Texts = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="TEXT...", help="Target prompt: what the edited clip should show.", show_default=False
    ),
]


def run(
    clip: Clip,
    base: Base,
    span: Span,
    size: Size,
    captioning: Captioning,
    tuning: Tuning,
    sampling: Sampling,
    scoring: Scoring,
    result: Result,
    place: Place,
    overwrite: Overwrite,
    dry: Dry,
    talk: Talk,
    text: Texts = None,
    target: TargetOption = None,
) -> None:
    """Caption, tune, invert, edit and score a clip; prints the path of each edited video."""
    screen = Screen(talk.quiet, talk.json)
    targets = asked.targets(text, target)
    if result.output is not None and len(targets) > 1:
        raise ConfigError(
            "--output names one file, and there are several targets", "leave it out: see --runs"
        )
    config = asked.settings(base, screen, span, size, captioning, tuning, sampling, scoring)
    config = asked.fitted(config, asked.existing(clip), base, screen, span)

    from ctxedit import api, pipeline
    from ctxedit.cli import work
    from ctxedit.cli.progress import teller

    options = pipeline.Options(
        tuning.prompt, scoring.mask, result.output, result.output_size == "source", not result.no_audio,
        overwrite.yes, base.offline or dry.dry_run, place.runs, captioning.lavis_python, asked.sources(base),
        result.chroma, not result.no_metadata,
    )  # fmt: skip
    preset = base.preset or asked.DEFAULT_PRESET
    with pipeline.Session(clip, config, preset, options, teller(screen)) as session:
        if not work.checked(session, targets, "evaluate", screen, dry.dry_run):
            return
        with resumable(session.run.folder):
            results = pipeline.run(session, targets)
        folder, prompt, notes = session.run.folder, session.prompt, session.prepared.clip.notes
        rows = []
        for one in results:
            assert one.figures is not None
            figures = api.plain_figures(one.figures.table())
            rows.append({"target": one.target, "video": str(one.files.video.resolve()), **figures})
            _tell(screen, one.target, figures)
        api.write_metrics(session.run, rows)
    edits = [
        {
            "target": one.target, "video": one.files.video, "side_by_side": one.files.side_by_side,
            "sheet": one.files.sheet, "reused": one.reused, "figures": row,
        }
        for one, row in zip(results, rows, strict=True)
    ]  # fmt: skip
    paths = "\n".join(str(one.files.video) for one in results)
    facts = {"run": folder, "prompt": prompt, "seed": config.seed, "notes": notes}
    screen.result(paths, {**facts, "edits": edits})


def _tell(screen: Screen, target: str, figures: dict[str, object]) -> None:
    from ctxedit.cli.eval import figure

    named = (("clip_text", "CLIP-text"), ("clip_temp", "CLIP-temp"), ("psnr", "PSNR"), ("ssim", "SSIM"))
    said = [f"{name} {figure(figures[key])}" for key, name in named if figures.get(key) is not None]
    screen.say(f"“{target}”: {', '.join(said)} (CLIP: {figures['clip_model']})")
