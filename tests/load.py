"""How many clips a minute ``ctxedit batch`` edits: short drawn clips, built-in models, smallest settings.

    python tests/load.py [--clips 200] [--workers 1 2] [--seconds S] [--json]

Run it on an otherwise idle machine. Each number of workers edits all clips (2 frames, one tuning step, two
steps of inversion and sampling) with one CPU thread per worker. A run that takes more than ``--seconds`` is
interrupted, and what it finished counts. Starting and the models' loading are part of the time and of the
processor seconds. At the end the edits of all runs are compared: they must be equal bit for bit.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import psutil

PROMPT, TARGET = "a tiger walking on the beach", "a panda walking on the beach"
FRAMES = 2
SMALLEST = ("--frames", "2", "--stride", "1", "--steps", "2", "--tune-steps", "1", "--threads", "1")


def draw(folder: Path, count: int) -> None:
    """Clips of the drawn world, one scene each."""
    from ctxedit.media.write import write_clip
    from ctxedit.synthetic import scenes

    for number in range(count):
        scene = scenes.draw_scene(np.random.default_rng(number), pairs=0.0)
        write_clip(folder / f"{number:04}.mp4", scenes.render(scene, FRAMES, 64)[0], Fraction(8))


def edit_all(clips: Path, out: Path, workers: int, seconds: float | None) -> dict[str, Any]:
    """One batch in a process of its own: how many edits were done, and how long it took."""
    command = [sys.executable, "-m", "ctxedit", "batch", str(clips), TARGET, "--prompt", PROMPT, *SMALLEST]
    began = time.monotonic()
    process = subprocess.Popen(
        [*command, "--workers", str(workers), "-y", "-q", "-o", str(out)], stdout=subprocess.DEVNULL
    )
    used = _wait(process, began, seconds)
    took = time.monotonic() - began
    interrupted = process.returncode == 130
    if process.returncode and not interrupted:
        raise SystemExit(f"the batch with {workers} workers ended with code {process.returncode}")
    done = len(list((out / "edits").glob("*.mp4")))
    return {
        "workers": workers, "edits": done, "seconds": took, "per_minute": 60 * done / took,
        "cpu_seconds": used, "cpu_seconds_per_edit": used / max(1, done), "interrupted": interrupted,
    }  # fmt: skip


def _wait(process: subprocess.Popen[bytes], began: float, seconds: float | None) -> float:
    """Wait for a batch, and interrupt it after ``seconds``; returns the processor time of all its processes.

    Sampled while it runs: what workers used is gone when they end.
    """
    used, interrupted = 0.0, False
    while process.poll() is None:
        with suppress(psutil.Error):
            root = psutil.Process(process.pid)
            tree = [one.cpu_times() for one in (root, *root.children(recursive=True))]
            used = max(used, sum(t.user + t.system + t.children_user + t.children_system for t in tree))
        if seconds is not None and not interrupted and time.monotonic() - began > seconds:
            process.send_signal(signal.SIGINT)
            interrupted = True
        time.sleep(0.5)
    return used


def differing(outs: list[Path]) -> list[str]:
    """Edits that two of the runs have and that are not equal."""
    found = []
    for other in outs[1:]:
        for video in sorted((other / "edits").glob("*.mp4")):
            first = outs[0] / "edits" / video.name
            if first.is_file() and first.read_bytes() != video.read_bytes():
                found.append(video.name)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, help="interrupt each run after so long")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    # A shell's background jobs ignore SIGINT, and so would what they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with tempfile.TemporaryDirectory() as folder:
        clips, outs = Path(folder) / "clips", [Path(folder) / f"out{count}" for count in asked.workers]
        draw(clips, asked.clips)
        rows = [edit_all(clips, out, n, asked.seconds) for n, out in zip(asked.workers, outs, strict=True)]
        if different := differing(outs):
            raise SystemExit(f"{len(different)} edits differ between the runs, among them {different[0]}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if asked.json:
        print(json.dumps({"clips": asked.clips, "cores": cores, "load": os.getloadavg(), "runs": rows}))
        return
    print(f"{asked.clips} clips, {cores} cores, load {os.getloadavg()[0]:.1f}\n")
    print(
        "| workers | edits | seconds | clips per minute | processor seconds per clip |\n|---|--:|--:|--:|--:|"
    )
    for row in rows:
        note = " (interrupted)" if row["interrupted"] else ""
        figures = f"{row['seconds']:.0f} | {row['per_minute']:.1f} | {row['cpu_seconds_per_edit']:.2f}"
        print(f"| {row['workers']} | {row['edits']}{note} | {figures} |")


if __name__ == "__main__":
    main()
