"""What the process around ``main`` may do: encodings, readers that leave, Ctrl-C while modules load."""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys

import pytest
from asking import call

from ctxedit.cli import main
from ctxedit.cli.output import Screen


def encoded(encoding, *arguments):
    """The code, stdout and stderr as bytes of one call whose streams have this encoding, errors strict."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict") for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(a) for a in arguments])
        for stream in (out, err):
            stream.flush()
    return code, out.buffer.getvalue(), err.buffer.getvalue()


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp932", "utf-16"])
def test_a_path_is_printed_in_any_encoding(encoding, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = encoded(encoding, "presets", "cp", "ddim", "虎 é.toml")
    assert (code, err) == (0, b"") and (tmp_path / "虎 é.toml").exists()
    escaped = {"ascii": r"\u864e \xe9", "cp1252": r"\u864e é", "cp932": r"虎 \xe9"}.get(encoding, "虎 é")
    assert out.decode(encoding) == f"{escaped}.toml\n"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_json_stays_json_in_any_encoding(encoding, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = encoded(encoding, "presets", "cp", "ddim", "虎 é 😀.toml", "--json")
    assert code == 0 and json.loads(out.decode(encoding))["path"] == "虎 é 😀.toml"
    code, out, err = encoded(encoding, "presets", "cp", "虎😀", "--json")
    assert code == 2 and "虎😀" in json.loads(out.decode(encoding))["error"]
    assert rb"\u864e\U0001f600" in err


def test_tables_and_talk_in_ascii(clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dry = ("--target", "a “cat”", "--prompt", "a tiger", "--frames", "4", "--stride", "1", "--dry-run")
    code, out, _ = encoded("ascii", "run", clip, *dry)
    text = out.decode("ascii")
    assert code == 0 and 'edit "a "cat""' in text and re.search(r"working \d+x\d+, padded", text)
    assert encoded("ascii", "presets", "ls")[0] == encoded("ascii", "--help")[0] == 0


def test_a_rich_table_in_ascii(monkeypatch):
    from ctxedit.cli import output

    class Terminal(io.TextIOWrapper):
        def isatty(self):
            return True

    out = Terminal(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    output.lenient_streams()
    output.print_table([("tätle", "×"), ("虎", "1")])
    out.flush()
    assert rb"\u864e" in out.buffer.getvalue()


def process(*arguments, before="", **more):
    """The command line in a process of its own, started by a shell."""
    command = [sys.executable, "-m", "ctxedit", *map(str, arguments)]
    if before:
        command = ["sh", "-c", before, *command]
    return subprocess.run(command, capture_output="stdout" not in more and "stderr" not in more, **more)


def test_a_reader_of_stdout_that_leaves_ends_it_in_silence():
    for arguments in (("presets", "ls"), ("--help",), ("--version",), ("presets",)):
        read, write = os.pipe()
        os.close(read)
        done = process(*arguments, stdout=write, stderr=subprocess.PIPE)
        os.close(write)
        assert (done.returncode, done.stderr) == (0, b"")


def test_a_listener_of_stderr_that_leaves_changes_nothing(tmp_path):
    read, write = os.pipe()
    os.close(read)
    done = process("presets", "cp", "nosuch", stdout=subprocess.PIPE, stderr=write, cwd=tmp_path)
    os.close(write)
    assert (done.returncode, done.stdout) == (2, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
def test_a_stdout_that_is_closed_or_full(tmp_path):
    assert process("presets", "ls", before='exec "$0" "$@" >&-').returncode == 0
    done = process("presets", "ls", before='exec "$0" "$@" >/dev/full')
    assert done.returncode == 6 and b"disk is full" in done.stderr and b"Exception" not in done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
def test_messages_that_cannot_be_written_change_nothing(monkeypatch):
    from ctxedit.cli.output import Screen

    with contextlib.suppress(OSError), open("/dev/full", "w") as full:  # closing it fails as well
        monkeypatch.setattr(sys, "stderr", full)
        screen = Screen()
        screen.say("loading")
        screen.warn("no sound")
    assert screen.console.quiet


def test_an_encoding_of_the_environment(tmp_path):
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    done = process("presets", "cp", "ddim", "虎é.toml", cwd=tmp_path, env=environment)
    assert done.returncode == 0 and done.stdout.decode("cp1252").rstrip() == r"\u864eé.toml"


@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), EOFError("at 12")])
def test_pipes_and_ends_that_are_not_ours_are_errors(error, monkeypatch):
    def blow():
        raise error

    monkeypatch.setattr("ctxedit.config.preset_names", blow)
    answer = call("presets", "ls")
    assert answer.code == {EOFError: 3}.get(type(error), 5) and answer.err.startswith("error: ")


_WORKER = """#!{python}
import sys
print('{{"type": "hello", "version": 1, "python": "3.8"}}', flush=True)
sys.stdin.readline()
print('{{"type": "ready", "device": "cpu"}}', flush=True)
sys.stdin.close()
sys.exit(3)
"""


def test_a_captioner_that_dies_after_ready_is_an_error(clip, tmp_path):
    worker = tmp_path / "python"
    worker.write_text(_WORKER.format(python=sys.executable))
    worker.chmod(0o755)
    few = ("--frames", "2", "--stride", "1", "--captioner", "lavis", "--lavis-python", worker)
    answer = call("caption", clip, *few)
    assert answer.code == 4 and "LAVIS worker ended (exit 3)" in answer.err and answer.out == ""


@pytest.mark.parametrize("module", ["typer", "rich", "torch"])
@pytest.mark.parametrize("as_json", [False, True])
def test_ctrl_c_while_modules_load_is_one_line(module, as_json, clip, tmp_path):
    (tmp_path / f"{module}.py").write_text("import os, time\nos.write(2, b'loading\\n')\ntime.sleep(60)\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "ctxedit", "run", str(clip), "a cat", "--frames", "4", "--stride", "1"]
    running = subprocess.Popen(
        [*command, *["--json"] * as_json], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        # A shell that runs the tests in the background has them ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert running.stderr.readline() == b"loading\n"
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=30)
    assert (running.returncode, err) == (130, b"error: interrupted before any work\n")
    assert (json.loads(out)["exit_code"] == 130) if as_json else out == b""


_SLOW_TO_LEAVE = """
import atexit, os, runpy, sys, time
atexit.register(lambda: (os.write(2, b"leaving\\n"), time.sleep(0.5)))
sys.argv = ["ctxedit", "presets", "ls"]
runpy.run_module("ctxedit", run_name="__main__")
"""


def test_ctrl_c_after_the_result_changes_nothing():
    command = [sys.executable, "-c", _SLOW_TO_LEAVE]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stderr.readline() == b"leaving\n"
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=30)
    assert (running.returncode, err) == (0, b"") and b"contextdiff" in out


def test_the_handler_of_ctrl_c_is_put_back():
    before = signal.getsignal(signal.SIGINT)
    assert call("presets", "ls").code == 0 and call("presets", "show", "nosuch").code == 2
    assert signal.getsignal(signal.SIGINT) is before


def test_a_warning_is_one_line_whatever_it_quotes(capsys):
    Screen().warn("“a tiger\nin the\r\nzeppelin” is unknown")
    assert capsys.readouterr().err == "warning: “a tiger in the zeppelin” is unknown\n"
