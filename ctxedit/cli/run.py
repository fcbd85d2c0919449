"""``ctxedit run``: all stages."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from ctxedit.cli import arguments
from ctxedit.cli.failures import resumable
from ctxedit.cli.options import (
    AddonOptions,
    CaptionOptions,
    Clip,
    FrameOptions,
    MessageOptions,
    RoundTripOptions,
    SamplingOptions,
    ScoringOptions,
    SettingOptions,
    SizeOptions,
    TargetOption,
    TuningOptions,
    UpscaleOptions,
)
from ctxedit.cli.output import Screen
from ctxedit.cli.output_options import DryRunOption, OutputOptions, OverwriteOption, RunsOptions
from ctxedit.tables import DEFAULT_PRESET

if TYPE_CHECKING:
    from ctxedit.editing.session import EditResult, Session

Texts = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="TEXT...", help="Target prompt: what the edited clip should show.", show_default=False
    ),
]


def run(
    clip: Clip,
    base: SettingOptions,
    addons: AddonOptions,
    span: FrameOptions,
    size: SizeOptions,
    captioning: CaptionOptions,
    tuning: TuningOptions,
    sampling: SamplingOptions,
    checking: RoundTripOptions,
    scoring: ScoringOptions,
    upscaling: UpscaleOptions,
    result: OutputOptions,
    place: RunsOptions,
    overwrite: OverwriteOption,
    dry: DryRunOption,
    messages: MessageOptions,
    text: Texts = None,
    target: TargetOption = None,
) -> None:
    """Caption, tune, invert, edit and score a clip, and print the path of each edited video."""
    screen = Screen(messages.quiet, messages.json)
    targets = arguments.targets(text, target, result.output, clip)
    given = (addons, span, size, captioning, tuning, sampling, checking, scoring, upscaling)
    config = arguments.with_round_trip(arguments.settings(base, screen, *given))
    config = arguments.fitted(config, arguments.existing(clip, targets), base, screen, span)

    from ctxedit.cli import fetching, work
    from ctxedit.cli.progress import teller
    from ctxedit.editing.checks import check_ahead
    from ctxedit.editing.request import Request
    from ctxedit.editing.session import Session

    request = Request(
        clip, config, base.preset or DEFAULT_PRESET, tuning.prompt, tuple(targets), scoring.mask,
        result.output, result.output_size == "source", not result.no_audio, result.chroma,
        not result.no_metadata, overwrite.yes, overwrite.yes,
        offline=base.offline or dry.dry_run, runs=place.runs, lavis_python=captioning.lavis_python,
        sources=arguments.sources(base),
    )  # fmt: skip
    needs = fetching.wanted(config, captions=tuning.prompt is None, scores=True)
    check = fetching.checks_clip(clip, config, tuning.prompt, targets)
    early = partial(check_ahead, request)
    if not fetching.settle(needs, screen, overwrite.yes, base.offline, dry.dry_run, check, early):
        return
    reporter = teller(screen)
    plan = work.checked(request, "evaluate", screen, dry.dry_run)
    if plan is None:
        return
    with Session(request, reporter) as session:
        folder = work.folder_of(session)
        with resumable(folder):
            work.say_duration(session, plan, screen)
            results = session.edit_all(targets)
        rows = _scored(session, results, screen)
        facts = _facts(session)
    edits = [_table(one, row) for one, row in zip(results, rows, strict=True)]
    screen.result("\n".join(str(one.files.video) for one in results), {**facts, "edits": edits})


def _facts(session: Session) -> dict[str, object]:
    """What is printed of the run with ``--json``, besides its edits."""
    returned = session.round_trip()
    return {
        "run": session.run.folder, "prompt": session.prompt, "seed": session.config.seed,
        "notes": session.parts.prepared.clip.notes,
        "round_trip": None if returned is None else returned.facts(),
    }  # fmt: skip


def _scored(session: Session, results: Sequence[EditResult], screen: Screen) -> list[dict[str, object]]:
    """The edits' figures, printed and written to the run's ``metrics.json``."""
    from ctxedit import api
    from ctxedit.cli import work

    rows: list[dict[str, object]] = []
    for one in results:
        assert one.figures is not None
        figures = api.plain_figures(one.figures.table())
        rows.append({"target": one.target, "video": str(one.files.video.resolve()), **figures})
        if one.reused:
            screen.say(f"“{one.target}”: the edit exists already; use -y to redo it")
        _tell(screen, one.target, figures)
        work.say_other_files(screen, one.files)
    api.write_metrics(session.run, rows)
    return rows


def _table(result: EditResult, figures: dict[str, object]) -> dict[str, object]:
    files = result.files
    return {
        "target": result.target, "video": files.video, "side_by_side": files.side_by_side,
        "sheet": files.sheet, "reused": result.reused, "figures": figures,
    }  # fmt: skip


def _tell(screen: Screen, target: str, figures: dict[str, object]) -> None:
    from ctxedit.cli.eval import figure, measured_at
    from ctxedit.metrics.registry import named

    said = [
        f"{one.title} {figure(figures[one.key], one.digits)}{' dB' if one.key == 'psnr' else ''}"
        for one in named(("clip_text", "clip_temp", "psnr", "ssim"))
        if figures.get(one.key) is not None
    ]  # fmt: skip
    screen.say(f"“{target}”: {', '.join(said)} ({measured_at(figures)}; CLIP: {figures['clip_model']})")
