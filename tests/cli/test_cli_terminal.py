"""Commands on a pseudo-terminal of a given width: nothing is cut, numbers are whole, lines fit."""

import json
import os
import pty
import re
import subprocess
import sys

import pytest
from asking import TARGET, call
from rich.console import Console
from rich.progress import MofNCompleteColumn

from ctxedit.cli import output
from ctxedit.cli.bars import bars, folding
from ctxedit.cli.bench_progress import Board
from ctxedit.cli.output import Screen

#: Runs command lines on a terminal of each width, in one process; a line of its own ends each one's output.
#: The last session's standard error is the terminal, too.
CODE = """
import fcntl, json, os, struct, sys, termios
from ctxedit.cli import main
sessions = json.loads(sys.argv[1])
for number, (width, commands) in enumerate(sessions, 1):
    fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    if number == len(sessions):
        os.dup2(1, 2)
    for arguments in commands:
        code = main(arguments)
        print(f"=== {code}", flush=True)
"""


def on_terminal(*sessions):
    """What each command of (width, commands) prints on a terminal of that width; all of them end well.

    In the last session what goes to standard error is printed on the terminal as well.
    """
    ours, theirs = pty.openpty()
    environment = {k: v for k, v in os.environ.items() if k != "COLUMNS"} | {"TERM": "xterm"}
    lines = [(width, [[str(a) for a in one] for one in commands]) for width, commands in sessions]
    with subprocess.Popen(
        [sys.executable, "-c", CODE, json.dumps(lines)],
        stdout=theirs, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, env=environment,
    ) as process:  # fmt: skip
        os.close(theirs)
        read = b""
        while chunk := _read(ours):
            read += chunk
        said = process.stderr.read().decode()
        assert process.wait() == 0, said
    os.close(ours)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", read.decode()).replace("\r\n", "\n")
    *shown, rest = re.split(r"^=== (\d+)\n", text, flags=re.M)
    assert not rest and "Traceback" not in text
    assert all(code == "0" for code in shown[1::2]), (shown[-2:], said)
    outputs = iter(shown[::2])
    return [[next(outputs) for _ in commands] for _, commands in lines]


def _read(terminal):
    try:
        return os.read(terminal, 4096)
    except OSError:  # Linux's end of file: the other side is closed
        return b""


def too_long(text, width):
    """Lines that do not fit although they could be folded; a command to copy is not."""
    return [
        line
        for line in re.sub(r"^again .*$", "", text, flags=re.M).splitlines()
        if len(line) > width and all(len(word) + 18 < width for word in line.split())
    ]


WIDTHS, FIGURES_AT = (40, 60, 80, 120), (40,)
NARROW = 40


@pytest.fixture(scope="module")
def shown(made, runs, clip, tmp_path_factory):
    """What commands show at each width, by width and a name of each command.

    ``edit`` has the path of a new edit and what is seen on a narrow terminal while it is made.
    """
    run, video = next(runs.iterdir()), made.out.strip()
    out = tmp_path_factory.mktemp("compared") / "both.gif"
    robot, target = out.with_name("robot.gif"), "a robot walking on the beach, pencil sketch style"
    light = {
        "runs": ("runs", "ls", "--runs", runs), "help": ("help", "run"), "group": ("bench", "--help"),
        "presets": ("presets", "ls"), "models": ("models", "ls"), "recipes": ("train", "--list"),
        "plan": ("edit", "a dog", "--run", run, "--dry-run"), "metrics": ("eval", "--metrics", "help"),
        "run": ("runs", "show", run), "file": ("show", video),
    }  # fmt: skip
    figures = {
        "figures": ("eval", "--run", run), "chosen": ("eval", "--run", run, "--metrics", "psnr,clip_text"),
        "compared": ("compare", clip, video, "--frames", 2, "-y", "-o", out),
    }  # fmt: skip
    asked = [(width, light | (figures if width in FIGURES_AT else {})) for width in WIDTHS]
    sessions = [(width, list(commands.values())) for width, commands in asked]
    *answers, (edit,) = on_terminal(*sessions, (NARROW, [("edit", target, "--run", run, "-o", robot)]))
    pairs = zip(asked, answers, strict=True)
    found = {width: dict(zip(commands, texts, strict=True)) for (width, commands), texts in pairs}
    return found | {"edit": (target, robot, edit)}


@pytest.fixture(scope="module")
def listed():
    """The models, where no terminal limits the width."""
    return call("models", "ls").out


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_cut_at_any_width(shown, runs, listed, width):
    run = next(runs.iterdir())
    for name, text in shown[width].items():
        assert not too_long(text, width), (name, too_long(text, width))
        # Of what is said, these alone have the sign that stands for what was cut.
        assert "…" not in re.sub(r"A,B,…|\(FID, KID, CMMD, …\)", "", text), (name, text)
    text = shown[width]
    assert re.search(r"\b\d+\.\d MiB", text["runs"]) and run.name in text["runs"]
    for name in ("--negative-prompt", "--no-low-memory", "CTXEDIT_PRESET", "[default: contextdiff]"):
        assert name in re.sub(r"[│\s]+", " ", text["help"]), name
    figures = re.findall(r"\b\d[\d,]*,\d{3}\b|\b\d+\.\d MiB", listed)
    assert len(figures) > 10 and all(figure in text["models"] for figure in figures)
    assert "| part |" not in text["models"], "Markdown is drawn"
    assert re.search(r"\d+ × 4 frames", text["plan"]) and re.search(r"\d\.\d+ [MG]iB", text["plan"])
    assert re.search(r"^again +ctxedit run .* --set .*$", text["file"], re.M), "a command stays on one line"


def test_a_table_is_drawn_where_there_is_room(shown):
    assert "─" in shown[120]["metrics"] and "─" not in shown[40]["metrics"]


@pytest.mark.parametrize("width", FIGURES_AT)
def test_figures_are_whole(shown, made, runs, width):
    rows = call("eval", "--run", next(runs.iterdir()), "--json").table["edits"]
    (row, *_) = [row for row in rows if row["target"] == TARGET]
    for text, digits in ((shown[width]["figures"], 2), (shown[width]["chosen"], 3)):
        assert f"{row['psnr']:.{digits}f}" in text and "at 64×64" in text
    assert f"{row['ssim']:.4f}" in shown[width]["figures"] and shown[width]["compared"].endswith("both.gif\n")


def test_a_run_on_a_narrow_terminal_shows_bars_and_leaves_lines(shown):
    """Progress on the terminal itself: no bar is wider than it."""
    target, out, text = shown["edit"]
    assert out.is_file() and f"edit “{target}”: done in" in text
    drawn = [line for line in re.split(r"[\r\n]+", text) if "━" in line]
    assert drawn and all(len(line.rstrip()) <= NARROW for line in drawn)
    assert any(re.search(r"\b4/4\b", line) for line in drawn), "the counter is whole"


@pytest.mark.parametrize("width", [40, 60, 120])
def test_a_bar_folds_its_texts_before_it_cuts_a_number(width):
    console = Console(width=width, force_terminal=True, color_system=None, record=True)
    progress = bars(console, MofNCompleteColumn, folding("{task.fields[note]}"))
    note = "loss 0.1234, shift 0.013"
    progress.update(progress.add_task("edit “a panda on the beach”", total=1200, note=note), completed=370)
    with console.capture() as captured:
        console.print(progress.get_renderable())
    text = captured.get()
    assert "370/1200" in text and "-:--:--" in text and "…" not in text
    assert all(word in text for word in ("0.1234", "0.013", "panda", "beach”"))


@pytest.mark.parametrize("width", [40, 60, 80])
def test_a_comparison_at_work_names_its_methods_whole(width):
    screen = Screen()
    screen.console = Console(width=width, force_terminal=True, color_system=None)
    board = Board(screen, ["contextdiff", "fatezero"])
    with screen.console.capture() as captured:
        screen.console.print(board.live.get_renderable())
    text = captured.get()
    assert "contextdiff" in text and "fatezero" in text and "new edits" in text and "…" not in text
    assert all(len(line) <= width for line in text.splitlines())
    assert ("edit found" in text) == (width == 80)


def test_a_table_that_is_too_wide_is_turned_on_its_side(monkeypatch):
    rows = [
        ["method", *(f"figure {i}" for i in range(12))],
        *([name, *["0.123"] * 12] for name in ("a", "b")),
    ]
    for width, lines in ((200, 6), (40, 16), (15, 27)):  # as it is, on its side, one block for each method
        monkeypatch.setattr(output, "terminal_width", lambda width=width: width)
        text = output.table_text(rows)
        assert len(text.splitlines()) == lines and text.count("0.123") == 24, text
        assert width == 15 or max(map(len, text.splitlines())) <= width
