"""``ctxedit runs``: what is there, one of them, and taking away what is no longer needed."""

import os
import shutil
import time

import pytest
from asking import TARGET

from ctxedit.locks import held
from ctxedit.run_file import read_run, write_toml


@pytest.fixture()
def several(made, runs, tmp_path):
    """Three copies of a run: of now, of an hour ago without edits, of forty days ago."""
    root = tmp_path / "runs"
    for name, age in (("now", 0), ("hour", 3600), ("old", 40 * 86400)):
        folder = shutil.copytree(next(runs.iterdir()), root / name)
        # Other tests edit the shared run; only the edit that it was made with is looked at here.
        table = read_run(folder / "run.toml")
        for name in [name for name in table["stages"] if name.startswith("edit/")][1:]:
            del table["stages"][name]
        write_toml(folder / "run.toml", table)
        os.utime(folder / "run.toml", (time.time() - age,) * 2)
    file = root / "hour" / "run.toml"
    table = read_run(file)
    table["stages"] = {name: one for name, one in table["stages"].items() if not name.startswith("edit/")}
    write_toml(file, table)
    os.utime(file, (time.time() - 3600,) * 2)
    return root


def names(answer, key="runs"):
    return [os.path.basename(row["folder"] if isinstance(row, dict) else row) for row in answer.table[key]]


def test_ls_lists_the_newest_first_with_what_one_looks_for(ctxedit, several, clip):
    answer = ctxedit("runs", "ls", "--runs", several, "--json")
    assert answer.code == 0, answer.err
    assert names(answer) == ["now", "hour", "old"]
    first = answer.table["runs"][0]
    assert first["clip"] == str(clip.resolve()) and first["preset"] == "contextdiff"
    assert first["prompt"] and first["edits"] == [TARGET]
    assert first["bytes"] == sum(f.stat().st_size for f in (several / "now").rglob("*") if f.is_file())
    text = ctxedit("runs", "ls", "--runs", several).out
    assert "40 days ago" in text and "1 hour ago" in text and "just now" in text and "MiB" in text


def test_show_tells_the_settings_that_differ_and_the_edits(ctxedit, several):
    answer = ctxedit("runs", "show", "now", "--runs", several, "--json")
    assert answer.code == 0, answer.err
    suite = {"dtype": "float32", "upscale.scale": 1}
    assert answer.table["settings"] == suite | {
        "clip.frames": 4, "tune.steps": 2, "invert.steps": 4, "edit.steps": 4,
    }  # fmt: skip
    (edit,) = answer.table["edits"]
    assert edit["target"] == TARGET and edit["exists"]
    assert TARGET in ctxedit("runs", "show", several / "now").out
    assert ctxedit("runs", "show", "nothing", "--runs", several).code == 3


def test_rm_asks_first_and_removes_only_what_was_named(ctxedit, several):
    refused = ctxedit("runs", "rm", "old", "--runs", several)
    assert refused.code == 2 and "1 run" in refused.err and "-y" in refused.err and (several / "old").is_dir()
    assert ctxedit("runs", "rm", "old", "missing", "-y", "--runs", several).code == 3
    assert (several / "old").is_dir()
    assert ctxedit("runs", "rm", "old", "-y", "--runs", several).code == 0
    assert sorted(os.listdir(several)) == ["hour", "now"]


def test_a_run_that_is_being_worked_in_is_not_removed(ctxedit, several):
    with held(several / "now" / ".work.lock"):
        for command in (("rm", "hour", "now"), ("prune", "--older", "0h")):
            answer = ctxedit("runs", *command, "-y", "--runs", several)
            assert answer.code == 6 and "working in" in answer.err
        assert sorted(os.listdir(several)) == ["hour", "now", "old"]
    assert ctxedit("runs", "rm", "now", "-y", "--runs", several).code == 0


def test_rm_of_a_link_keeps_the_folder_that_it_names(ctxedit, several, tmp_path):
    run = next(several.iterdir())
    (tmp_path / "linked").symlink_to(run)
    answer = ctxedit("runs", "rm", "linked", "-y", "--runs", tmp_path)
    assert (answer.code, answer.out) == (0, f"{tmp_path / 'linked'}\n")
    assert f"is a link: the folder that it names is kept: {run}" in answer.err
    assert run.is_dir() and not (tmp_path / "linked").is_symlink()


@pytest.mark.parametrize(
    ("conditions", "removed"),
    [
        (["--older", "30d"], ["old"]),
        (["--older", "30m"], None),
        (["--no-edits"], ["hour"]),
        (["--keep", "1"], ["hour", "old"]),
        (["--keep", "1", "--older", "2d"], ["old"]),
        (["--keep", "9"], []),
        ([], None),
    ],
)
def test_prune_removes_what_meets_every_condition(ctxedit, several, conditions, removed):
    call = ("runs", "prune", *conditions, "--runs", several)
    assert "no run meets the conditions" in ctxedit(*call, "--older", "9999d").err
    looked = ctxedit(*call, "--dry-run", "--json")
    if removed is None:
        assert looked.code == 2
        return
    assert names(looked, "remove") == removed and len(os.listdir(several)) == 3
    assert ctxedit(*call, "-y").code == 0
    assert sorted(os.listdir(several)) == sorted({"now", "hour", "old"} - set(removed))


def test_a_broken_run_is_named_and_the_rest_are_listed(ctxedit, several):
    (several / "old" / "run.toml").write_text("")
    answer = ctxedit("runs", "ls", "--runs", several, "--json")
    assert answer.code == 0 and names(answer) == ["now", "hour"] and str(several / "old") in answer.err


def test_no_runs_is_no_error(ctxedit, tmp_path):
    answer = ctxedit("runs", "ls", "--runs", tmp_path)
    assert (answer.code, answer.out) == (0, "") and "no runs" in answer.err


def test_edits_that_differ_in_a_setting_are_told_apart(ctxedit, made, runs, tmp_path):
    root = tmp_path / "runs"
    shutil.copytree(runs, root)
    again = ctxedit("edit", TARGET, "--runs", root, "--set", "edit.guidance=5", "--seed", 3)
    assert again.code == 0, again.err
    (run,) = root.iterdir()
    shown = ctxedit("runs", "show", run, "--json").table["edits"]
    assert shown[-1]["label"].startswith(f"{TARGET} (edit.guidance 5.0, seed 3")
    assert len({edit["label"] for edit in shown}) == len(shown)
    scored = ctxedit("eval", "--runs", root, "--json").table["edits"]
    assert [row["label"] for row in scored] == [edit["label"] for edit in shown]
    text = ctxedit("eval", "--runs", root).out
    assert "edit.guidance 5.0" in text and os.path.basename(again.out.strip()) in text
