"""Damaged artefacts and run files are noticed and made again, with a word."""

import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from damaged import PROMPT, TARGET, Listener, changed

from ctxedit import api
from ctxedit.editing.keys import Keys
from ctxedit.editing.request import Request
from ctxedit.editing.session import Session
from ctxedit.errors import InputError
from ctxedit.media.write import write_clip
from ctxedit.runs import Run
from ctxedit.tables import read_table

DAMAGE = {"empty": lambda data: b"", "half": lambda data: data[: len(data) // 2], "changed": changed}


@pytest.mark.parametrize(
    "file, kind, stages",
    [
        ("tune/tuned.safetensors", "changed", ["tune"]),
        ("tune/tuned.safetensors", "empty", ["tune"]),
        ("tune/adapter.safetensors", "half", []),
        ("inversion.safetensors", "changed", ["invert"]),
        ("edits/*.safetensors", "changed", ["edit"]),
        ("edits/*.safetensors", "half", ["edit"]),
        ("edits/*beach-??????.mp4", "empty", []),
        ("edits/*-side-by-side.mp4", "half", []),
        ("edits/*-sheet.png", "changed", []),
    ],
)
def test_a_damaged_artefact_is_made_again_with_a_word(work, run, file, kind, stages):
    (path,) = run.folder.glob(file)
    whole = path.read_bytes()
    path.write_bytes(DAMAGE[kind](whole))
    _, heard = work()
    assert heard.tasks == stages
    assert any(path.name in line and "again" in line for line in heard.warned)
    if "adapter" not in file:  # safetensors writes its metadata in any order
        assert path.read_bytes() == whole
    result, heard = work()
    assert result.reused and not heard.tasks and not heard.warned


def test_a_damaged_edit_is_not_scored(run):
    (path,) = run.folder.glob("edits/*.safetensors")
    path.write_bytes(changed(path.read_bytes()))
    with pytest.raises(InputError, match="no edits to score"):
        api.evaluate_run(run.folder, reporter=(heard := Listener()))
    assert any("damaged" in line and "ctxedit edit" in line for line in heard.warned)


BROKEN = {
    "empty": lambda text: "",
    "half": lambda text: text[: len(text) // 2],
    "no last stage": lambda text: text[: text.rindex("[stages.")],  # still TOML
    "types": lambda text: text.replace('preset = "contextdiff"', "preset = 3"),
    "stage": lambda text: text.replace("size = ", 'size = "1"#'),
    "config": lambda text: text.replace("seed = ", "speed = "),
    "nested": lambda text: "a = " + "[" * 2000,
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_run_file_is_begun_anew_with_a_word(work, run, kind):
    file = run.folder / "run.toml"
    broken = BROKEN[kind](file.read_text())
    file.write_text(broken)
    with pytest.raises(InputError, match=r"run\.toml is damaged") as error:
        Run(run.folder)
    assert error.value.hint
    warned = []
    with pytest.raises(InputError, match="no undamaged run"):
        Run.newest(run.folder.parent, warned.append)
    assert len(warned) == 1
    result, heard = work()
    assert heard.run.folder == run.folder and not result.reused
    assert heard.warned and "starts over" in heard.warned[0]
    assert (run.folder / "run.toml.broken").read_text() == broken
    assert Run(run.folder).edits()


def test_the_newest_whole_run_is_taken(run, clip, settings):
    other = Run.create(run.folder.parent, clip, "ddim", settings, "0" * 16)
    (other.folder / "run.toml").write_text("")
    warned = []
    assert Run.newest(run.folder.parent, warned.append).folder == run.folder
    assert str(other.folder) in warned[0]


def test_a_run_without_checksums_is_made_again_once(run, settings):
    """As ctxedit 0.1 left them."""
    file = run.folder / "run.toml"
    table = read_table(file)
    table["clip_hash"] = table["clip_hash"][:16]
    for entry in table["stages"].values():
        entry["files"] = [one["name"] for one in entry["files"]]
    file.write_text(tomli_w.dumps(table))
    for times in (1, 0):
        heard = Listener()
        with Session(Request.of_run(Run(run.folder), warn=heard.warn), heard) as session:
            assert session.edit(TARGET).reused == (times == 0)
        assert [line for line in heard.warned if "older ctxedit" in line] == heard.warned[:times]
        assert heard.tasks == ["tune", "invert", "edit"] * times


def test_a_still_that_changed_in_place_is_another_clip(settings, tmp_path):
    frames = tmp_path / "frames"
    write_clip(frames, np.random.default_rng(0).integers(0, 255, (3, 64, 64, 3), dtype=np.uint8), Fraction(8))

    def identity():
        return Keys(Request(frames, settings)).identity(PROMPT)

    before, file = identity(), Path(frames / "00001.png")
    seen = file.stat()
    file.write_bytes(changed(file.read_bytes()))
    os.utime(file, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    assert identity() != before
    (frames / ".DS_Store").write_bytes(b"x")
    file.write_bytes(changed(file.read_bytes()))
    assert identity() == before
