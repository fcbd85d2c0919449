"""``ctxedit tune``: one-shot tuning."""

from __future__ import annotations

from ctxedit.cli import asked
from ctxedit.cli.failures import resumable
from ctxedit.cli.options import Base, Captioning, Clip, Dry, Place, Size, Span, Talk, Tuning
from ctxedit.cli.output import Screen


def tune(
    clip: Clip,
    base: Base,
    span: Span,
    size: Size,
    captioning: Captioning,
    tuning: Tuning,
    place: Place,
    dry: Dry,
    talk: Talk,
) -> None:
    """Tune on one clip, for any number of edits; prints the run folder."""
    screen = Screen(talk.quiet, talk.json)
    config = asked.settings(base, screen, span, size, captioning, tuning)
    asked.existing(clip)

    from ctxedit.cli import work
    from ctxedit.cli.progress import teller
    from ctxedit.pipeline import Options, Session

    options = Options(
        prompt=tuning.prompt,
        offline=base.offline or dry.dry_run,
        runs=place.runs,
        lavis_python=captioning.lavis_python,
    )
    with Session(clip, config, base.preset or asked.DEFAULT_PRESET, options, teller(screen)) as session:
        if not work.checked(session, [], "tune", screen, dry.dry_run):
            return
        with resumable(session.run.folder):
            run = session.tune()
        screen.result(
            str(run.folder),
            {"run": run.folder, "prompt": session.prompt, "steps": config.tune.steps, "seed": config.seed},
        )
