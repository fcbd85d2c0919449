"""A real run takes the steps of the path that ``ctxedit/README.md`` describes."""

import os
import re
import sys
from pathlib import Path

import pytest
from asking import TARGET

import ctxedit as package

ROOT = Path(package.__file__).parent
#: A step of the page, the file and the function that it is about, in the order of their calls.
WALK = [
    (1, "cli/run.py", "run"),
    (1, "cli/arguments.py", "targets"),
    (1, "cli/arguments.py", "settings"),
    (1, "media/probe.py", "probe"),
    (2, "cli/fetching.py", "settle"),
    (3, "editing/plan.py", "make"),
    (3, "media/probe.py", "probe"),
    (3, "editing/speed.py", "seconds_of"),
    (4, "editing/session.py", "edit_all"),
    (4, "editing/stages.py", "stage_named"),
    (4, "editing/footage.py", "check_footage"),
    (5, "editing/parts.py", "prepared"),
    (5, "stages/prepare.py", "prepare"),
    (5, "media/read.py", "read_frames"),
    (5, "editing/parts.py", "latents"),
    (5, "models/backbones/stable_diffusion.py", "encode"),
    (6, "stages/tune.py", "tune"),
    (6, "stages/invert.py", "invert"),
    (7, "editing/stages.py", "edited_frames"),
    (7, "stages/edit.py", "edit"),
    (7, "models/alignment.py", "align"),
    (7, "models/backbones/stable_diffusion.py", "condition"),
    (8, "stages/sample.py", "sample"),
    (8, "models/backbones/stable_diffusion.py", "raw"),
    (8, "models/attention.py", "in_effect"),
    (9, "models/attention.py", "__call__"),
    (9, "models/attention.py", "current_view"),
    (10, "models/backbones/stable_diffusion.py", "decode"),
    (10, "stages/prepare.py", "unpad"),
    (10, "models/tensors.py", "save_tensors"),
    (11, "provenance.py", "facts"),
    (11, "stages/report.py", "write"),
    (11, "media/write.py", "write_clip"),
    (12, "runs.py", "_note"),
    (12, "metrics/evaluate.py", "evaluate"),
    (12, "cli/run.py", "_scored"),
]


@pytest.fixture(scope="module")
def steps():
    """The page's numbered steps."""
    page = (Path(__file__).parents[2] / "ctxedit" / "README.md").read_text(encoding="utf-8")
    walk = page.partition("**The path of a prompt")[2].partition("\n## ")[0]
    return [" ".join(step.split()) for step in re.split(r"\n\d+\. ", walk)[1:]]


@pytest.fixture(scope="module")
def calls(clip, made, tmp_path_factory):
    """All calls of the package's functions in a run; ``made`` has imported everything before."""
    from asking import call

    found = []

    def note(frame, event, _):
        if event == "call" and frame.f_code.co_filename.startswith(f"{ROOT}{os.sep}"):
            found.append((Path(frame.f_code.co_filename).relative_to(ROOT).as_posix(), frame.f_code.co_name))

    few = ("--frames", 2, "--stride", 1, "--steps", 2, "--tune-steps", 1)
    runs = tmp_path_factory.mktemp("walk")
    before = sys.getprofile()
    sys.setprofile(note)
    try:
        answer = call("run", clip, TARGET, "--prompt", "a tiger walking on the beach", *few, "--runs", runs)
    finally:
        sys.setprofile(before)
    assert answer.code == 0, answer.err
    return found


def test_the_walk_takes_the_steps_of_the_page(calls, steps):
    at = 0
    for step, file, function in WALK:
        assert (file, function) in calls[at:], f"step {step}: {file}, {function} is not called here"
        at = calls.index((file, function), at) + 1


def test_the_page_has_every_step_and_names_no_file_that_is_not_visited(calls, steps):
    assert len(steps) <= 12 and {step for step, *_ in WALK} == set(range(1, len(steps) + 1))
    visited = {file for file, _ in calls}
    for step in steps:
        for named in re.findall(r"`([\w/]+\.py)`", step):
            assert named in visited, f"{named} is named, and not visited"
    for step, file, _ in WALK:
        folder = file.rpartition("/")[0]
        before = " ".join(steps[:step])
        assert f"`{file}`" in before or f"`{folder}/`" in before, f"step {step} does not name {file}"
