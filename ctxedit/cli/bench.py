"""``ctxedit bench``: presets side by side on a list of clips."""

from __future__ import annotations

import copy
import dataclasses
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from ctxedit import config as configuration
from ctxedit.cli import arguments
from ctxedit.cli.bench_speed import speed
from ctxedit.cli.bench_study import answers, study
from ctxedit.cli.failures import resumable, work_begins
from ctxedit.cli.options import MessageOptions, SettingOptions
from ctxedit.cli.output import Screen, columns, debugging, pairs, print_table
from ctxedit.cli.output_options import DryRunOption, OverwriteOption
from ctxedit.cli.spread import help_unless_called, spread
from ctxedit.cli.where import ExecutorOptions, executor_of
from ctxedit.errors import ConfigError, CtxeditError, counted
from ctxedit.tables import merge_into, preset_files

if TYPE_CHECKING:
    from ctxedit.bench.listing import Clip
    from ctxedit.bench.preview import Preview
    from ctxedit.bench.report import ComparisonFiles
    from ctxedit.bench.subject import Bench, Method
    from ctxedit.editing.checks import Ahead

RUN = "run"


class RunUnlessNamed(TyperGroup):
    """A command group whose default command is ``run``: ``ctxedit bench LIST --presets a,b``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands:  # --help too: most people look for run's options
            args = [RUN, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=RunUnlessNamed,
    help="Compare presets on a list of clips: `ctxedit bench [LIST.toml] --presets a,b,c`.",
)
app.callback(invoke_without_command=True)(help_unless_called)

if TYPE_CHECKING:
    Settings = SettingOptions
else:
    #: Settings for all presets alike: the shared options without --preset.
    _HINTS = typing.get_type_hints(SettingOptions, include_extras=True)
    Settings = dataclasses.make_dataclass(
        "Settings",
        [
            (f.name, _HINTS[f.name], dataclasses.field(default=f.default))
            for f in dataclasses.fields(SettingOptions)
            if f.name != "preset"
        ],
        namespace={"panel": SettingOptions.panel},
        frozen=True,
    )

List = Annotated[
    Path | None,
    typer.Argument(
        metavar="LIST",
        help="List of clips and targets. [default: 46 pairs of the built-in world, see --world]",
        show_default=False,
    ),
]
Presets = Annotated[
    str,
    typer.Option(
        "--presets", metavar="A,B,C", help="Presets to compare: names or TOML files.", show_default=False
    ),
]
Out = Annotated[
    Path,
    typer.Option("--out", "-o", metavar="DIR", help="Output folder. [default: bench]", show_default=False),
]
Limit = Annotated[
    int | None, typer.Option("--limit", min=1, help="Use only the first N clips.", show_default=False)
]
Compare = Annotated[
    list[str] | None,
    typer.Option(
        "--compare", metavar="A:B", help="Also report the difference B − A. Repeatable.", show_default=False
    ),
]
Sweep = Annotated[
    list[str] | None,
    typer.Option(
        "--sweep", metavar="KEY=A,B", show_default=False,
        help="Run every preset with each of these values. Repeatable.",
    ),
]  # fmt: skip
More = Annotated[
    str | None,
    typer.Option(
        "--metrics",
        metavar="A,B,C",
        help="Compute these metrics too; `ctxedit eval --metrics help` lists them.",
        show_default=False,
    ),
]
Drawn = Annotated[
    int | None,
    typer.Option(
        "--drawn",
        min=0,
        metavar="SEED",
        help="Draw another default list with this seed, for choosing settings.",
        show_default=False,
    ),
]

Externals = Annotated[
    list[str] | None,
    typer.Option(
        "--external", metavar="NAME=FOLDER", show_default=False,
        help="Also measure another method's videos of the same list: FOLDER/CLIP/0.mp4 is the edit for "
        "CLIP's first target. Repeatable.",
    ),
]  # fmt: skip

World = Annotated[
    Literal["easy", "compositions"],
    typer.Option(
        "--world",
        help="Kind of default list: one object a clip, or several with counts and relations. [default: easy]",
        show_default=False,
    ),
]


@app.command(
    RUN,
    epilog="Other commands: `ctxedit bench speed`, `study`, `answers`; see `ctxedit bench study --help`.",
)
@spread
def run(
    presets: Presets,
    settings: Settings,
    overwrite: OverwriteOption,
    dry: DryRunOption,
    messages: MessageOptions,
    where: ExecutorOptions,
    clips: List = None,
    out: Out = Path("bench"),
    limit: Limit = None,
    compare: Compare = None,
    sweep: Sweep = None,
    drawn: Drawn = None,
    metrics: More = None,
    world: World = "easy",
    external: Externals = None,
) -> None:
    """Run every preset on every clip and target of a list and print a table. The word `run` may be omitted.

    Writes results.jsonl, table.json, table.csv, table.md, table.tex, costs.md and index.html into --out.
    Run an interrupted comparison again to resume it. A clip that fails is reported; the others continue.
    Settings given here apply to every preset.
    """
    screen = Screen(messages.quiet, messages.json)
    names = arguments.split_names(presets)
    arguments.warn_of_variables(screen)
    methods = _methods(names, settings, sweep or [])

    from ctxedit.bench import external as externally
    from ctxedit.bench import preview
    from ctxedit.bench.subject import Bench
    from ctxedit.cli import fetching

    sources = (*filter(None, (clips, settings.config)), *(p for name in names for p in preset_files(name)))
    more = _more(metrics)
    externals = tuple(externally.parse(one) for one in external or [])
    known = [*(one.label for one in externals), *(method.label for method in methods)]
    preview.check_labels(known)
    pairs = _pairs(compare or [], known)
    needs = {one: None for method in methods for one in fetching.wanted(method.config, scores=True)}
    offline, yes = settings.offline or dry.dry_run, overwrite.yes
    bench = Bench(out, (), methods, yes, offline, sources, more, externals=externals)
    # The default list is drawn once the work begins: before that, one of its clips stands for all.
    first = partial(_listed, clips, out, limit if clips else 1, drawn, world, True)
    early = partial(_check_ahead, bench, first, screen)
    read = partial(_own_list, clips, drawn, world)
    if not fetching.settle(list(needs), screen, yes, settings.offline, dry.dry_run, read, early):
        return
    work_begins()
    with _listed(clips, out, limit, drawn, world, dry.dry_run) as listed:
        plan = preview.make(bench := dataclasses.replace(bench, clips=listed))
    if dry.dry_run:
        with executor_of(where, plan.peak_bytes) as executor:
            planned = _planned(bench, plan, executor.describe())
        screen.result(planned, {"plan": plan.table()})
        return
    _work(bench, plan, pairs, screen, where)


def _more(metrics: str | None) -> tuple[str, ...]:
    """The metrics that are computed besides the usual ones; raises ConfigError for none or an unknown one."""
    from ctxedit.bench.figures import columns

    more = () if metrics is None else arguments.split_names(metrics)
    if metrics is not None and not more:
        raise ConfigError("no metric is named", "`ctxedit eval --metrics help` lists them")
    columns(more)
    return more


def _check_ahead(
    bench: Bench,
    listing: Callable[[], AbstractContextManager[tuple[Clip, ...]]],
    screen: Screen,
    ahead: Ahead,
) -> None:
    """Check the clips of a listing before weights are fetched for them."""
    from ctxedit.bench import preview

    with listing() as clips:
        preview.check_ahead(dataclasses.replace(bench, clips=clips), screen.warn, ahead)


def _methods(names: Sequence[str], settings: Settings, sweep: list[str]) -> tuple[Method, ...]:
    """Every preset at every point of the sweep, with the settings given for all of them."""
    flags = arguments.table(settings)
    for name in names:
        configuration.load(name, settings.config, flags)  # before torch is imported

    from ctxedit.bench import preview
    from ctxedit.bench.sweep import parse

    def load(name: str, point: Mapping[str, Any]) -> configuration.Config:
        table = copy.deepcopy(flags)
        merge_into(table, point)
        return configuration.load(name, settings.config, table)

    return preview.methods(names, load, parse(sweep))


def _work(
    bench: Bench, plan: Preview, pairs: Sequence[tuple[str, str]], screen: Screen, where: ExecutorOptions
) -> None:
    """Run the plan, write the tables and the page, and print the table."""
    from ctxedit.bench import preview, report, runner
    from ctxedit.cli.bench_progress import watcher
    from ctxedit.models.quiet import hush

    for clip, why in plan.failing.items():
        screen.warn(f"{clip}: {why}")
    if plan.evaluations and plan.total_seconds is None and where.workers in (None, 1) and not where.ray:
        if not debugging():
            hush()
        preview.measure(bench, plan)
    labels = [method.label for method in bench.methods]
    at_work = watcher(screen, labels, plan.total_seconds)
    with executor_of(where, plan.peak_bytes) as executor, resumable(bench.out), at_work as watching:
        rows = runner.run(bench, watching, executor, plan.refused)
    whole = report.write(bench, rows, pairs)
    _show(screen, whole, report.files_in(bench.out))
    if len(whole["failed"]) == plan.edits:
        raise CtxeditError("every edit failed", f"see {report.files_in(bench.out).table_markdown}")


def _pairs(compare: list[str], known: Sequence[str]) -> list[tuple[str, str]]:
    pairs = []
    for text in compare:
        before, colon, after = (part.strip() for part in text.partition(":"))
        if not (before and colon and after):
            raise ConfigError(f"--compare {text}", "it takes two presets: --compare ddim:contextdiff")
        for name in (before, after):
            if name not in known:
                raise ConfigError(
                    f"--compare names {name!r}, which is not one of the presets",
                    f"the presets compared are {', '.join(known)}",
                )
        pairs.append((before, after))
    return pairs


@contextmanager
def _listed(
    clips: Path | None, out: Path, limit: int | None, seed: int | None, world: str, dry_run: bool
) -> Iterator[tuple[Clip, ...]]:
    """The clips of the list, or of the default one, which a dry run draws to a temporary folder."""
    from ctxedit.bench import drawn
    from ctxedit.bench.listing import read_list

    if (own := _own_list(clips, seed, world)) is not None:
        yield own[:limit]
        return
    seed = drawn.SEED if seed is None else seed
    name = "clips" if world == drawn.EASY else world
    place = out / (name if seed == drawn.SEED else f"{name}-seed{seed}")
    with TemporaryDirectory() as temporary:
        if dry_run and not drawn.is_drawn(place, limit):
            place = Path(temporary) / "clips"
        yield read_list(drawn.default_list(place, limit, seed, world))


def _own_list(clips: Path | None, seed: int | None, world: str) -> tuple[Clip, ...] | None:
    """The clips of the user's list; None without one."""
    from ctxedit.bench import drawn
    from ctxedit.bench.listing import read_list

    if clips is None:
        return None
    if seed is not None:
        raise ConfigError("--drawn cannot be used with a list of your own", "leave one of them out")
    if world != drawn.EASY:
        raise ConfigError("--world cannot be used with a list of your own", "leave one of them out")
    return read_list(arguments.existing(clips))


def _planned(bench: Bench, plan: Preview, where: str) -> str:
    """The plan as text."""
    from ctxedit.cli.work import duration, gib

    seconds, total = plan.seconds, plan.total_seconds
    targets = sum(len(clip.targets) for clip in bench.clips)
    facts = [
        ("clips", f"{counted(len(bench.clips), 'clip')} with {counted(targets, 'target')}"),
        ("edits", f"{plan.edits}, {plan.done} of them done"),
        ("memory", f"{gib(plan.peak_bytes)} at most for each worker (estimate)"),
        ("where", where),
        ("time", f"about {duration(total)} with one worker (estimate)" if total else _no_time(plan)),
    ]
    facts += [("fails", f"{clip}: {why}") for clip, why in plan.failing.items()]
    rows = [("preset", "network passes remaining", "time (estimate)")]
    for method in bench.methods:
        about = seconds.get(method.label)
        passes = str(plan.evaluations.get(method.label, 0))
        rows.append((method.label, passes, "-" if not about else duration(about)))
    return f"{pairs(facts)}\n\n{columns(rows)}"


def _no_time(plan: Preview) -> str:
    if not plan.evaluations:
        return "nothing to compute"
    names = ", ".join(name for name, seconds in plan.seconds.items() if seconds is None)
    return f"not known on this machine yet: {names} will be measured when the comparison begins"


def _show(screen: Screen, whole: dict[str, Any], files: ComparisonFiles) -> None:
    """Print the table of all edits, and where the files are."""
    from ctxedit.metrics import metrics as known

    if screen.json:
        shown = {key: whole[key] for key in ("about", "methods", "differences", "failed")}
        screen.result("", {**shown, **{k: str(v) for k, v in dataclasses.asdict(files).items()}})
        return
    tables = whole["methods"]
    keys = [f for f in known() if any(f.key in t["figures"]["all"] for t in tables)]
    rows = [["method", "edits", *[f.title for f in keys]]]
    for table in tables:
        found = table["figures"]["all"]
        cells = [f.shown(found[f.key]["mean"]) if f.key in found else "-" for f in keys]
        rows.append([table["method"], str(table["edits"]), *cells])
    print_table(rows)
    for one in whole["failed"]:
        screen.warn(f"{one['method']} failed on {one['clip']}, “{one['target']}”: {one['error']}")
    screen.say(f"with intervals: {files.table_markdown}; videos side by side: {files.page}")


app.command("speed")(speed)
app.command("study")(study)
app.command("answers")(answers)
