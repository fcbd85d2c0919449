"""``ctxedit caption``: what a clip shows."""

from __future__ import annotations

from ctxedit.cli import arguments
from ctxedit.cli.failures import resumable
from ctxedit.cli.options import (
    CaptionOptions,
    Clip,
    ClipModelOptions,
    FrameOptions,
    MessageOptions,
    SettingOptions,
)
from ctxedit.cli.output import Screen
from ctxedit.cli.output_options import DownloadOption, DryRunOption
from ctxedit.errors import counted


def caption(
    clip: Clip,
    base: SettingOptions,
    span: FrameOptions,
    captioning: CaptionOptions,
    judging: ClipModelOptions,
    dry: DryRunOption,
    messages: MessageOptions,
    agreed: DownloadOption,
) -> None:
    """Describe a clip in one sentence and print the caption."""
    screen = Screen(messages.quiet, messages.json)
    config = arguments.settings(base, screen, span, captioning, judging)
    config = arguments.fitted(config, arguments.existing(clip), base, screen, span)

    from ctxedit import api
    from ctxedit.cli import fetching
    from ctxedit.cli.progress import teller
    from ctxedit.editing import captioning as stage

    reporter = teller(screen)
    needs = [one for one in fetching.wanted(config, captions=True) if one.what != "the model"]
    check = fetching.checks_clip(clip, config)
    if not fetching.settle(needs, screen, agreed.yes, base.offline, dry.dry_run, check):
        return
    plan = stage.plan(clip, config, base.offline or dry.dry_run, captioning.lavis_python)
    if dry.dry_run:
        screen.result(
            f"{clip}: {counted(config.clip.frames, 'frame')}, captioner {config.captioner} "
            f"by {plan['caption_by']}, about {plan['peak_bytes'] / 2**30:.2f} GiB of memory",
            {"plan": plan},
        )
        return
    with resumable(None):
        text = api.caption(
            clip, config=config, lavis_python=captioning.lavis_python, offline=base.offline,
            reporter=reporter,
        )  # fmt: skip
    screen.result(text, {"clip": clip, "caption": text})
