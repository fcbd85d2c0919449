"""How much a tuning slows down beside one busy process, for several OpenMP settings.

    python tests/busy.py [--settings unset ours GOMP_SPINCOUNT=300 …] [--repeats 3] [--json]

Run it on an otherwise idle machine. Each setting tunes the built-in models on a sample in a process of its
own, idle and beside one process that keeps a core busy, in turns so that drift meets all settings alike.
Times are of one tuning, with what it loads, torch's import left out. The goal, on two cores: at most 2.2
times as long beside the busy process as idle with the runtime's own defaults, and at most 10 % lost when
idle. Another runtime is measured by preloading it: LD_PRELOAD=/path/to/libiomp5.so.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SAMPLE = Path(__file__).resolve().parents[1] / "samples" / "tiger-beach.mp4"
#: "unset": the runtime's own default, which is what the others are held against.
SETTINGS = ("unset", "ours", "GOMP_SPINCOUNT=1000", "GOMP_SPINCOUNT=10000", "OMP_WAIT_POLICY=passive")
#: The first steps allocate; the second session is the one that is timed.
WORK = """
import sys, tempfile, time
sys.path[:0] = {path!r}
if {bare}:
    import torch
import ctxedit
from pathlib import Path
with tempfile.TemporaryDirectory() as folder:
    for steps in (1, {steps}):
        config = {{"clip": {{"frames": 8}}, "tune": {{"steps": steps}}}}
        start = time.perf_counter()
        ctxedit.tune({clip!r}, prompt="a tiger", config=config, runs=Path(folder))
    print(time.perf_counter() - start)
"""


@contextmanager
def _busy(wanted: bool) -> Iterator[None]:
    if not wanted:
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _environment(setting: str) -> dict[str, str]:
    ours = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    environment = {k: v for k, v in os.environ.items() if k not in ours}
    if "=" in setting:
        name, value = setting.split("=", 1)
        environment[name] = value
    return environment


def seconds(setting: str, busy: bool, steps: int, limit: float) -> float:
    """Seconds of one session; infinity where it did not end within the limit."""
    # Loading torch first is what leaves the runtime's own defaults in place.
    values = {
        "path": [str(SAMPLE.parents[1])],
        "bare": setting == "unset",
        "clip": str(SAMPLE),
        "steps": steps,
    }
    command = [sys.executable, "-c", WORK.format(**values)]
    with _busy(busy):
        try:
            done = subprocess.run(
                command, env=_environment(setting), capture_output=True, text=True, timeout=limit, check=True
            )
        except subprocess.TimeoutExpired:
            return float("inf")
    return float(done.stdout.split()[-1])


def measure(settings: list[str], repeats: int, steps: int, limit: float) -> list[dict[str, object]]:
    """One row a setting: medians, their ratios, and the largest over the smallest idle time as noise."""
    times: dict[tuple[str, bool], list[float]] = {(s, b): [] for s in settings for b in (False, True)}
    for turn in range(repeats):
        for setting, busy in times:
            times[setting, busy].append(seconds(setting, busy, steps, limit))
            print(f"turn {turn + 1}: {setting} {'busy' if busy else 'idle'} {times[setting, busy][-1]:.1f} s",
                  file=sys.stderr)  # fmt: skip
    base = statistics.median(times[settings[0], False])
    rows = []
    for setting in settings:
        idle, busy = (statistics.median(times[setting, b]) for b in (False, True))
        noise = max(times[setting, False]) / min(times[setting, False])
        rows.append(
            {
                "setting": setting, "idle": idle, "busy": busy, "idle / first idle": idle / base,
                "busy / first idle": busy / base, "noise": noise,
            }
        )  # fmt: skip
    return rows


def main() -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), help="the first one is the base")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=15, help="tuning steps")
    parser.add_argument("--limit", type=float, default=300, help="seconds for one session")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    load = os.getloadavg()[0]
    if load > 0.5:
        print(
            f"warning: the load is {load:.1f}: the machine is not idle, the figures are noisy",
            file=sys.stderr,
        )
    rows = measure(asked.settings, asked.repeats, asked.steps, asked.limit)
    if asked.json:
        print(json.dumps(rows))
        return 0
    print("| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(v if isinstance(v, str) else f"{v:.2f}" for v in row.values()) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
