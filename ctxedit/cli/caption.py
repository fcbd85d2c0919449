"""``ctxedit caption``: what a clip shows."""

from __future__ import annotations

from ctxedit.cli import asked
from ctxedit.cli.failures import resumable
from ctxedit.cli.options import Agreed, Base, Captioning, Clip, Dry, Judging, Span, Talk
from ctxedit.cli.output import Screen


def caption(
    clip: Clip,
    base: Base,
    span: Span,
    captioning: Captioning,
    judging: Judging,
    dry: Dry,
    talk: Talk,
    agreed: Agreed,
) -> None:
    """Describe a clip in one sentence and print the caption."""
    screen = Screen(talk.quiet, talk.json)
    config = asked.settings(base, screen, span, captioning, judging)
    config = asked.fitted(config, asked.existing(clip), base, screen, span)

    from ctxedit import api
    from ctxedit.cli import fetching
    from ctxedit.cli.progress import teller
    from ctxedit.editing import captioning as stage

    told = teller(screen)
    needs = [one for one in fetching.wanted(config, captions=True) if one.what != "the model"]
    check = fetching.checks_clip(clip, config)
    if not fetching.settle(needs, screen, agreed.yes, base.offline, dry.dry_run, check):
        return
    looked = stage.plan(clip, config, base.offline or dry.dry_run, captioning.lavis_python)
    if dry.dry_run:
        screen.result(
            f"{clip}: {config.clip.frames} frames, captioner {config.captioner} by {looked['caption_by']}, "
            f"about {looked['peak_bytes'] / 2**30:.2f} GiB of memory",
            {"plan": looked},
        )
        return
    with resumable(None):
        text = api.caption(
            clip, config=config, lavis_python=captioning.lavis_python, offline=base.offline,
            reporter=told,
        )  # fmt: skip
    screen.result(text, {"clip": clip, "caption": text})
