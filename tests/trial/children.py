"""Forked children that run one command line each; torch and ctxedit are imported once, in the parent.

A child is a process of its own, with a process group of its own, and dies like any other. What saves the time
is that it does not import torch again (four seconds). The parent never computes anything with torch, so there
are no threads whose locks a fork could leave taken.
"""

from __future__ import annotations

import ctypes
import os
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

#: Exit codes that tell a user what is wrong: usage, input, weights, memory, output, numerics.
TOLD = (2, 3, 4, 5, 6, 7)
INTERRUPTED = 130
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Attributes:
        code: its exit code; minus the signal that ended it; None where it was ended at the time limit.
        out, err: what it printed.
        seconds: from the fork.
    """

    code: int | None
    out: str
    err: str
    seconds: float


@dataclass(frozen=True)
class Signal:
    """A signal to a child, so many seconds after it began; ``group`` sends it to its helpers (ffmpeg) too."""

    number: int
    after: float
    group: bool = True


def preload() -> None:
    """Import what the commands import, and keep every library to one thread."""
    import torch

    torch.set_num_threads(1)
    # Each of these is imported inside a command or a function.
    import cv2
    import transformers  # noqa: F401
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel  # noqa: F401
    from transformers import AutoTokenizer, CLIPModel, CLIPTextModel  # noqa: F401

    cv2.setNumThreads(1)


def die_with_parent() -> None:
    """Leave no orphans when the trial is stopped (Linux)."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def call(
    arguments: list[str],
    folder: Path,
    *,
    limit: float = 120.0,
    memory: int = 0,
    stop: Signal | None = None,
    before: Callable[[], None] = lambda: None,
) -> Ended:
    """Run ``ctxedit ARGUMENTS`` in ``folder``.

    Args:
        limit: seconds; a child that takes longer is ended.
        memory: bytes of address space that it may take beyond what it begins with; 0 is no limit.
        stop: a signal to send on the way.
        before: called in the child before the command.
    """
    notes = {name: folder.parent / f".{folder.name}.{name}" for name in ("out", "err")}
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        _be_child(arguments, folder, notes, memory, before)
    code = _wait(child, start, limit, stop)
    seconds = time.monotonic() - start
    _end_group(child)
    said = {name: path.read_text(errors="replace") for name, path in notes.items() if path.exists()}
    for path in notes.values():
        path.unlink(missing_ok=True)
    return Ended(code, said.get("out", ""), said.get("err", ""), seconds)


def apart(work: Callable[[], None]) -> None:
    """Do something in a child: whatever computes with torch must not be done in the parent."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            die_with_parent()
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    if os.waitpid(child, 0)[1]:
        raise SystemExit("a file that a scenario needs cannot be made")


def _be_child(
    arguments: list[str], folder: Path, notes: dict[str, Path], memory: int, before: Callable[[], None]
) -> None:
    """The child's side of the fork; never returns."""
    code = 99
    try:
        os.setsid()
        die_with_parent()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(notes[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        os.chdir(folder)
        if memory:
            held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (held + memory, held + memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        before()
        from ctxedit.cli import main

        code = main(arguments)
        sys.stdout.flush()
        sys.stderr.flush()
    except KeyboardInterrupt:
        code = INTERRUPTED  # between the fork and main: no part of what is tried
    except BaseException as error:
        os.write(2, f"Traceback: main raised {error!r}\n".encode())
    finally:
        os._exit(code)


def _wait(child: int, start: float, limit: float, stop: Signal | None) -> int | None:
    """The child's exit code, minus a signal's number, or None at the limit; sends ``stop`` in time."""
    handle = os.pidfd_open(child)
    try:
        if stop is not None and not _ready(handle, start + stop.after - time.monotonic()):
            _send(stop, child)
        late = not _ready(handle, start + limit - time.monotonic())
        if late:
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
    finally:
        os.close(handle)
    return None if late else os.waitstatus_to_exitcode(status)


def _send(stop: Signal, child: int) -> None:
    if stop.group:
        try:
            os.killpg(child, stop.number)
            return
        except ProcessLookupError:
            pass  # on a busy machine the child may not have made its own group yet
    os.kill(child, stop.number)


def _ready(handle: int, seconds: float) -> bool:
    return bool(select.select([handle], [], [], max(seconds, 0))[0])


def _end_group(child: int) -> None:
    """End what the child left running, as when the power goes."""
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:
        return
    time.sleep(0.01)


def complaint(ended: Ended, allowed: tuple[int, ...]) -> str | None:
    """What is wrong with how a command ended, in a few words; None when nothing is."""
    last = (ended.err.strip().splitlines() or [""])[-1][:160]
    if ended.code is None:
        return f"not ended after {ended.seconds:.0f} s"
    if "Traceback" in ended.err or "Traceback" in ended.out:
        return f"traceback (exit {ended.code}): {last}"
    lines = ended.err.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    if ended.code not in allowed:
        return f"exit {ended.code}: {(errors or [last])[0][:160]}"
    if ended.code in TOLD and (len(errors) != 1 or sum(line.startswith("hint: ") for line in lines) != 1):
        return f"exit {ended.code} with {len(errors)} error lines, or without one hint: {last}"
    return None
