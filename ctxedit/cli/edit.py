"""``ctxedit edit``: edit a tuned clip."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ctxedit.cli import asked
from ctxedit.cli.failures import resumable
from ctxedit.cli.options import (
    Base,
    Dry,
    Overwrite,
    Place,
    Result,
    Sampling,
    Scoring,
    Talk,
)
from ctxedit.cli.output import Screen

Target = Annotated[str, typer.Option("--target", help="What the clip shall show.", show_default=False)]
RunFolder = Annotated[
    Path | None, typer.Option("--run", metavar="DIR", help="A run folder. (the newest)", show_default=False)
]

Heatmaps = Annotated[
    bool,
    typer.Option(
        "--heatmaps", help="Also show where each word of the target looks, with and without the adapter."
    ),
]


def edit(
    target: Target,
    base: Base,
    sampling: Sampling,
    scoring: Scoring,
    result: Result,
    place: Place,
    overwrite: Overwrite,
    dry: Dry,
    talk: Talk,
    run: RunFolder = None,
    heatmaps: Heatmaps = False,
) -> None:
    """Edit the clip of a run; prints the edited file's path. The run's own settings are the base."""
    screen = Screen(talk.quiet, talk.json)
    asked.not_empty(target, "target")
    changes = asked.for_run(base, screen, sampling, scoring)

    from ctxedit import api, looking
    from ctxedit.cli import work
    from ctxedit.cli.progress import teller
    from ctxedit.pipeline import Options, Session

    chosen = work.chosen_run(run, place.runs, screen)
    config = api.rebased(chosen, changes)
    options = Options(
        None, scoring.mask, result.output, result.output_size == "source", not result.no_audio,
        overwrite.yes, base.offline or dry.dry_run, chosen.folder.parent, None, chroma=result.chroma,
    )  # fmt: skip
    with Session.reopen(chosen, config, options, teller(screen)) as session:
        if not work.checked(session, [target], "edit", screen, dry.dry_run):
            return
        with resumable(chosen.folder):
            done = session.edit(target)
            maps = looking.heatmaps(session, target) if heatmaps else None
    if done.reused:
        screen.say("this edit was done already; -y makes it anew")
    files = {"video": done.files.video, "side_by_side": done.files.side_by_side, "sheet": done.files.sheet}
    if maps is not None:
        files |= {"heatmaps": maps.sheet, "heatmaps_video": maps.video}
        screen.say(f"heat maps: {maps.sheet}")
    screen.result(
        str(done.files.video),
        {"run": chosen.folder, "target": target, **files, "reused": done.reused, "seed": config.seed},
    )
