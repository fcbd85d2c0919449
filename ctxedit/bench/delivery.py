"""Keeps the outputs of a bench identical in its local folder and in the store that it delivers to."""

from __future__ import annotations

from pathlib import Path

from ctxedit.bench.results import NAME, ResultRow, Results
from ctxedit.bench.subject import Bench
from ctxedit.media.temporary import atomic
from ctxedit.runs import fingerprint


def results_of(bench: Bench) -> Results:
    """The rows so far: from the local folder, and from the store, which another machine may have written to.

    Raises:
        InputError: the file is not a results file.
        OutputError: the store cannot be read.
    """
    if bench.store is not None and (there := bench.store.read(NAME)) is not None:
        file = bench.out / NAME
        here = file.read_bytes() if file.is_file() else b""
        # The last row of a key is used, and each of the two files has its rows in the order they were
        # written.
        merged = list(dict.fromkeys(line for line in (there + b"\n" + here).split(b"\n") if line.strip()))
        with atomic(file, True) as temporary:
            temporary.write_bytes(b"\n".join(merged) + b"\n")
    return Results(bench.out)


def deliver(bench: Bench, name: str) -> None:
    """Put a file of the bench's folder into its store, if it has one. Raises OutputError."""
    if bench.store is not None:
        bench.store.put(bench.out / name, name)


def note(bench: Bench, row: ResultRow) -> None:
    """After a row: upload the results to the store, and download a video that another machine made."""
    deliver(bench, NAME)
    if bench.store is not None and row.video is not None and not (bench.out / row.video).is_file():
        bench.store.get(row.video, bench.out / row.video)


def flaw(bench: Bench, row: ResultRow) -> str | None:
    """What is wrong with a row's video; None if it is the measured one, both here and in the store."""
    noted = row.facts.get("video_hash")
    if row.video is None or noted is None:  # rows of earlier versions have no hash
        return None
    video, store = bench.out / row.video, bench.store
    if store is not None and not _is(video, noted):
        store.get(row.video, video)
    if not _is(video, noted):
        where = store.at(row.video) if store is not None else video
        return f"{where} is {'damaged' if video.exists() else 'missing'}"
    if store is not None and store.size(row.video) != video.stat().st_size:
        store.put(video, row.video)
    return None


def _is(video: Path, noted: str) -> bool:
    return video.exists() and fingerprint(video) == noted
