"""Commands on a pseudo-terminal of a given width: nothing is cut, numbers are whole, lines fit."""

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest
from asking import TARGET, call
from rich.console import Console
from rich.progress import MofNCompleteColumn

from ctxedit.cli.bars import bars, folding

#: Runs several command lines in one process; a line of its own ends each one's output.
CODE = """
import json, sys
from ctxedit.cli import main
for arguments in json.loads(sys.argv[1]):
    code = main(arguments)
    print(f"=== {code}", flush=True)
"""
#: What may be longer than a line: a word that has to stay whole to be copied.
LONG_WORD = re.compile(r"\S+")


def on_terminal(width, *commands, stderr=subprocess.PIPE):
    """What each command prints on a terminal of so many columns; all of them end well."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k != "COLUMNS"} | {"TERM": "xterm"}
    command = [sys.executable, "-c", CODE, json.dumps([[str(a) for a in one] for one in commands])]
    errors = theirs if stderr is None else stderr
    with subprocess.Popen(
        command, stdout=theirs, stderr=errors, stdin=subprocess.DEVNULL, env=environment
    ) as process:
        os.close(theirs)
        read = b""
        while chunk := _read(ours):
            read += chunk
        said = "" if stderr is None else process.stderr.read().decode()
        assert process.wait() == 0, said
    os.close(ours)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", read.decode()).replace("\r\n", "\n")
    *shown, rest = re.split(r"^=== (\d+)\n", text, flags=re.M)
    assert not rest and len(shown) == 2 * len(commands) and "Traceback" not in text
    assert all(code == "0" for code in shown[1::2]), (shown, said)
    return shown[::2]


def _read(terminal):
    try:
        return os.read(terminal, 4096)
    except OSError:  # Linux's end of file: the other side is closed
        return b""


def fits(text, width):
    """Whether every line fits, or is no longer than its longest word makes it."""
    return [
        line
        for line in text.splitlines()
        if len(line) > width and len(line) > len(max(LONG_WORD.findall(line), key=len)) + 24
    ]


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_tables_help_and_plans_are_whole_at_any_width(made, runs, width):
    run = next(runs.iterdir())
    shown = on_terminal(
        width, ("runs", "ls", "--runs", runs), ("help", "run"), ("bench", "--help"), ("presets", "ls"),
        ("models", "ls"), ("edit", "a dog", "--run", run, "--dry-run"), ("train", "ls"),
        ("eval", "--metrics", "help"),
    )  # fmt: skip
    for text in shown:
        assert not fits(text, width), fits(text, width)
        assert "…" not in text.replace("A,B,…", "").replace("(FID, KID, CMMD, …)", ""), text
    listed, helped, bench, _, models, plan, _, _ = shown
    assert re.search(r"\b\d+\.\d MiB", listed) and run.name in listed and TARGET not in listed
    assert ("─" in listed) == (width == 120 and len(run.name) < 40)
    for name in ("--negative-prompt", "--no-low-memory", "CTXEDIT_PRESET", "[default: contextdiff]"):
        assert name in re.sub(r"[│\s]+", " ", helped) or width == 80, name
    assert "--study" in bench or "--presets" in bench
    assert re.search(r"6\.\d MiB", models) and "| part |" not in models and "3,315,040" in models
    assert re.search(r"\d+ × 4\s+frames", plan) and re.search(r"\d+\.\d+ [MG]iB", plan)


@pytest.mark.parametrize("width", [40, 80])
def test_figures_and_comparisons_are_whole(made, runs, clip, width, tmp_path):
    run, video = next(runs.iterdir()), made.out.strip()
    figures, chosen, compared, shown = on_terminal(
        width, ("eval", "--run", run), ("eval", "--run", run, "--metrics", "psnr,ssim,clip_text"),
        ("compare", clip, video, "--frames", 2, "-o", tmp_path / "both.gif"), ("runs", "show", run),
    )  # fmt: skip
    (row, *_) = [r for r in call("eval", "--run", run, "--json").table["edits"] if r["target"] == TARGET]
    for text, digits in ((figures, 2), (chosen, 3)):
        assert f"{row['psnr']:.{digits}f}" in text and f"{row['ssim']:.4f}" in text and "at 64×64" in text
        assert "…" not in text and not fits(text, width), fits(text, width)
    assert compared == f"{tmp_path / 'both.gif'}\n" and str(run) in shown


def test_a_run_on_a_narrow_terminal_shows_bars_and_leaves_lines(made, runs, tmp_path):
    """Progress on the terminal itself: no bar is wider than it."""
    run, out = next(runs.iterdir()), tmp_path / "robot.gif"
    target = "a robot walking on the beach, pencil sketch style"
    (text,) = on_terminal(40, ("edit", target, "--run", run, "-o", out), stderr=None)
    assert out.is_file() and f"edit “{target}”: done in" in text
    drawn = [line for line in re.split(r"[\r\n]+", text) if "━" in line]
    assert drawn and all(len(line.rstrip()) <= 40 for line in drawn)
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
