"""``ctxedit compare``: several edits in one labelled video, GIF or image."""

import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from asking import FEW, TARGET

from ctxedit.media.probe import probe
from ctxedit.media.write import write_clip, write_image
from ctxedit.provenance import to_text


@pytest.fixture()
def clips(tmp_path):
    """Writes a clip of one grey, told to be made with these settings."""

    def write(name, frames=3, grey=100, size=(32, 48), fps=8, **settings):
        facts = {
            "ctxedit": "1", "kind": "edit", "target": "a panda", "prompt": "a tiger", "preset": "contextdiff",
            "model": "builtin", "seed": 0, "settings": settings, "source": {"name": "t.mp4"},
        }  # fmt: skip
        pixels = np.full((frames, *size, 3), grey, np.uint8)
        return write_clip(tmp_path / name, pixels, Fraction(fps), about=to_text(facts))

    return write


def labels(answer):
    assert answer.code == 0, answer.err
    return [edit["label"] for edit in answer.table["edits"]]


@pytest.mark.parametrize("name", ["out.mp4", "out.webm", "out.gif", "out"])
def test_files_and_folders_stand_beside_each_other(ctxedit, clips, tmp_path, name, frames_of):
    paths = [clips("a.mp4", grey=40), clips("b", grey=120), clips("c.gif", grey=200)]
    answer = ctxedit("compare", *paths, "-o", tmp_path / name)
    assert answer.code == 0 and answer.out.strip() == str(tmp_path / name)
    info = probe(tmp_path / name)
    assert info.frames == 3
    bottom = frames_of(tmp_path / name, 3)[0, -20]
    thirds = [bottom[info.width * (2 * i + 1) // 6].mean() for i in range(3)]
    assert np.allclose(thirds, [40, 120, 200], atol=6)


def test_a_small_source_is_as_large_as_its_edit(ctxedit, clips, tmp_path, frames_of):
    paths = [clips("small.mp4", grey=40, size=(32, 48)), clips("large.mp4", grey=200, size=(128, 192))]
    assert ctxedit("compare", *paths, "-o", tmp_path / "out.mp4").code == 0
    frame = frames_of(tmp_path / "out.mp4", 1)[0].mean(-1)
    sizes = [int((abs(frame - grey) < 12).sum()) for grey in (40, 200)]
    assert sizes == pytest.approx([128 * 192] * 2, rel=0.1)


def test_an_image_has_a_row_for_each(ctxedit, clips, tmp_path):
    paths = [clips("a.mp4"), clips("b.mp4")]
    one = probe_size(ctxedit, paths[:1], tmp_path / "one.png")
    two = probe_size(ctxedit, paths, tmp_path / "two.png")
    assert two[0] == one[0] and two[1] > 1.8 * one[1]


@pytest.mark.parametrize("name", ["out.mp4", "out.png", "out.tif", "out"])
def test_a_finished_comparison_is_known_again(ctxedit, clips, tmp_path, name):
    call = ("compare", clips("a.mp4", grey=40), clips("b.mp4", grey=90), "-o", tmp_path / name)
    first = ctxedit(*call, "--json")
    assert labels(first) == ["a panda #1", "a panda #2"]
    assert ctxedit(*call, "--json").table == first.table
    again = ctxedit(*call)
    assert (again.code, again.out) == (0, f"{tmp_path / name}\n") and "already" in again.err
    assert ctxedit(*call, "--columns", 1).code == 6
    shutil.copyfile(clips("c.mp4", grey=200), tmp_path / "b.mp4")
    assert ctxedit(*call).code == 6, "another clip under the same name"


def probe_size(ctxedit, paths, output):
    answer = ctxedit("compare", *paths, "-o", output)
    assert answer.code == 0, answer.err
    return probe(output).width, probe(output).height


def test_labels_say_what_differs(ctxedit, clips, tmp_path):
    paths = [clips("a.mp4"), clips("b.mp4", **{"edit.guidance": 5.0}), clips("c.mp4")]
    call = ("compare", *paths, "-o", tmp_path / "o.mp4", "--json")
    assert labels(ctxedit(*call)) == ["a panda #1", "a panda (edit.guidance 5.0)", "a panda #2"]
    named = ctxedit(*call, "-y", "--label", "x", "--label", "y", "--label", "z")
    assert labels(named) == ["x", "y", "z"]
    wrong = ctxedit(*call, "-y", "--label", "x")
    assert wrong.code == 2 and "1 label for 3 clips" in wrong.err


def test_a_run_gives_its_source_and_its_edits(ctxedit, made, runs, tmp_path):
    (run,) = runs.iterdir()
    answer = ctxedit("compare", run, "-o", tmp_path / "o.mp4", "--json")
    found = labels(answer)
    assert found[0] == "source" and any(TARGET in label for label in found[1:])
    assert len(set(found)) == len(found) >= 2 and probe(tmp_path / "o.mp4").frames == 4
    told = ctxedit("show", tmp_path / "o.mp4", "--json").table
    assert [part["label"] for part in told["of"]] == found
    assert told["commands"] and all(line.startswith("ctxedit ") for line in told["commands"])


def test_different_lengths_are_refused_or_cut(ctxedit, clips, tmp_path):
    paths = [clips("a.mp4", frames=3), clips("b.mp4", frames=5)]
    call = ("compare", *paths, "-o", tmp_path / "o.mp4")
    refused = ctxedit(*call)
    assert refused.code == 3 and "3 frames" in refused.err and "hint: --frames 3" in refused.err
    assert not (tmp_path / "o.mp4").exists()
    assert ctxedit(*call, "--frames", 3).code == 0 and probe(tmp_path / "o.mp4").frames == 3
    assert ctxedit(*call, "-y", "--frames", 4).code == 3


def test_a_photo_stands_still_beside_a_clip_and_other_rates_are_told(ctxedit, clips, tmp_path):
    photo = write_image(tmp_path / "p.png", np.full((40, 30, 3), 9, np.uint8))
    answer = ctxedit("compare", photo, clips("a.mp4"), clips("b.mp4", fps=4), "-o", tmp_path / "o.mp4")
    assert answer.code == 0 and "4 frames a second, not 8" in answer.err
    info = probe(tmp_path / "o.mp4")
    assert (info.frames, info.fps) == (3, 8)


def test_more_than_fit_in_a_row_fold(ctxedit, clips, tmp_path):
    paths = [clips(f"{i}.mp4") for i in range(3)]
    wide = probe_size(ctxedit, paths, tmp_path / "w.mp4")
    answer = ctxedit("compare", *paths, "-o", tmp_path / "f.mp4", "--columns", 2)
    assert answer.code == 0
    folded = probe(tmp_path / "f.mp4")
    assert folded.width < wide[0] and folded.height > wide[1]


def test_outputs_that_are_inputs_or_exist_and_stray_settings_are_refused(ctxedit, clips, tmp_path):
    a, b = clips("a.mp4"), clips("b.mp4")
    assert ctxedit("compare", a, b, "-o", a, "-y").code == 6
    assert ctxedit("compare", a, "-o", b).code == 6
    assert ctxedit("compare", a, b, "-o", tmp_path / "o.avi").code == 2
    stray = ctxedit("compare", a, b, "-o", tmp_path / "o.mp4", "--guidance", 3)
    assert stray.code == 2 and "--guidance needs --presets" in stray.err
    assert ctxedit("compare").code == 2
    assert ctxedit("compare", tmp_path / "no.mp4", "-o", tmp_path / "o.mp4").code == 3


def test_presets_are_run_and_compared(ctxedit, made, clip, runs, tmp_path):
    root, mine = shutil.copytree(runs, tmp_path / "runs"), tmp_path / "mine.toml"
    assert ctxedit("presets", "cp", "sdedit", mine).code == 0
    few = ("--tune-steps", 2, *FEW, "--runs", root, "-o", tmp_path / "o.mp4", "--json")
    call = ("compare", "--presets", f"contextdiff,{mine}", clip, TARGET, *few)
    answer = ctxedit(*call)
    assert labels(answer) == ["source", "contextdiff", str(mine)]
    assert Path(answer.table["edits"][1]["video"]).name == Path(made.out.strip()).name
    assert "tune: done" in answer.err and answer.err.count("edit “") == 2
    assert [part["preset"] for part in ctxedit("show", tmp_path / "o.mp4", "--json").table["of"][1:]] == [
        "contextdiff", "mine.toml",
    ]  # fmt: skip
    again = ctxedit(*call)
    assert again.code == 0 and "already" in again.err, again.err
    mine.write_text(mine.read_text().replace("strength = 0.", "strength = 0.1"))
    assert ctxedit(*call).code == 6, "other settings in the same file"


@pytest.mark.parametrize("presets", ["contextdif", "ddim,ddim", ""])
def test_wrong_presets_are_refused_before_any_work(ctxedit, clip, tmp_path, no_weights, presets):
    call = ("compare", "--presets", presets, clip, TARGET, "--runs", tmp_path, "-o", tmp_path / "o.mp4")
    assert ctxedit(*call).code == 2
    assert not list(tmp_path.iterdir())


def test_a_source_shows_the_frames_that_were_edited(ctxedit, made, clip, tmp_path, frames_of):
    """Four of its eight frames, without being told."""
    out = tmp_path / "both.gif"
    answer = ctxedit("compare", clip, made.out.strip(), "-o", out)
    assert answer.code == 0, answer.err
    assert probe(out).frames == 4
    other = tmp_path / "other.mp4"
    other.write_bytes(clip.read_bytes() + b"\0")  # another file: its frames are not known to be those
    refused = ctxedit("compare", other, made.out.strip(), "-o", tmp_path / "no.gif")
    assert refused.code == 3 and "--frames 4" in refused.err
