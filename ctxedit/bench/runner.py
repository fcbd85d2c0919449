"""Runs every method on every clip and target through an executor, and resumes interrupted runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from ctxedit.bench.delivery import flaw, note, results_of
from ctxedit.bench.results import ResultRow, Results
from ctxedit.bench.serve import Job, Serving, line, row_for
from ctxedit.bench.subject import Bench, edits, references
from ctxedit.executors import Executor, InProcess, Lost, Overseer


class Watcher(Overseer):
    """Receives a bench's progress; also a reporter of stages. This one discards it."""

    def began(self, edits: int, done: int) -> None:
        """The total number of edits, and how many were done before."""

    def finished(self, row: ResultRow) -> None:
        """An edit is done, or has failed."""


def run(
    bench: Bench,
    watcher: Watcher | None = None,
    executor: Executor | None = None,
    refused: Mapping[str, str] | None = None,
) -> list[ResultRow]:
    """Every row of the comparison, references first for each clip: computed, or read if already done.

    A clip, a tuning or an edit that fails becomes a row with its error, and the others continue; only a disk
    that cannot be written, a worker that cannot start, and Ctrl-C end it. A failed edit is tried again by the
    next call.

    Args:
        bench: what to run.
        watcher: receives progress.
        executor: where the jobs run; None is this process.
        refused: edits by key that are known to fail, with the reason; no work is done for them.
    """
    watcher, executor, refused = watcher or Watcher(), executor or InProcess(), refused or {}
    results = results_of(bench)
    if results.damaged:
        watcher.warn(f"{results.path}: {results.damaged} damaged lines; their edits are made again")
    every = list(edits(bench))
    known = {key for *_, key in every if not bench.overwrite and _is_intact(bench, results, key, watcher)}
    watcher.began(len(every), len(known))
    for clip, method, target, key in every:
        if key in refused and key not in known:
            row = row_for(key, method.label, clip, target, error=line(refused[key]))
            results.add(row)
            note(bench, row)
            watcher.finished(row)
    jobs = list(_jobs(bench, results, known, refused, watcher))
    if jobs:
        with Serving(bench).marked() as serving:
            for job, made in executor.run(serving, jobs, watcher):
                for row in _lost(job, made) if isinstance(made, Lost) else (made,):
                    results.add(row)
                    note(bench, row)
                    watcher.finished(row)
    return rows_of(bench, results)


def _jobs(
    bench: Bench, results: Results, known: set[str], refused: Mapping[str, str], watcher: Watcher
) -> Iterator[Job]:
    """The remaining jobs: one per clip and method. A clip's references are made with its first job."""
    for clip in bench.clips:
        own = replace(bench, clips=(clip,))
        if all(key in refused for *_, key in edits(own)):
            continue
        wanted = tuple(
            (target, which, key) for target, which, key in references(bench, clip)
            if bench.overwrite or not _is_intact(bench, results, key, watcher)
        )  # fmt: skip
        for method in bench.methods:
            mine = ((t, key) for _, m, t, key in edits(own) if m is method)
            due = tuple((t, key) for t, key in mine if key not in known and key not in refused)
            if due:
                yield Job(clip, method, due, wanted)
                wanted = ()
        if wanted:
            yield Job(clip, bench.methods[0], (), wanted)


def _lost(job: Job, lost: Lost) -> list[ResultRow]:
    return [row_for(key, job.method.label, job.clip, t, error=lost.reason) for t, key in job.due]


def _is_intact(bench: Bench, results: Results, key: str, watcher: Watcher) -> bool:
    """Whether the row of this key is done and its video is the measured one; warns if it is not."""
    row = results.done(key)
    if row is None:
        return False
    if (wrong := flaw(bench, row)) is not None:
        watcher.warn(f"{wrong}: it is written again")
    return wrong is None


def rows_of(bench: Bench, results: Results) -> list[ResultRow]:
    """The existing rows of this comparison, in its order."""
    keys = [key for clip in bench.clips for _, _, key in references(bench, clip)]
    keys += [key for *_, key in edits(bench)]
    return [row for key in keys if (row := results.get(key)) is not None]
