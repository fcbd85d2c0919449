"""From any exception to one line, a hint and an exit code."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import typer

from ctxedit.cli import collecting
from ctxedit.cli.command_lines import UsageError, taken
from ctxedit.errors import (
    ConfigError,
    CtxeditError,
    InputError,
    OutputError,
    ResourceError,
    WeightsError,
)
from ctxedit.files import printable, reason

_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
_READ_ONLY = {errno.EROFS, errno.EFBIG}
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM}
_LESS_MEMORY = "try fewer --frames, a smaller --size, or --dtype bfloat16; --dry-run shows what is needed"
#: Pydantic's messages about options' values, which Typer shows, and plainer ones.
_VALIDATION = (
    (r"Value error, ", ""),  # a value that is not one of the allowed ones
    (r"Input should be a valid number\b.*", "must be a number"),
    (r"Input should be a valid integer\b.*", "must be a whole number"),
    (r"Input should be a valid boolean\b.*", "must be true or false"),
    (r"Input should be greater than or equal to ", "must be at least "),
    (r"Input should be less than or equal to ", "must be at most "),
)
#: For errors that have no hint of their own.
_HINTS = {
    2: "see `ctxedit COMMAND --help`, and `ctxedit presets show contextdiff` for the settings",
    3: "check the path; relative paths start at the current folder",
    4: "see `ctxedit models ls` for what is there",
    5: "see `ctxedit env` for devices and memory",
    6: "choose another output path",
    7: "try --dtype float32",
}


@dataclass(frozen=True)
class Failure:
    """The error message, its hint, and the exit code of the process."""

    message: str
    hint: str | None
    exit_code: int


class Interrupted(CtxeditError):
    """Ctrl-C during work that can be resumed."""

    exit_code = 130


class StdoutClosed(Exception):
    """The reader of stdout has closed it."""


class Carried(BaseException):
    """Carries a command's exception past Typer.

    Typer turns broken pipes, EOFError and Ctrl-C into exits, whichever pipe broke.
    """

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        self.error = error


def work_begins() -> None:
    """Imports are over. From now on Ctrl-C raises KeyboardInterrupt: there may be something to clean up."""
    collecting.resume()
    current = signal.getsignal(signal.SIGINT)
    if getattr(current, "__module__", "") == "ctxedit.cli":
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def resumable(folder: Path | str | None) -> Iterator[None]:
    """On Ctrl-C say that the work in ``folder`` can be resumed; None is for work without state."""
    work_begins()
    try:
        yield
    except KeyboardInterrupt as error:
        if folder is None:
            raise Interrupted("interrupted; nothing was written") from error
        raise Interrupted(f"interrupted; run the same command again to resume, in {folder}") from error


def explain(error: BaseException) -> Failure:
    """The failure that an exception is reported as."""
    if isinstance(error, CtxeditError):
        hint = error.hint or _HINTS.get(error.exit_code)
        return Failure(error.message, hint, error.exit_code)
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return Failure("interrupted before any work", None, Interrupted.exit_code)
    if isinstance(error, SystemExit):
        return Failure("stopped", None, error.code if isinstance(error.code, int) else 1)
    if isinstance(error, UsageError):
        return _usage(error)
    if _out_of_memory(error):
        return Failure(f"not enough memory: {_line(error)}", _LESS_MEMORY, ResourceError.exit_code)
    if isinstance(error, OSError) and error.errno in _FULL:
        place = f": {error.filename}" if error.filename else ""
        return Failure(
            f"the disk is full{place}", "free some space, or write elsewhere", OutputError.exit_code
        )
    return _of_a_kind(error) or Failure(
        f"{type(error).__name__}: {_line(error)}",
        "set CTXEDIT_DEBUG=1 for the traceback, and see `ctxedit env` for a bug report",
        1,
    )


def _of_a_kind(error: BaseException) -> Failure | None:
    """How some of Python's own exceptions are reported; None for a bug of ctxedit."""
    if type(error).__name__ == "PanicException":  # a Rust panic in tokenizers or safetensors
        return Failure(f"the model's files are broken: {_line(error)}", _HINTS[4], WeightsError.exit_code)
    if isinstance(error, RecursionError):
        return Failure("a setting or a file is nested too deeply", _HINTS[2], ConfigError.exit_code)
    if isinstance(error, UnicodeError):
        text = f"a name or a text is not UTF-8: {_line(error)}"
        return Failure(text, "rename the file, or write the text in UTF-8", InputError.exit_code)
    if isinstance(error, OverflowError):
        return Failure(f"a number is too large: {_line(error)}", _HINTS[2], ConfigError.exit_code)
    if isinstance(error, EOFError):
        return Failure(f"a file ends too early: {_line(error)}", _HINTS[3], InputError.exit_code)
    if isinstance(error, BrokenPipeError | ConnectionError):
        return Failure(f"a helper process ended: {_line(error)}", _HINTS[5], ResourceError.exit_code)
    if not isinstance(error, OSError) or error.errno is None:
        return None
    said = f"{printable(str(error.filename))}: {reason(error)}" if error.filename else reason(error)
    if error.errno in _EXHAUSTED:
        return Failure(f"the system is out of resources: {said}", _HINTS[5], ResourceError.exit_code)
    if error.errno in _READ_ONLY:
        return Failure(f"cannot be written: {said}", _HINTS[6], OutputError.exit_code)
    if error.filename:
        return Failure(f"cannot be opened: {said}", _HINTS[3], InputError.exit_code)
    if error.errno == errno.ENOENT and _is_current_folder_gone():
        gone = "the current folder does not exist any more"
        return Failure(gone, "change to one that exists: cd", InputError.exit_code)
    return None


def _is_current_folder_gone() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


def _usage(error: BaseException) -> Failure:
    message = str(getattr(error, "format_message", lambda: error)()).strip()
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "ctxedit"
    for found, plain in _VALIDATION:
        message = re.sub(found, plain, message)
    first, rest = (message.split("\n")[0].rstrip("."), " ".join(message.split("\n")[1:]).strip())
    takes = "" if context is None else taken(context)
    plain = f"see `{command} --help`"
    hint = rest or (f"{command} {takes}: {plain}" if takes else plain)
    return Failure(first[:1].lower() + first[1:], hint, 2)


def _out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError):
        return True
    torch = sys.modules.get("torch")  # not imported: then it cannot have raised
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
