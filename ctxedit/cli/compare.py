"""``ctxedit compare``: one labelled video, GIF or image of several edits."""

from __future__ import annotations

import dataclasses
import os
import shlex
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ctxedit import __version__
from ctxedit.cli import arguments
from ctxedit.cli.failures import resumable
from ctxedit.cli.options import (
    CaptionOptions,
    FrameOptions,
    MessageOptions,
    SamplingOptions,
    ScoringOptions,
    SettingOptions,
    SizeOptions,
    TuningOptions,
)
from ctxedit.cli.output import Screen, alone_with, finished_before
from ctxedit.cli.output_options import OverwriteOption, RunsOptions
from ctxedit.errors import ConfigError

if TYPE_CHECKING:
    from ctxedit.comparison import Part
    from ctxedit.editing.request import Request

Positional = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="EDIT...",
        help="Videos, images, folders of frames, run folders (their source and all edits). With --presets: "
        "CLIP TEXT.",
        show_default=False,
    ),
]
Presets = Annotated[
    str | None,
    typer.Option(
        "--presets", metavar="A,B,…", help="Edit CLIP with each of these presets, and compare the edits.",
        show_default=False,
    ),
]  # fmt: skip
Output = Annotated[
    Path,
    typer.Option("--output", "-o", help="Video or GIF (a grid that plays), or image (a row for each edit)."),
]
Labels = Annotated[
    list[str] | None,
    typer.Option(
        "--label", metavar="TEXT", show_default=False,
        help="Label of each edit, in order. Repeatable. [default: what differs between them]",
    ),
]  # fmt: skip
Columns = Annotated[int, typer.Option("--columns", min=1, help="Edits per row of the video.")]
NoMetadata = Annotated[
    bool, typer.Option("--no-metadata", help="Do not record in the file how the edits were made.")
]


def compare(
    base: SettingOptions,
    span: FrameOptions,
    size: SizeOptions,
    captioning: CaptionOptions,
    tuning: TuningOptions,
    sampling: SamplingOptions,
    scoring: ScoringOptions,
    place: RunsOptions,
    overwrite: OverwriteOption,
    messages: MessageOptions,
    positional: Positional = None,
    presets: Presets = None,
    output: Output = Path("comparison.mp4"),
    label: Labels = None,
    columns: Columns = 4,
    no_metadata: NoMetadata = False,
) -> None:
    """Write one labelled video, GIF or image of several edits and print its path.

    Settings apply to the edits that --presets makes, each in its own run folder.
    """
    screen = Screen(messages.quiet, messages.json)
    if not positional:
        raise ConfigError("nothing to compare", "ctxedit compare a.mp4 b.mp4 -o both.mp4")
    groups = (span, size, captioning, tuning, sampling, scoring)
    if presets is None:
        _no_settings(base, *groups)

    from ctxedit import comparison
    from ctxedit.editing.paths import Input, Paths
    from ctxedit.finished import note

    paths = _existing(positional, presets)
    inputs = tuple(Input(path, "clip", True) for path in paths)
    Paths(inputs, (("output", output),)).check()
    parts = comparison.gather(paths, label or (), span.frames or None) if presets is None else None
    requests = []
    if presets is not None:
        options = (captioning, tuning, scoring, place, overwrite)
        names = list(arguments.split_names(presets))
        requests = _requests(positional, names, base, groups, options, screen, label or [])
    key = _key(parts, requests, (label, columns, no_metadata))
    with alone_with(output, screen):
        facts = finished_before(output, key, overwrite.yes, screen)
        if facts is None:
            _check_output(output, overwrite.yes)
            if parts is None:
                parts = _edited(requests, label or ["source", *names], screen)
            facts = {"edits": [{"label": part.label, "video": str(part.path)} for part in parts]}
            with resumable(None):
                text = None if no_metadata else comparison.about(parts, __version__)
                comparison.compose(
                    parts, output, columns=columns, overwrite=overwrite.yes, about=text, warn=screen.warn,
                    complete=partial(note, output, key, facts=facts),
                )  # fmt: skip
    screen.result(str(output), {"output": output, **facts})


def _existing(positional: list[str], presets: str | None) -> list[Path]:
    """The files and folders to compare, or the clip to edit with presets.

    Raises:
        ConfigError: a text where a file is due.
        InputError: one of them does not exist.
    """
    first, *others = positional
    for text in others if presets is None else ():
        if not Path(text).suffix and not os.path.lexists(text) and os.path.isfile(first):
            call = shlex.join(["ctxedit", "compare", "--presets", "contextdiff,fatezero", first, text])
            raise ConfigError(f"{text!r} is not a video, an image or a folder", f"to compare presets: {call}")
    paths = [Path(word) for word in (positional if presets is None else [first])]
    for path in paths:
        arguments.existing(path)
    return paths


def _key(parts: list[Part] | None, requests: list[Request], more: tuple[object, ...]) -> str:
    """What the comparison depends on: the files' contents, or all that determines the edits."""
    from ctxedit.contents import fingerprint
    from ctxedit.editing.keys import Keys
    from ctxedit.runs import key_of

    if parts is not None:
        shown: list[Any] = [(part.label, part.span, fingerprint(part.path)) for part in parts]
        return key_of("comparison", shown, more, __version__)
    edits = []
    for request, keys in ((request, Keys(request)) for request in requests):
        prompt = keys.caption() if request.prompt is None else request.prompt
        edits.append((request.preset, keys.edit(prompt, request.targets[0])))
    return key_of("comparison of presets", edits, more, __version__)


def _no_settings(base: SettingOptions, span: FrameOptions, *groups: object) -> None:
    """Raise ConfigError for settings that have no effect without --presets."""
    given = [
        f.name
        for group in (base, *groups, dataclasses.replace(span, frames=None))
        for f in dataclasses.fields(group)  # type: ignore[arg-type]
        if getattr(group, f.name) not in (None, False) and f.name not in ("preset", "offline")
    ]
    if given:
        raise ConfigError(
            f"--{given[0].replace('_', '-')} needs --presets", "leave it out: nothing is edited here"
        )


def _check_output(output: Path, overwrite: bool) -> None:
    from ctxedit.media.temporary import check_writable
    from ctxedit.media.write import IMAGE_SUFFIXES, check_output

    if output.suffix.lower() in IMAGE_SUFFIXES:
        check_writable(output, overwrite)
    else:
        check_output(output, None, overwrite)


def _target(positional: list[str], names: list[str]) -> str:
    if len(positional) != 2:
        raise ConfigError(
            "--presets takes one clip and one target",
            'ctxedit compare --presets contextdiff,fatezero clip.mp4 "a panda walking on the beach"',
        )
    if len(set(names)) != len(names) or not names:
        raise ConfigError(
            "--presets names no preset, or the same one twice", "e.g. --presets contextdiff,fatezero"
        )
    arguments.not_empty(positional[1], "target")
    return positional[1]


def _requests(
    positional: list[str],
    names: list[str],
    base: SettingOptions,
    groups: tuple[object, ...],
    options: tuple[CaptionOptions, TuningOptions, ScoringOptions, RunsOptions, OverwriteOption],
    screen: Screen,
    labels: list[str],
) -> list[Request]:
    """A checked request for each preset; no weights are loaded."""
    from ctxedit.cli import work
    from ctxedit.editing.request import Request

    clip, target = Path(positional[0]), _target(positional, names)
    captioning, tuning, scoring, place, overwrite = options
    if labels and len(labels) != 1 + len(names):
        raise ConfigError(
            f"--label: {len(labels)} for {1 + len(names)} clips, the source first", "give one to each"
        )
    requests = [
        Request(
            clip, arguments.fitted(arguments.settings(one, screen, *groups), clip, one, screen, *groups),
            one.preset or "", tuning.prompt, (target,),
            scoring.mask, overwrite=overwrite.yes, any_footage=overwrite.yes, offline=base.offline,
            runs=place.runs,
            lavis_python=captioning.lavis_python, sources=arguments.sources(one),
        )
        for one in (dataclasses.replace(base, preset=name) for name in names)
    ]  # fmt: skip
    for request in requests:
        work.checked(request, "edit", screen, False)
    return requests


def _edited(requests: list[Request], labels: list[str], screen: Screen) -> list[Part]:
    """The source and each request's edit."""
    from ctxedit import comparison
    from ctxedit.cli import work
    from ctxedit.cli.progress import teller
    from ctxedit.editing.session import Session

    parts = [comparison.Part(requests[0].clip, labels[0], {}, requests[0].config.clip)]
    for text, request in zip(labels[1:], requests, strict=True):
        screen.say(f"preset {request.preset}")
        with Session(request, teller(screen)) as session, resumable(work.folder_of(session)):
            video = session.edit(request.targets[0]).files.video
        (part,) = comparison.gather([video])
        parts.append(dataclasses.replace(part, label=text))
    return comparison.equally_long(parts)
