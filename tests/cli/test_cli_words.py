"""Saying what one wants: prompts as arguments, orders instead of descriptions, help, version, completion."""

import os
import subprocess
import sys

import pytest
from asking import FEW, TARGET

from ctxedit import __version__


def test_the_target_is_an_argument_or_an_option(ctxedit, made, clip, runs):
    same = ("--tune-steps", 2, *FEW, "--runs", runs)
    assert ctxedit("run", clip, TARGET, *same).out == made.out
    edits = [
        ctxedit("edit", TARGET, "--runs", runs).out,
        ctxedit("edit", "--target", TARGET, "--runs", runs).out,
        ctxedit("edit", clip, TARGET, "--runs", runs).out,
    ]
    assert edits == [made.out] * 3


@pytest.mark.parametrize(
    "arguments",
    [["run", "CLIP"], ["edit"], ["edit", "one", "two", "three"], ["edit", "CLIP", "x", "--run", "r"]],
)
def test_no_target_or_too_many_are_errors_of_usage(ctxedit, clip, arguments):
    answer = ctxedit(*[clip if a == "CLIP" else a for a in arguments])
    assert answer.code == 2 and "hint: " in answer.err


def test_edit_of_a_clip_without_a_run_names_the_command_that_makes_one(ctxedit, made, runs, tmp_path):
    other = tmp_path / "other.mp4"
    other.write_bytes(b"x")
    answer = ctxedit("edit", other, TARGET, "--runs", runs)
    assert answer.code == 3 and f"no run of {other}" in answer.err and f"ctxedit tune {other}" in answer.err


def test_an_order_gets_an_example_made_from_the_caption(ctxedit, made, runs, no_weights):
    answer = ctxedit("edit", "turn the tiger into a panda", "--runs", runs)
    assert answer.code == 3 and "describes the finished clip" in answer.err
    (hint,) = [line for line in answer.err.splitlines() if line.startswith("hint: ")]
    assert "“a panda " in hint and "-y" in hint
    assert ctxedit("edit", "turn the tiger into a panda", "--runs", runs, "--dry-run").code == 3
    assert ctxedit("edit", "turn the tiger into a panda", "--runs", runs, "--dry-run", "-y").code == 0


def test_a_clip_in_the_commands_place_gets_the_right_command(ctxedit, clip):
    answer = ctxedit(clip, "a panda")
    assert answer.code == 2 and "is a clip, not a command" in answer.err
    assert f"ctxedit run '{clip}' 'a panda'" in answer.err


def test_help_of_a_command_and_version(ctxedit):
    assert ctxedit("help", "run").out == ctxedit("run", "--help").out
    assert ctxedit("help", "bench", "study").out == ctxedit("bench", "study", "--help").out
    assert ctxedit("help").out == ctxedit("--help").out
    assert ctxedit("-V").out == f"ctxedit {__version__}\n"
    assert ctxedit("help", "nothing").code == 2
    assert "--install-completion" in ctxedit("--help").out


def test_help_shows_defaults_in_brackets_and_no_type_beside_switches(ctxedit):
    text = ctxedit("run", "--help").out
    assert "[default: contextdiff]" in " ".join(text.replace("│", " ").split()) and "<bool>" not in text


@pytest.mark.parametrize(
    ("words", "values"),
    [
        ("ctxedit run --preset tune", {"tune-a-video", "tune-a-video+adapter"}),
        ("ctxedit t2i --model sd1", {"sd14", "sd15"}),
        ("ctxedit edit --run mine/", {"mine/one", "mine/two"}),
    ],
)
def test_completion_offers_presets_models_and_runs(words, values, tmp_path):
    for name in ("one", "two"):
        (tmp_path / "mine" / name).mkdir(parents=True)
        (tmp_path / "mine" / name / "run.toml").write_text("")
    environment = os.environ | {
        "_CTXEDIT_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" ")),
        "CTXEDIT_RUNS": "mine",
    }  # fmt: skip
    code = "import sys; from ctxedit.cli import main; sys.exit(main([]))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, set(done.stdout.split()), done.stderr) == (0, values, "")
