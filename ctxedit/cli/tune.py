"""``ctxedit tune``: one-shot tuning."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from ctxedit.cli import arguments
from ctxedit.cli.failures import resumable
from ctxedit.cli.options import (
    AddonOptions,
    CaptionOptions,
    Clip,
    ClipModelOptions,
    FrameOptions,
    MessageOptions,
    SettingOptions,
    SizeOptions,
    TuningOptions,
)
from ctxedit.cli.output import Screen
from ctxedit.cli.output_options import DownloadOrTuneOption, DryRunOption, RunsOptions
from ctxedit.errors import ConfigError
from ctxedit.tables import DEFAULT_PRESET

if TYPE_CHECKING:
    from ctxedit.editing.session import Session


@dataclass(frozen=True)
class CurveOptions:
    """Edits sampled while tuning."""

    panel: ClassVar = "Inspection"
    curve: Annotated[
        int | None,
        typer.Option(
            "--curve", min=1, metavar="N", help="Sample an edit every N steps and plot CLIP-text.",
        ),
    ] = None  # fmt: skip
    target: Annotated[
        str | None,
        typer.Option("--target", metavar="TEXT", help="Target prompt of the edits that --curve samples."),
    ] = None
    compare: Annotated[
        bool,
        typer.Option(
            "--compare",
            help="Tune a second time without the adapter (or with it, if it is off), and plot both curves.",
        ),
    ] = False

    def check(self) -> None:
        """Raise ConfigError for options that are only valid together."""
        arguments.not_empty(self.target, "target")
        if self.curve is None and (self.target is not None or self.compare):
            raise ConfigError("--target and --compare need --curve", "add --curve 20, or leave them out")
        if self.curve is not None and self.target is None:
            raise ConfigError("--curve needs a --target", "describe what the sampled edits should show")


def tune(
    clip: Clip,
    base: SettingOptions,
    addons: AddonOptions,
    span: FrameOptions,
    size: SizeOptions,
    captioning: CaptionOptions,
    judging: ClipModelOptions,
    tuning: TuningOptions,
    place: RunsOptions,
    dry: DryRunOption,
    messages: MessageOptions,
    curve_options: CurveOptions,
    agreed: DownloadOrTuneOption,
) -> None:
    """Tune the model on one clip, once for any number of edits, and print the run folder."""
    screen = Screen(messages.quiet, messages.json)
    config = arguments.settings(base, screen, addons, span, size, captioning, judging, tuning)
    config = arguments.fitted(config, arguments.existing(clip), base, screen, span)
    curve_options.check()

    from ctxedit.cli import fetching, work
    from ctxedit.cli.progress import teller
    from ctxedit.editing.checks import check_ahead
    from ctxedit.editing.request import Request
    from ctxedit.editing.session import Session
    from ctxedit.inspection.curve import with_samples

    targets = () if curve_options.target is None else (curve_options.target,)  # checked before the tuning
    request = Request(
        clip, config, base.preset or DEFAULT_PRESET, tuning.prompt, targets, any_footage=agreed.yes,
        offline=base.offline or dry.dry_run, runs=place.runs, lavis_python=captioning.lavis_python,
        sources=arguments.sources(base),
    )  # fmt: skip
    needs = fetching.wanted(config, tuning.prompt is None, scores=curve_options.curve is not None)
    check, early = fetching.checks_clip(clip, config, tuning.prompt, targets), partial(check_ahead, request)
    if not fetching.settle(needs, screen, agreed.yes, base.offline, dry.dry_run, check, early):
        return
    reporter = teller(screen)
    complete = partial(
        with_samples, request=request, every=curve_options.curve, compare=curve_options.compare
    )
    plan = work.checked(request, "tune", screen, dry.dry_run, complete)
    if plan is None:
        return
    with Session(request, reporter) as session:
        files, folder = {}, work.folder_of(session)
        with resumable(folder):
            work.say_duration(session, plan, screen)
            if curve_options.curve is not None:
                files = _drawn(session, curve_options, screen)
            else:
                if session.run.done(*session.key("tune")):
                    screen.say("the clip is tuned already, with these settings")
                session.tune()
        screen.say(f'next: ctxedit edit "TEXT" --run {shlex.quote(str(folder))}')
        facts = {"prompt": session.prompt, "steps": config.tune.steps, "seed": config.seed}
        screen.result(str(folder), {"run": folder, **facts, **files})


def _drawn(session: Session, options: CurveOptions, screen: Screen) -> dict[str, Path]:
    """Tune while edits are sampled; the curve's files."""
    from ctxedit.inspection.curve import tune_with_curve

    assert options.curve is not None and options.target is not None  # checked
    drawn = tune_with_curve(session, options.target, options.curve, options.compare)
    screen.say(f"curve: {drawn.picture}")
    return {"curve": drawn.picture, "curve_table": drawn.table}
