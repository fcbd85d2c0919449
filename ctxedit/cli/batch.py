"""``ctxedit batch``: one preset on many clips, on this machine or on several."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ctxedit.cli import arguments
from ctxedit.cli.failures import Failure, resumable, work_begins
from ctxedit.cli.options import (
    CaptionOptions,
    ClipModelOptions,
    FrameOptions,
    MessageOptions,
    SamplingOptions,
    SettingOptions,
    SizeOptions,
    TargetOption,
    TuningOptions,
)
from ctxedit.cli.output import Screen, pairs, print_failure
from ctxedit.cli.output_options import DryRunOption, OverwriteOption
from ctxedit.cli.where import ExecutorOptions, executor_of
from ctxedit.config import ClipConfig, Config
from ctxedit.tables import DEFAULT_PRESET

if TYPE_CHECKING:
    from ctxedit.bench.listing import Clip
    from ctxedit.bench.preview import Preview
    from ctxedit.bench.subject import Bench
    from ctxedit.storage import Store

List = Annotated[
    str,
    typer.Argument(
        metavar="LIST", show_default=False,
        help="List of clips and targets (.toml, .csv, .jsonl; also by URL), or a folder of clips.",
    ),
]  # fmt: skip
Texts = Annotated[
    list[str] | None,
    typer.Argument(metavar="TEXT...", help="Target prompt for every clip.", show_default=False),
]
Out = Annotated[
    str,
    typer.Option(
        "--out", "-o", metavar="DIR", show_default=False,
        help="Output folder, or an fsspec URL such as s3://bucket/folder. [default: batch]",
    ),
]  # fmt: skip
Limit = Annotated[
    int | None, typer.Option("--limit", min=1, help="Use only the first N clips.", show_default=False)
]


def batch(
    clips: List,
    base: SettingOptions,
    span: FrameOptions,
    size: SizeOptions,
    captioning: CaptionOptions,
    tuning: TuningOptions,
    sampling: SamplingOptions,
    judging: ClipModelOptions,
    where: ExecutorOptions,
    overwrite: OverwriteOption,
    dry: DryRunOption,
    messages: MessageOptions,
    text: Texts = None,
    target: TargetOption = None,
    out: Out = "batch",
    limit: Limit = None,
) -> None:
    """Edit every clip of a list for each of its targets and write a report.

    Writes the edits into --out/edits, and report.json, report.md and index.html beside them. With a URL for
    --out the run folders stay in the user's cache; LIST and its files may be URLs, too.
    An edit that fails is listed and the rest go on; the exit code is then 1.
    Run the same command again to resume or retry.

    CSV: columns path and target; optional prompt, kind, name, mask, control, ideal.
    JSON Lines: an object with path and target (or targets) on each line.
    Clips without a prompt are captioned.
    """
    screen = Screen(messages.quiet, messages.json)
    targets = [*(text or []), *(target or [])]
    for one, what in (*((one, "target") for one in targets), (tuning.prompt, "prompt")):
        arguments.not_empty(one, what)
    config = arguments.settings(base, screen, span, size, captioning, tuning, sampling, judging)

    from ctxedit.batch import report
    from ctxedit.bench import preview
    from ctxedit.bench.listing import read_list
    from ctxedit.bench.subject import Bench
    from ctxedit.cli import fetching

    folder, store = _place(out)
    place, url = _list(clips, screen)
    listed = tuple(
        dataclasses.replace(
            clip, prompt=clip.prompt or tuning.prompt or "", span=_span(clip, config, base, span)
        )
        for clip in read_list(place, batch=True, targets=targets, url=url)[:limit]
    )
    methods = preview.methods([base.preset or DEFAULT_PRESET], lambda name, point: config)
    captions = not all(clip.prompt for clip in listed)
    sources = (*([] if place.is_dir() else [place]), *arguments.sources(base))
    offline = base.offline or dry.dry_run
    job = Bench(folder, listed, methods, overwrite.yes, offline, sources, results=report.EDITS, store=store)
    needs = fetching.wanted(config, captions=captions, scores=True)
    early = partial(preview.check_ahead, job, screen.warn)
    if not fetching.settle(needs, screen, overwrite.yes, base.offline, dry.dry_run, early=early):
        return
    work_begins()
    _work(job, screen, where, dry.dry_run)


def _work(job: Bench, screen: Screen, where: ExecutorOptions, dry_run: bool) -> None:
    """Print the plan of a dry run; otherwise edit all clips and report."""
    from ctxedit.batch import report
    from ctxedit.bench import preview, runner
    from ctxedit.cli.bench_progress import watcher

    plan = preview.make(job)
    if dry_run:
        with executor_of(where, plan.peak_bytes) as executor:
            planned = _planned(job, plan, executor.describe())
        screen.result(planned, {"plan": dataclasses.asdict(plan)})
        return
    for clip, why in plan.failing.items():
        screen.warn(f"{clip}: {why}")
    at_work = watcher(screen, [job.methods[0].label])
    place = job.out if job.store is None else job.store.url
    with executor_of(where, plan.peak_bytes) as executor, resumable(place), at_work as watching:
        rows = runner.run(job, watching, executor, plan.refused)
        whole = report.write(job, rows)
    _show(screen, job, whole)


def _list(clips: str, screen: Screen) -> tuple[Path, str | None]:
    """The list, fetched where it is a URL, and that URL; says which files of a folder are left out."""
    from ctxedit.bench.formats import results_in
    from ctxedit.storage import fetch, is_url

    if is_url(clips):
        return fetch(clips), clips
    place = arguments.existing(Path(clips))
    if place.is_dir() and (results := results_in(place)):
        screen.say(f"left out, made by ctxedit: {', '.join(one.name for one in results)}")
    return place, None


def _place(out: str) -> tuple[Path, Store | None]:
    """The local output folder, and the store that results go to if ``--out`` is a URL."""
    from ctxedit.storage import Store, is_url, work_folder

    return (work_folder(out), Store(out)) if is_url(out) else (Path(out), None)


def _span(clip: Clip, config: Config, base: SettingOptions, span: FrameOptions) -> ClipConfig | None:
    """The frames to use of a clip with fewer than the settings ask for; None if it has enough."""
    from ctxedit.errors import InputError

    try:
        fitted = arguments.fitted(config, clip.path, base, Screen(quiet=True), span).clip
    except InputError:  # a row of the report says why
        return None
    return None if fitted == config.clip else fitted


def _planned(job: Bench, plan: Preview, where: str) -> str:
    """The plan as text."""
    from ctxedit.cli.work import gib

    rows = [
        ("clips", str(len(job.clips))),
        ("edits", f"{plan.edits}, {plan.done} of them done"),
        ("passes", f"{sum(plan.evaluations.values())} of the network remaining"),
        ("memory", f"{gib(plan.peak_bytes)} at most for each worker (estimate)"),
        ("where", where),
        *[("fails", f"{clip}: {why}") for clip, why in plan.failing.items()],
    ]
    return pairs(rows)


def _show(screen: Screen, job: Bench, whole: dict[str, Any]) -> None:
    """Print the edits' paths on stdout and failures on stderr; exits with code 1 if any edit failed."""
    from ctxedit.batch import report

    def at(name: str) -> str:
        return str(job.out / name) if job.store is None else job.store.at(name)

    names, failed = dataclasses.asdict(report.files_in(Path())), whole["failed"]
    files = {key: at(str(name)) for key, name in names.items()}
    for one in failed:
        screen.warn(f"{one['clip']}, “{one['target']}”: {one['error']}")
    edits = [{**one, "video": at(one["video"]), "run": str(job.out / one["run"])} for one in whole["edits"]]
    shown = {"preset": whole["preset"], "edits": edits, "failed": failed}
    paths = {"report": files["json"], "markdown": files["markdown"], "page": files["page"]}
    if edits or screen.json:
        screen.result("\n".join(one["video"] for one in edits), {**shown, **paths})
    screen.say(f"report: {files['markdown']}; videos side by side: {files['page']}")
    if failed:
        total = len(edits) + len(failed)
        hint = f"see {files['markdown']}; run the same command again to retry"
        # The JSON object has already been printed.
        print_failure(Failure(f"{len(failed)} of {total} edits failed", hint, 1), False)
        raise typer.Exit(1)
