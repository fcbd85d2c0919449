"""The command line. ``main`` is its only door; nothing here imports torch before a command needs it."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence

from ctxedit.cli.failures import Failure, explain
from ctxedit.cli.output import debugging, print_failure


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return the process's exit code; errors are told on stderr, never raised.

    Args:
        argv: arguments without the program's name; None takes the process's.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    failure: Failure
    try:
        from ctxedit.cli.app import run

        with warnings.catch_warnings():
            if not debugging():
                warnings.simplefilter("ignore")  # libraries' talk; ours does not go through warnings
            return run(arguments)
    except BaseException as error:
        if isinstance(error, SystemExit) and not error.code:  # shell completion ends this way
            return 0
        if isinstance(error, BrokenPipeError) or isinstance(error.__context__, BrokenPipeError):
            # The reader (`| head`) has what it wanted; Python would complain once more when it flushes.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            return 0
        if debugging():
            import traceback

            traceback.print_exc()
        failure = explain(error)
    print_failure(failure, "--json" in arguments)
    return failure.exit_code
