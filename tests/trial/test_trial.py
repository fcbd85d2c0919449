"""A few kills and mutations in the ordinary suite; ``python tests/trial`` is the whole trial."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


def trial(*arguments, timeout=120.0):
    """The trial in a process of its own: it forks, and pytest's process has threads."""
    plain = {k: v for k, v in os.environ.items() if not k.startswith("CTXEDIT_")}
    return subprocess.run(
        [sys.executable, FOLDER, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=plain,
        timeout=timeout,
    )


def test_a_few_kills_and_mutations():
    kinds = "media a.mp4,media png,mask png,config,preset,recipe"
    done = trial("--kills", 1, "--scenarios", "tune", "--mutations", 6, "--kinds", kinds, "--seed", 1)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "| kill | tune | 1 | 0 |" in done.stdout and "| all | | 7 | 0 |" in done.stdout


@pytest.mark.slow
def test_the_whole_trial():
    done = trial("--kills", 300, "--mutations", 2000, timeout=3600.0)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]


def test_what_is_wrong_is_seen():
    """The trial's own judgements: each fault that it looks for, and none where there is none."""
    from children import Ended, complaint

    def judged(code, err=""):
        return complaint(Ended(code, "", err, 1.0), (0, 2, 3))

    assert judged(0) is None and judged(3, "error: no file\nhint: look\n") is None
    assert "exit 1" in judged(1, "error: odd\nhint: report it\n")
    assert "exit -11" in judged(-11) and "not ended" in judged(None)
    assert "exit 130" in judged(130, "error: interrupted\nhint: go on\n")
    assert "error lines" in judged(3, "hint: look\n") and "hint" in judged(3, "error: no file\n")
    assert "traceback" in judged(0, "Traceback (most recent call last):\n")


def test_trees_are_compared_by_what_is_in_them(tmp_path):
    from trees import contents, difference

    for name, created, seed in (("a", 1, 5), ("b", 2, 5), ("c", 1, 6)):
        folder = tmp_path / name / f"clip-2026010{created}-id"
        folder.mkdir(parents=True)
        (folder / "run.toml").write_text(f'created = "{created}"\nclip = "{folder}/x.mp4"\nseed = {seed}\n')
    a, b, c = (contents(tmp_path / name) for name in "abc")
    assert difference(a, b) is None
    assert difference(a, c) == "different: clip-DATE-id/run.toml"
    assert difference(a, {}) == "missing: clip-DATE-id/run.toml"
    assert difference({}, a) == "left over: clip-DATE-id/run.toml"


def test_rows_are_compared_with_the_passes_of_a_tuning_and_not_of_an_edit(tmp_path):
    from trees import contents, difference

    for name, tune, edit in (("a", 3, 5), ("b", 3, 4), ("c", 2, 5)):
        costs = {"tune": {"evaluations": tune}, "edit": {"evaluations": edit}}
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.jsonl").write_text(json.dumps({"costs": costs}) + "\n")
    a, b, c = (contents(tmp_path / name) for name in "abc")
    assert difference(a, b) is None and difference(a, c) == "different: results.jsonl"


def test_mutations_are_the_seeds_and_never_nothing():
    from mutations import mutate

    for data in (b"frames = 2\nname = 'x'\n", bytes(range(256)) * 4):
        for text in (False, True):
            drawn = [mutate(data, text, random.Random(seed)) for seed in range(200)]
            assert drawn == [mutate(data, text, random.Random(seed)) for seed in range(200)]
            assert all(damaged != data for damaged, _ in drawn) and len({how for _, how in drawn}) > 8


def test_a_kill_is_aimed_at_every_file_event():
    from kills import Undisturbed, draw

    reference = Undisturbed({}, 1.0, 7)
    blows = [draw(number, 28, reference, random.Random(number)) for number in range(28)]
    assert {blow.event for blow in blows} == {*range(7), None}
    assert all((blow.event is None) != (blow.signal is None) for blow in blows)
