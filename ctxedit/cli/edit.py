"""``ctxedit edit``: edit a tuned clip."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ctxedit.cli import arguments
from ctxedit.cli.failures import resumable
from ctxedit.cli.options import (
    MessageOptions,
    RoundTripOptions,
    SamplingOptions,
    ScoringOptions,
    SettingOptions,
    UpscaleOptions,
)
from ctxedit.cli.output import Screen
from ctxedit.cli.output_options import DryRunOption, OutputOptions, OverwriteOption, RunsOptions
from ctxedit.errors import ConfigError

if TYPE_CHECKING:
    from ctxedit.editing.session import EditResult
    from ctxedit.stages.report import HeatmapFiles

Positional = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[CLIP] TEXT",
        help="Target prompt: what the edited clip should show. With a clip, its newest run is edited.",
        show_default=False,
    ),
]
Target = Annotated[
    str | None,
    typer.Option(
        "--target",
        metavar="TEXT",
        help="Target prompt: what the edited clip should show.",
        show_default=False,
    ),
]


def _run_folders() -> list[str]:
    """Run folders below the folder for runs, for shell completion."""
    root = Path(os.environ.get("CTXEDIT_RUNS", "runs"))
    return sorted(str(file.parent) for file in root.glob("*/run.toml"))


RunFolder = Annotated[
    Path | None,
    typer.Option(
        "--run", metavar="DIR", help="Run folder. [default: the newest]", show_default=False,
        autocompletion=_run_folders,
    ),
]  # fmt: skip

Heatmaps = Annotated[
    bool,
    typer.Option(
        "--heatmaps", help="Also draw where each word of the target attends, with and without the adapter."
    ),
]


def edit(
    base: SettingOptions,
    sampling: SamplingOptions,
    checking: RoundTripOptions,
    scoring: ScoringOptions,
    upscaling: UpscaleOptions,
    result: OutputOptions,
    place: RunsOptions,
    overwrite: OverwriteOption,
    dry: DryRunOption,
    messages: MessageOptions,
    positional: Positional = None,
    target: Target = None,
    run: RunFolder = None,
    heatmaps: Heatmaps = False,
) -> None:
    """Edit the clip of a run and print the path of the edited video. Starts from the run's settings."""
    screen = Screen(messages.quiet, messages.json)
    clip, target = _understood(positional or [], target)
    if clip is not None and run is not None:
        raise ConfigError("--run already names a run", "leave out the clip")
    changes = arguments.for_run(base, screen, sampling, checking, scoring, upscaling)

    from ctxedit import api
    from ctxedit.cli import fetching, work
    from ctxedit.cli.progress import teller
    from ctxedit.editing.checks import check_ahead
    from ctxedit.editing.request import Request
    from ctxedit.editing.session import Session
    from ctxedit.inspection.heatmaps import draw

    chosen = work.chosen_run(run, place.runs, screen, clip)
    config = arguments.with_round_trip(api.rebased(chosen, changes))
    reporter = teller(screen)
    request = Request.of_run(
        chosen, config, reporter.warn, targets=(target,), mask=scoring.mask, output=result.output,
        source_size=result.output_size == "source", audio=not result.no_audio, chroma=result.chroma,
        overwrite=overwrite.yes, heatmaps=heatmaps, offline=base.offline or dry.dry_run,
        metadata=not result.no_metadata, sources=arguments.sources(base),
    )  # fmt: skip
    needs, check = fetching.wanted(config), fetching.checks_model(config, targets=(target,))
    early = partial(check_ahead, request)
    if not fetching.settle(needs, screen, overwrite.yes, base.offline, dry.dry_run, check, early):
        return
    plan = work.checked(request, "edit", screen, dry.dry_run)
    if plan is None:
        return
    with Session(request, reporter) as session, resumable(chosen.folder):
        work.say_duration(session, plan, screen)
        done = session.edit(target)
        maps = draw(session, target) if heatmaps else None
        back = None if done.reused else session.round_trip()
    facts = {"run": chosen.folder, "seed": config.seed, "round_trip": None if back is None else back.facts()}
    _show(screen, done, maps, facts)


def _show(screen: Screen, done: EditResult, maps: HeatmapFiles | None, facts: dict[str, object]) -> None:
    from ctxedit.cli import work

    if done.reused:
        screen.say("the edit exists already; use -y to redo it")
    work.say_other_files(screen, done.files)
    files = {"video": done.files.video, "side_by_side": done.files.side_by_side, "sheet": done.files.sheet}
    if maps is not None:
        files |= {"heatmaps": maps.sheet, "heatmaps_video": maps.video}
        screen.say(f"heat maps: {maps.sheet}")
    screen.result(str(done.files.video), {**facts, "target": done.target, **files, "reused": done.reused})


def _understood(positional: list[str], option: str | None) -> tuple[Path | None, str]:
    """The clip, if one was named, and the target prompt."""
    texts = [*positional, *([option] if option is not None else [])]
    if not texts or len(texts) > 2:
        found = (
            "no target prompt"
            if not texts
            else f"{len(texts)} texts, but only one clip and one target are allowed"
        )
        raise ConfigError(found, 'describe the edited clip: ctxedit edit "a panda walking on the beach"')
    arguments.not_empty(texts[-1], "target")
    if len(texts) == 1:
        if Path(texts[0]).suffix and os.path.exists(texts[0]):  # unlike Path.exists, for texts of any length
            raise ConfigError(
                f"{texts[0]} is a clip, and there is no target prompt",
                f'describe the edited clip: ctxedit edit {texts[0]} "a panda walking on the beach"',
            )
        return None, texts[0]
    return arguments.existing(Path(texts[0]), texts[1:]), texts[1]
