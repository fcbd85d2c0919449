"""One call of the command line through ``main``, its two streams apart."""

import contextlib
import io
import json
from dataclasses import dataclass

from ctxedit.cli import main

TARGET = "a panda walking on the beach"
FEW = ("--frames", "4", "--stride", "1", "--steps", "4")


@dataclass(frozen=True)
class Answer:
    """What one call gave."""

    code: int
    out: str
    err: str

    @property
    def table(self):
        """The one JSON object on stdout; nothing may stand beside it."""
        return json.loads(self.out)


def call(*arguments) -> Answer:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(a) for a in arguments])
    return Answer(code, out.getvalue(), err.getvalue())
