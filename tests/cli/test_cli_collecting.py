"""Python's garbage collector is off while a process of ctxedit's own imports, and only then."""

import gc
import subprocess
import sys

import pytest

from ctxedit.cli import collecting, main

#: Runs the command, then says whether the collector is on and leaves out what was imported.
SCRIPT = """
import gc, sys
from ctxedit.cli import script
code = script()
print(gc.isenabled(), gc.get_freeze_count() > 1000, file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.parametrize(("arguments", "code"), [(["presets", "ls"], 0), (["no-such-command"], 2)])
def test_a_process_collects_again_when_the_imports_are_over(arguments, code):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == code
    assert done.stderr.splitlines()[-1] == "True True"


def test_the_collector_of_another_program_is_left_alone(capsys):
    assert gc.isenabled()
    gc.disable()
    try:
        assert main(["presets", "ls"]) == 0
        assert not gc.isenabled()
        collecting.pause()
        collecting.resume()
        assert not gc.isenabled(), "it was not off because of us"
    finally:
        gc.enable()
    capsys.readouterr()
