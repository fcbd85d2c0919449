"""The trial: random kills and mutated files. ``python tests/trial --help``."""

# ruff: noqa: E402 - the environment is set before anything reads it

from __future__ import annotations

import os

# One thread: children are forked, results are compared bit for bit, and two jobs share two cores.
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
for _name in [name for name in os.environ if name.startswith("CTXEDIT_")]:
    del os.environ[_name]

import argparse
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[i]) for i in (2, 1)]

import fuzzing
import kills
import report
from children import preload
from report import Trial


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python tests/trial", description=__doc__)
    parser.add_argument("--kills", type=int, default=300, metavar="N")
    parser.add_argument("--mutations", type=int, default=2000, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=max(1, min(4, os.cpu_count() or 1)))
    parser.add_argument(
        "--scenarios", default=",".join(kills.SCENARIOS), metavar="A,B", help="what is killed"
    )
    parser.add_argument(
        "--kinds", default=",".join(fuzzing.KINDS), metavar="A,B", help="which files are mutated"
    )
    parser.add_argument(
        "--only",
        metavar="KIND:N,…",
        help="replay these trials of a report; with its other arguments unchanged",
    )
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep each mutated file that fails there")
    asked = parser.parse_args()
    for name, known in (("scenarios", kills.SCENARIOS), ("kinds", fuzzing.KINDS)):
        chosen = [one for one in getattr(asked, name).split(",") if one]
        if unknown := set(chosen) - set(known):
            parser.error(f"unknown {name}: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
        setattr(asked, name, chosen)
    return asked


def _trials(asked: argparse.Namespace) -> list[tuple[str, str, int, int]]:
    """(what, kind, number of its kind, how many of its kind) of every trial asked for."""
    out = []
    for what, kinds, count in (
        ("kill", asked.scenarios, asked.kills),
        ("file", asked.kinds, asked.mutations),
    ):
        for i in range(count if kinds else 0):
            kind = kinds[i % len(kinds)]
            of_kind = len(range(i % len(kinds), count, len(kinds)))
            out.append((what, kind, i // len(kinds), of_kind))
    if asked.only:
        wanted = set(asked.only.split(","))
        out = [one for one in out if f"{one[1]}:{one[2]}" in wanted]
    return out


def _replay(asked: argparse.Namespace) -> str:
    """The command that draws the same trials again."""
    chosen = f"--kills {asked.kills} --mutations {asked.mutations} --seed {asked.seed}"
    for name, known in (("scenarios", kills.SCENARIOS), ("kinds", fuzzing.KINDS)):
        if getattr(asked, name) != list(known):
            chosen += f" --{name} '{','.join(getattr(asked, name))}'"
    return f"python tests/trial {chosen}"


def _stop(number: int, frame: object) -> None:
    """Stop once: a terminal, or ``timeout``, may send its signal twice."""
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, signal.SIG_IGN)
    raise KeyboardInterrupt


def main() -> int:
    """Run the trial; 0 when nothing failed."""
    asked = _arguments()
    trials = _trials(asked)
    start = time.monotonic()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    preload()
    with tempfile.TemporaryDirectory(prefix="ctxedit-trial-") as place:
        base = Path(place) / "base"
        base.mkdir()
        killed = dict.fromkeys(kind for what, kind, *_ in trials if what == "kill")
        references = {kind: kills.prepare(kills.SCENARIOS[kind], base) for kind in killed}
        ground = fuzzing.Ground(base / "files", list(dict.fromkeys(k for w, k, *_ in trials if w == "file")))
        report.say(f"{len(trials)} trials, prepared in {time.monotonic() - start:.0f} s")

        def one(trial: tuple[str, str, int, int]) -> Trial:
            what, kind, number, of_kind = trial
            rng = random.Random(f"{asked.seed}:{what}:{kind}:{number}")
            folder = Path(place) / f"{what}-{kind}-{number}".replace(" ", "_")
            if what == "kill":
                blow = kills.draw(number, of_kind, references[kind], rng)
                found = kills.kill_once(kills.SCENARIOS[kind], blow, references[kind], base, folder)
                return Trial(what, kind, number, str(blow), found)
            how, found = fuzzing.mutate_once(ground, kind, rng, folder, asked.keep)
            return Trial(what, kind, number, how, found)

        done = report.in_jobs(one, trials, asked.jobs)
    print(report.table(done, _replay(asked), time.monotonic() - start))
    return 1 if any(trial.found for trial in done) or len(done) < len(trials) else 0


if __name__ == "__main__":
    sys.exit(main())
