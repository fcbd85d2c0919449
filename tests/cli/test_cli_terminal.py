"""Tables on a terminal, through a pseudo-terminal of a given width: nothing is cut, no line is too long."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest
from asking import TARGET

CODE = "import sys; from ctxedit.cli import main; sys.exit(main(sys.argv[1:]))"


def on_terminal(width, *arguments):
    """What a command prints on a terminal of so many columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k != "COLUMNS"} | {"TERM": "xterm"}
    command = [sys.executable, "-c", CODE, *map(str, arguments)]
    with subprocess.Popen(command, stdout=theirs, stderr=subprocess.PIPE, env=environment) as process:
        os.close(theirs)
        read = b""
        while chunk := _read(ours):
            read += chunk
        assert process.wait() == 0, process.stderr.read()
    os.close(ours)
    return re.sub(r"\x1b\[[0-9;]*m", "", read.decode()).replace("\r\n", "\n")


def _read(terminal):
    try:
        return os.read(terminal, 4096)
    except OSError:  # Linux's end of file: the other side is closed
        return b""


@pytest.mark.parametrize("width", [200, 80, 40])
def test_a_table_is_whole_at_any_width(made, runs, width):
    shown = on_terminal(width, "runs", "ls", "--runs", runs)
    lines = shown.splitlines()
    assert "…" not in shown and max(map(len, lines)) <= max(width, len(next(runs.iterdir()).name) + 13)
    assert re.search(r"\b\d+\.\d MiB", shown) and "contextdiff" in shown
    assert next(runs.iterdir()).name in shown
    assert ("─" in shown) == (width == 200)
    assert TARGET not in shown
