"""How long a run will take: measured by the runs before it."""

from dataclasses import replace

import pytest

from ctxedit.cli.work import duration
from ctxedit.config import Config, merge
from ctxedit.editing.reporter import Reporter
from ctxedit.editing.speed import Stopwatch, Work, note, seconds_of


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("ctxedit.cache.sys.platform", "linux")
    return tmp_path / "cache" / "ctxedit"


@pytest.fixture()
def work():
    return Work("pass", merge(Config(), {"clip": {"frames": 4}}), "cpu", "float32", (64, 32))


def test_the_plan_knows_the_time_of_what_was_measured(ctxedit, clip, tmp_path, cache):
    common = (
        "--prompt",
        "a tiger walking on the beach",
        "--runs",
        tmp_path / "runs",
        "--frames",
        2,
        "--stride",
        1,
    )
    few = (*common, "--tune-steps", 5, "--steps", 5)
    target = "a panda walking on the beach"
    before = ctxedit("run", clip, target, *few, "--dry-run")
    assert "not known on this machine yet" in before.out
    first = ctxedit("run", clip, target, *few)
    assert first.code == 0 and (cache / "speed.json").is_file()
    assert "short measurement" not in first.err, "it would be a large part of so few passes"

    again = ctxedit("run", clip, target, *few, "--dry-run", "--json").table["plan"]
    assert [stage["seconds"] for stage in again["stages"]] == [None] * 5, "what is done takes no time"
    assert "nothing to compute" in ctxedit("run", clip, target, *few, "--dry-run").out
    twice = (*common, "--seed", 1, "--tune-steps", 10, "--steps", 10)
    stages = ctxedit("run", clip, target, *twice, "--dry-run", "--json").table["plan"]["stages"]
    seconds = {stage["name"].split()[0]: stage["seconds"] for stage in stages}
    passes = {stage["name"].split()[0]: stage["evaluations"] for stage in stages}
    assert seconds["tune"] > 0 and seconds["evaluate"] is None
    assert seconds["invert"] / passes["invert"] == pytest.approx(seconds["edit"] / passes["edit"])
    shown = ctxedit("run", clip, target, *twice, "--dry-run").out
    assert "time (estimate)" in shown and "time    about" in shown
    begun = ctxedit("tune", clip, *common, "--tune-steps", 4, "--seed", 2)
    assert "seed 2, preset contextdiff, about" in begun.err


def test_an_estimate_follows_passes_pixels_and_the_machine(work):
    assert seconds_of(work, 3) is None
    note(work, 2.0)
    assert seconds_of(work, 3) == 6.0
    assert seconds_of(replace(work, size=(64, 64)), 3) == 12.0
    assert seconds_of(replace(work, config=merge(work.config, {"clip": {"frames": 8}})), 3) == 12.0
    for other in ({"kind": "tune"}, {"device": "H100"}, {"dtype": "float16"},
                  {"config": merge(work.config, {"model": "sd15"})}):  # fmt: skip
        assert seconds_of(replace(work, **other), 3) is None
    note(work, 4.0)  # the machine is busy now
    assert seconds_of(work, 1) == 3.0


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"%s": []}', '{"%s": {"x": 1}}', '{"%s": {}}', '{"%s": {"0": 1}}']
)
def test_a_damaged_table_is_as_none(work, cache, text):
    cache.mkdir(parents=True)
    (cache / "speed.json").write_text(text.replace("%s", work.name))
    assert seconds_of(work, 3) is None
    note(work, 1.0)
    assert seconds_of(work, 3) == 3.0


def test_a_folder_that_cannot_be_written_costs_only_the_estimate(work, cache):
    cache.parent.mkdir()
    cache.write_text("no folder")
    note(work, 1.0)
    assert seconds_of(work, 1) is None


def test_only_whole_tasks_are_measured():
    def seconds(total, steps):
        watch = Stopwatch(Reporter())
        with watch.task("tune", total) as step:
            for done in steps:
                step(done, "")
        return watch.seconds()

    assert seconds(5, range(1, 6)) > 0
    assert seconds(5, range(3, 6)) is None, "it went on where another process was killed"
    assert seconds(9, range(1, 6)) is None and seconds(3, range(1, 4)) is None


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (89, "89 s"), (90, "2 min"), (5300, "88 min"), (9000, "2 h 30 min")]
)
def test_durations_are_for_people(seconds, text):
    assert duration(seconds) == text


def test_the_measurement_is_made_once_and_changes_nothing(
    ctxedit, clip, tmp_path, cache, frames_of, monkeypatch
):
    """The tuned weights and the edit are those of a run that measured nothing."""
    from safetensors.torch import load_file

    made = []
    for name in ("measured", "known"):
        answer = ctxedit(
            "run", clip, "a panda walking on the beach", "--prompt", "a tiger walking on the beach", "--runs",
            tmp_path / name, "--frames", 2, "--stride", 1, "--tune-steps", 2, "--steps", 12, "--json",
        )  # fmt: skip
        assert answer.code == 0, answer.err
        assert ("short measurement" in answer.err) == (name == "measured")
        run = answer.table["run"]
        made.append(
            (load_file(f"{run}/tune/tuned.safetensors"), frames_of(answer.table["edits"][0]["video"], 2))
        )
    (tuned, edited), (again, edited_again) = made
    assert all((tuned[key] == again[key]).all() for key in again) and (edited == edited_again).all()


def test_a_measurement_sees_as_many_frames_as_a_tuning_step(ctxedit, clip, tmp_path):
    answer = ctxedit(
        "run", clip, "a panda walking on the beach", "--prompt", "a tiger walking on the beach", "--runs",
        tmp_path, "--frames", 4, "--stride", 1, "--set", "tune.frames=2", "--tune-steps", 2, "--steps", 12,
    )  # fmt: skip
    assert answer.code == 0 and "short measurement" in answer.err, answer.err


def test_a_comparison_says_how_long_it_takes(ctxedit, clip, tmp_path, cache):
    listed = tmp_path / "list.toml"
    listed.write_text(
        f"""[[clips]]
path = "{clip}"
prompt = "a tiger walking on the beach"
targets = [{{ prompt = "a panda walking on the beach" }}]
"""
    )
    asked = (
        "bench", listed, "--presets", "ddim", "--out", tmp_path / "bench", "--set", "clip.frames=2", "--set",
        "invert.steps=16", "--set", "edit.steps=16",
    )  # fmt: skip
    before = ctxedit(*asked, "--dry-run")
    assert before.code == 0, before.err
    assert "not known on this machine yet: ddim" in before.out
    assert ctxedit(*asked, "--dry-run", "--json").table["plan"]["seconds"] == {"ddim": None}
    made = ctxedit(*asked)
    assert made.code == 0 and "1 edit, 0 of them done before, about " in made.err, made.err
    assert "[1/1] ddim" in made.err and "Loading" not in made.err
    assert "nothing to compute" in ctxedit(*asked, "--dry-run").out
    more = ctxedit(*asked, "--dry-run", "--set", "seed=1")
    assert "with one worker (estimate)" in more.out and "about" in more.out
