"""The outermost frame of a command line: every exception becomes one line, a hint and an exit code."""

from __future__ import annotations

import os
import warnings

from ctxedit.cli.failures import Carried, Failure, StdoutClosed, explain, work_begins
from ctxedit.cli.output import debugging, lenient_streams, print_failure
from ctxedit.errors import InputError
from ctxedit.files import is_utf8, printable


def run(arguments: list[str]) -> int:
    """Run one command line; returns the exit code."""
    lenient_streams()
    try:
        return _run(arguments)
    except BaseException as raised:
        error = raised.error if isinstance(raised, Carried) else raised
        if _reader_left(raised):
            # The reader (`| head`) has what it wanted; Python would complain once more when it flushes.
            _discard_stdout()
            return 0
        if isinstance(raised, SystemExit) and not raised.code:  # shell completion ends this way
            return 0
        if debugging():
            import traceback

            traceback.print_exception(error)
        failure = explain(error)
    finally:
        work_begins()
    return _tell(failure, "--json" in arguments)


def _run(arguments: list[str]) -> int:
    for text in arguments:
        if not is_utf8(text):
            raise InputError(f"{printable(text)} is not UTF-8", "rename the file, or write the text in UTF-8")
    from ctxedit.cli.app import run

    with warnings.catch_warnings():
        if not debugging():
            warnings.simplefilter("ignore")  # libraries' warnings; ctxedit's own go elsewhere
        return run(arguments)


def _reader_left(error: BaseException) -> bool:
    """Whether our stdout was closed by its reader; other broken pipes (a worker's) are errors."""
    if isinstance(error, Carried):
        return isinstance(error.error, StdoutClosed)
    # Outside of commands only help and versions are printed; Typer turns their broken pipe into an exit.
    return isinstance(error, BrokenPipeError | StdoutClosed) or (
        isinstance(error, SystemExit) and isinstance(error.__context__, BrokenPipeError)
    )


def _tell(failure: Failure, as_json: bool) -> int:
    try:
        print_failure(failure, as_json)
    except (OSError, ValueError, StdoutClosed):  # there is no reader left
        _discard_stdout()
    return failure.exit_code


def _discard_stdout() -> None:
    """Discard what Python still buffers for stdout."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.close(nowhere)
    except OSError:
        return
