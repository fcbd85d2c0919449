"""``ctxedit bench study`` and ``ctxedit bench answers``: a user study of a comparison's edits."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from ctxedit.cli.arguments import split_names
from ctxedit.cli.options import MessageOptions
from ctxedit.cli.output import Screen, print_table
from ctxedit.cli.output_options import OverwriteOption
from ctxedit.cli.spread import spread
from ctxedit.errors import counted

Compared = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a comparison.", show_default=False)]


@spread
def study(
    out: Compared,
    overwrite: OverwriteOption,
    messages: MessageOptions,
    presets: Annotated[
        str | None,
        typer.Option(
            "--presets", metavar="A,B,C", help="Use only these presets. [default: all]", show_default=False
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option("--against", metavar="A", help="Use only pairs with this preset.", show_default=False),
    ] = None,
    count: Annotated[int, typer.Option("--count", min=1, help="Edits for each pair of presets.")] = 5,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Random seed.")] = 0,
) -> None:
    """Write the page of a user study: two anonymous edits next to their source, in random order.

    The page asks which edit matches the text better and which is more consistent over time, and
    lets people download their answers. Prints the path of the page. key.json next to it says which
    method made which edit: do not send it to the participants.
    """
    screen = Screen(messages.quiet, messages.json)
    names = split_names(presets or "")

    from ctxedit.bench import study as studying

    rows = studying.rows_in(out)
    questions = studying.draw_questions(rows, count, seed, names, against)
    path = studying.write(out, questions, rows, overwrite.yes)
    screen.say(f"{counted(len(questions), 'question')}, seed {seed}")
    screen.result(str(path), {"page": path, "key": path.with_name("key.json"), "questions": len(questions)})


@spread
def answers(
    out: Compared,
    files: Annotated[
        list[Path], typer.Argument(metavar="ANSWERS...", help="Downloaded answers.", show_default=False)
    ],
    messages: MessageOptions,
) -> None:
    """Count the answers of a study: how often each preset was preferred, with 95% intervals."""
    screen = Screen(messages.quiet, messages.json)

    from ctxedit.bench import study as studying

    found = studying.count_answers(out, files)
    path = studying.write_preferences(out, found, len(files))
    if screen.json:
        rows = [dataclasses.asdict(one) for one in found]
        screen.result("", {"people": len(files), "preferences": rows, "table": path})
        return
    table = [["preferred", "to", "in", "share", "interval", "answers"]]
    for p in found:
        interval = f"{p.low:.0%} to {p.high:.0%}"
        criterion = studying.CRITERIA[p.criterion]
        table.append([p.first, p.second, criterion, f"{p.share:.0%}", interval, str(p.count)])
    print_table(table)
    screen.say(f"also in {path}")
