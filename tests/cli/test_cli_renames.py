"""Settings under the names that they had in earlier versions."""

import json

import pytest
import tomli_w

from ctxedit import provenance
from ctxedit.config import Config, merge, setting_names, to_table
from ctxedit.renames import RENAMED, current_name, variable_of
from ctxedit.runs import Run
from ctxedit.tables import nested, read_table

ALL = pytest.mark.parametrize(("old", "new"), RENAMED.items())


def old_value(new):
    table, key = new.split(".")
    return to_table(Config())[table][key]


@ALL
def test_what_a_person_writes_under_an_old_name_is_refused_with_the_new_one(
    ctxedit, clip, tmp_path, monkeypatch, old, new
):
    assert new in setting_names() and old not in setting_names()
    plan = ("run", clip, "--target", "a cat", "--runs", tmp_path, "--dry-run")
    file = tmp_path / "mine.toml"
    for table, name in (("", old), ("builtin.", f"builtin.{old}")):
        file.write_text(tomli_w.dumps(nested(name, old_value(new))))
        for option in ("--config", "--preset"):
            answer = ctxedit(*plan, option, file)
            assert answer.code == 2 and f"error: {name} is now called {table}{new}" in answer.err
            assert f"hint: write {table}{new} instead" in answer.err
    answer = ctxedit(*plan, "--set", f"{old}={json.dumps(old_value(new))}")
    assert answer.code == 2 and f"error: {old} is now called {new}" in answer.err
    monkeypatch.setenv(variable_of(old), "1")
    answer = ctxedit(*plan)
    assert answer.code == 2 and f"{variable_of(old)} is now called {variable_of(new)}" in answer.err


def test_a_run_of_an_earlier_version_is_read_with_its_values(ctxedit, clip, tmp_path):
    changed = {
        "tune": {"trainable_modules": ["adapter"], "max_grad_norm": 0.5},
        "fusion": {"self_replace_steps": 0.25, "word_weights": {"cat": 2.0}},
    }
    run = Run.create(tmp_path, clip, "ddim", merge(Config(), changed), "0123456789")
    run.finish(
        "edit/a-cat", "key", [], target="a cat", video="v.mp4", settings={"fusion.max_resolution": 0.5}
    )
    table = read_table(run.folder / "run.toml")
    for old, new in RENAMED.items():
        (name, key), last = new.split("."), old.split(".")[1]
        table["config"][name][last] = table["config"][name].pop(key)
    table["stages"]["edit/a-cat"]["facts"]["settings"] = {"fusion.finest": 0.5}
    (run.folder / "run.toml").write_text(tomli_w.dumps(table))
    again = Run(run.folder)
    assert again.config == run.config and again.config.fusion.word_weights == {"cat": 2.0}
    assert again.facts("edit/a-cat")["settings"] == {"fusion.max_resolution": 0.5}
    assert ctxedit("runs", "show", run.folder).code == 0


def test_facts_in_a_result_of_an_earlier_version_make_a_command_of_today():
    facts = {
        "ctxedit": "0.1", "kind": "edit", "preset": "ddim", "model": "builtin", "seed": 1, "target": "a cat",
        "settings": {"fusion.self_share": 0.25, "fusion.words.cat": 2.0, "edit.eta": 1.0},
    }  # fmt: skip
    (line,) = provenance.commands(provenance.from_text(json.dumps({"ctxedit": "", "kind": "x", **facts})))
    for part in ("fusion.self_replace_steps=0.25", "fusion.word_weights.cat=2.0", "edit.eta=1.0"):
        assert f"--set {part}" in line
    assert current_name("edit.eta") == "edit.eta"


@pytest.mark.parametrize(
    ("key", "guess"),
    [("fusion.self_replace", "fusion.self_replace_steps"), ("builtin.edit.guidence", "builtin.edit.guidance"),
     ("edit.max_resolution", "fusion.max_resolution"), ("captoner", "captioner")],
)  # fmt: skip
def test_a_misspelt_setting_is_answered_with_the_nearest(ctxedit, clip, tmp_path, key, guess):
    file = tmp_path / "mine.toml"
    file.write_text(tomli_w.dumps(nested(key, 0.5)))
    answer = ctxedit("run", clip, "--target", "a cat", "--config", file, "--dry-run")
    assert answer.code == 2 and f"unknown key {key}" in answer.err
    assert f"did you mean '{guess}'?" in answer.err
