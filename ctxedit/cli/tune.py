"""``ctxedit tune``: one-shot tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from ctxedit.cli import asked
from ctxedit.cli.failures import resumable
from ctxedit.cli.options import (
    Addons,
    Anyway,
    Base,
    Captioning,
    Clip,
    Dry,
    Judging,
    Place,
    Size,
    Span,
    Talk,
    Tuning,
)
from ctxedit.cli.output import Screen
from ctxedit.errors import ConfigError
from ctxedit.tables import DEFAULT_PRESET


@dataclass(frozen=True)
class Looking:
    """Edits sampled while tuning."""

    curve: Annotated[
        int | None,
        typer.Option(
            "--curve", min=1, metavar="N", help="Sample an edit every N steps and plot CLIP-text.",
            rich_help_panel="Inspection",
        ),
    ] = None  # fmt: skip
    target: Annotated[
        str | None,
        typer.Option(
            "--target", help="Target prompt of the edits that --curve samples.", rich_help_panel="Inspection"
        ),
    ] = None
    compare: Annotated[
        bool,
        typer.Option(
            "--compare",
            help="Tune a second time with the adapter toggled, and plot both curves.",
            rich_help_panel="Inspection",
        ),
    ] = False

    def check(self) -> None:
        """Raise ConfigError for options that mean something only together."""
        asked.not_empty(self.target, "target")
        if self.curve is None and (self.target is not None or self.compare):
            raise ConfigError("--target and --compare belong to --curve", "add --curve 20, or leave them out")
        if self.curve is not None and self.target is None:
            raise ConfigError("--curve needs a --target", "describe what the sampled edits should show")


def tune(
    clip: Clip,
    base: Base,
    addons: Addons,
    span: Span,
    size: Size,
    captioning: Captioning,
    judging: Judging,
    tuning: Tuning,
    place: Place,
    dry: Dry,
    talk: Talk,
    looking: Looking,
    agreed: Anyway,
) -> None:
    """Tune on one clip, for any number of edits, and print the run folder."""
    screen = Screen(talk.quiet, talk.json)
    config = asked.settings(base, screen, addons, span, size, captioning, judging, tuning)
    config = asked.fitted(config, asked.existing(clip), base, screen, span)
    looking.check()

    from ctxedit.cli import fetching, work
    from ctxedit.cli.progress import teller
    from ctxedit.editing.request import Request
    from ctxedit.editing.session import Session
    from ctxedit.inspection.curve import tune_with_curve

    request = Request(
        clip, config, base.preset or DEFAULT_PRESET, tuning.prompt, any_footage=agreed.yes,
        offline=base.offline or dry.dry_run, runs=place.runs, lavis_python=captioning.lavis_python,
        sources=asked.sources(base),
    )  # fmt: skip
    needs = fetching.wanted(config, tuning.prompt is None, scores=looking.curve is not None)
    check = fetching.checks_clip(clip, config)
    models = (config.model,)
    if not fetching.settle(needs, screen, agreed.yes, base.offline, dry.dry_run, check, models):
        return
    told = teller(screen)
    if not work.checked(request, "tune", screen, dry.dry_run):
        return
    with Session(request, told) as session:
        files, folder = {}, work.folder_of(session)
        with resumable(folder):
            if looking.curve is not None and looking.target is not None:
                drawn = tune_with_curve(session, looking.target, looking.curve, looking.compare)
                files = {"curve": drawn.picture, "curve_table": drawn.table}
                screen.say(f"curve: {drawn.picture}")
            else:
                session.tune()
        facts = {"prompt": session.prompt, "steps": config.tune.steps, "seed": config.seed}
        screen.result(str(folder), {"run": folder, **facts, **files})
