"""Trials shared out to several processes, and the table of what came of them."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from children import die_with_parent

#: What, kind, number of its kind, how many of its kind.
Ticket = tuple[str, str, int, int]


@dataclass(frozen=True)
class Trial:
    """One trial: what was done (``how``) to what (``kind``), and what was wrong with it, if anything."""

    what: str
    kind: str
    number: int
    how: str
    found: str | None


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def in_jobs(one: Callable[[Ticket], Trial], trials: Sequence[Ticket], jobs: int) -> list[Trial]:
    """Run every trial, in ``jobs`` forked processes that take them from one queue.

    Ctrl-C and SIGTERM end it early: what was done until then is returned.
    """
    tickets, results = os.pipe(), os.pipe()
    workers = []
    for _ in range(jobs):
        if (worker := os.fork()) == 0:
            os.close(tickets[1])
            _work(one, trials, tickets[0], results[1])
        workers.append(worker)
    os.close(tickets[0])
    os.close(results[1])
    done: list[Trial] = []
    # A pipe holds some thousands of tickets; a worker reads four bytes, which are never split.
    feeder = os.fork()
    if feeder == 0:
        die_with_parent()
        try:
            for number in range(len(trials)):
                os.write(tickets[1], number.to_bytes(4, "little"))
        finally:
            os._exit(0)
    os.close(tickets[1])
    try:
        with os.fdopen(results[0]) as lines:
            for line in lines:
                done.append(Trial(**json.loads(line)))
                _tell(done, len(trials))
    except KeyboardInterrupt:
        say(f"stopped after {len(done)} of {len(trials)}")
        for process in (*workers, feeder):
            os.kill(process, signal.SIGKILL)
    for process in (*workers, feeder):
        os.waitpid(process, 0)
    return done


def _tell(done: Sequence[Trial], count: int) -> None:
    last = done[-1]
    if last.found:
        say(f"{last.kind}:{last.number} {last.how}: {last.found}")
    if len(done) % 100 == 0:
        say(f"{len(done)} of {count}")


def _work(one: Callable[[Ticket], Trial], trials: Sequence[Ticket], tickets: int, results: int) -> None:
    """A worker: never returns."""
    die_with_parent()
    try:
        while ticket := os.read(tickets, 4):
            trial = trials[int.from_bytes(ticket, "little")]
            try:
                done = one(trial)
            except Exception as error:  # the trial's own fault must not hide the other trials
                what, kind, number, _ = trial
                done = Trial(what, kind, number, "not tried", f"the trial failed: {error!r}"[:300])
            os.write(results, json.dumps(asdict(done)).encode() + b"\n")
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


def table(done: Sequence[Trial], replay: str, seconds: float) -> str:
    """Counts by kind, then every failure with what replays it."""
    every = Counter((trial.what, trial.kind) for trial in done)
    failed = Counter((trial.what, trial.kind) for trial in done if trial.found)
    lines = ["| trial | of | done | failed |", "|---|---|---|---|"]
    lines += [
        f"| {what} | {kind} | {count} | {failed[what, kind]} |" for (what, kind), count in every.items()
    ]
    lines.append(f"| all | | {len(done)} | {sum(failed.values())} |")
    lines.append(f"\n`{replay}`, {seconds:.0f} s")
    if any(trial.found for trial in done):
        lines.append(
            "\nEach failure again: the same with --only and its name. Times of kills are not exact.\n"
        )
    lines += [
        f"- `--only '{trial.kind}:{trial.number}'` ({trial.how}): {trial.found}"
        for trial in sorted(done, key=lambda t: (t.what, t.kind, t.number))
        if trial.found
    ]
    return "\n".join(lines)
