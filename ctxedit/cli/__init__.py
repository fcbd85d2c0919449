"""The command line: ``main`` runs it in any process, ``script`` in a process that ends afterwards.

This module imports nothing slow, so that ``main`` already handles Ctrl-C while the other modules load.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Sequence

_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return the process's exit code; errors are printed on stderr, never raised.

    Args:
        argv: arguments without the program's name; None takes the process's.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        _leave_at_once_on_ctrl_c("--json" in arguments)
        from ctxedit.cli.outermost import run
    except KeyboardInterrupt:
        print(_message().decode(), end="", file=sys.stderr)
        return _INTERRUPTED
    return run(arguments)


def script() -> int:
    """As :func:`main`, in a process that ends afterwards: a late Ctrl-C is ignored."""
    from ctxedit.cli import collecting

    collecting.pause()
    code = main()
    # The exit handlers of torch and others take a moment; if interrupted, they would print a traceback.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return code


def _leave_at_once_on_ctrl_c(as_json: bool) -> None:
    """Until the work begins, Ctrl-C ends the process: an interrupted import may swallow the exception.

    :func:`ctxedit.cli.failures.work_begins` restores Python's own handler. Another program's handler is kept.
    """

    def leave(*_: object) -> None:
        os.write(2, _message())
        if as_json:
            os.write(1, b'{"error": "interrupted before any work", "hint": null, "exit_code": 130}\n')
        os._exit(_INTERRUPTED)

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        with contextlib.suppress(ValueError):  # not the main thread, which alone may set signal handlers
            signal.signal(signal.SIGINT, leave)


def _message() -> bytes:
    return b"error: interrupted before any work\n"
