"""``ctxedit eval --video --source``: anyone's edit against its source."""

import json
from fractions import Fraction

import numpy as np
import pytest

from ctxedit.media.geometry import resize
from ctxedit.media.write import write_clip
from ctxedit.metrics import flow, formulas
from ctxedit.synthetic import scenes
from ctxedit.synthetic.scenes import Actor, Scene

PROMPT, SOURCE_PROMPT = "a panda walking on the beach", "a tiger walking on the beach"


def drawn(name, frames=6, size=64):
    scene = Scene((Actor(name, None, 0.5, 0.86, 0.56),), "beach", "plain", "walk", -1, 1.0, (0.5,) * 8)
    return scenes.render(scene, frames, size)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """An edit, its source at its size and at another, and a mask; PNG folders, so that pixels are exact."""
    folder = tmp_path_factory.mktemp("pair")
    source, mask = drawn("tiger")
    write_clip(folder / "edit", drawn("panda")[0], Fraction(8))
    write_clip(folder / "source", source, Fraction(8))
    write_clip(folder / "large", drawn("tiger", size=128)[0], Fraction(8))
    write_clip(folder / "mask", np.rint(mask[..., None] * 255).astype(np.uint8).repeat(3, -1), Fraction(8))
    write_clip(folder / "wide", np.zeros((6, 64, 96, 3), np.uint8), Fraction(8))
    return folder


@pytest.fixture()
def run_folder(made, runs):
    (folder,) = runs.iterdir()
    return folder


def ask(ctxedit, files, *more, source="source"):
    return ctxedit(
        "eval", "--video", files / "edit", "--prompt", PROMPT, "--source", files / source, "--json", *more
    )


def test_every_metric_that_the_inputs_allow(ctxedit, files):
    answer = ask(ctxedit, files, "--source-prompt", SOURCE_PROMPT, "--mask", files / "mask")
    assert answer.code == 0, answer.err
    found = answer.table
    edit, (source, mask) = drawn("panda")[0], drawn("tiger")
    assert found["psnr"] == pytest.approx(formulas.psnr(edit, source))
    assert found["ssim"] == pytest.approx(formulas.ssim(edit, source))
    kept = np.rint(mask * 255) <= 127
    assert found["psnr_kept"] == pytest.approx(formulas.psnr(edit, source, kept))
    assert found["ssim_kept"] == pytest.approx(formulas.ssim(edit, source, kept)) != found["ssim"]
    assert found["warp_error"] == pytest.approx(flow.warp_error(source, edit))
    assert found["frame_accuracy"] == 1 and found["structure"] > 0 and found["clip_model"] == "builtin"
    few = ask(ctxedit, files).table
    assert few["psnr"] == found["psnr"] and not {"psnr_kept", "frame_accuracy"} & few.keys()


def test_the_table_has_a_line_a_metric(ctxedit, files):
    answer = ctxedit(
        "eval", "--video", files / "edit", "--prompt", PROMPT, "--source", files / "source", "-q"
    )
    head, *rows = answer.out.splitlines()
    assert head.split()[:3] == ["metric", "value", "better"] and answer.err == ""
    assert [row.split("  ")[0] for row in rows][:2] == ["CLIP-text", "CLIP-temp"]


def test_a_source_of_another_size_is_resized_and_said(ctxedit, files):
    answer = ask(ctxedit, files, source="large")
    assert "resized from 128×128 to 64×64" in answer.err
    source = resize(drawn("tiger", size=128)[0], 64, 64)
    assert answer.table["psnr"] == pytest.approx(formulas.psnr(drawn("panda")[0], source))


def test_which_frames_of_the_source(ctxedit, files, tmp_path):
    source = drawn("tiger")[0]
    write_clip(tmp_path / "edit", source[1::2], Fraction(4))
    assert ask(ctxedit, tmp_path, "--start", 1, "--stride", 2, source=files / "source").table["psnr"] == "inf"
    first = ask(ctxedit, tmp_path, source=files / "source")
    assert first.table["psnr"] != "inf" and "the first 3 are compared" in first.err


@pytest.mark.parametrize(
    ("more", "source", "code", "said"),
    [
        ((), "wide", 3, "different aspect ratios"),
        (("--start", 3), "source", 3, "selects only 3 of the 6"),
        (("--frames", 9), "source", 3, "9 frames to score"),
        (("--frames", 0), "source", 2, "must be at least 1, or all"),
        (("--stride", 0), "source", 2, "--stride must be at least 1"),
        ((), "nothing", 3, "does not exist"),
        (("--metrics", "clip_txt"), "source", 2, "did you mean clip_text"),
        (("--metrics", "psnr_kept"), "source", 2, "--mask FILE"),
        (("--metrics", "psnr_ideal"), "source", 2, "bench"),
        (("--source-prompt", " "), "source", 3, "source prompt is empty"),
    ],
)
def test_bad_input_is_one_line_before_weights(ctxedit, files, no_weights, more, source, code, said):
    answer = ask(ctxedit, files, *more, source=source)
    assert answer.code == code and said in answer.err and answer.err.count("error:") == 1, answer.err


@pytest.mark.parametrize(
    "more", [("--source", "x"), ("--video", "x", "--prompt", "a", "--source-prompt", "b"), ("--mask", "x")]
)
def test_options_that_need_others(ctxedit, more):
    if more[0] == "--mask":
        more = ("--video", "x", "--prompt", "a", *more)
    assert ctxedit("eval", *more).code == 2


def test_the_command_may_be_left_out_and_a_wrong_one_is_told(ctxedit):
    for ask in (("eval", "--help"), ("eval", "edits", "--help")):
        assert "--source-prompt" in ctxedit(*ask).out
    assert "GENERATED" in ctxedit("eval", "images", "--help").out
    answer = ctxedit("eval", "imges", "a", "b")
    assert answer.code == 2 and "imges" in answer.err, answer.err


def test_chosen_metrics(ctxedit, files, made, run_folder):
    answer = ask(ctxedit, files, "--metrics", "ssim, clip_text")
    assert {"clip_text", "ssim"} <= answer.table.keys() and "psnr" not in answer.table
    answer = ctxedit("eval", "--run", run_folder, "--metrics", "structure", "-q")
    assert answer.code == 0, answer.err
    assert answer.out.splitlines()[0].split() == ["target", "structure", "measured"]
    row = ctxedit("eval", "--run", run_folder, "--json", "-q", "--metrics", "structure").table["edits"][0]
    assert row["structure"] > 0 and "clip_text" not in row
    written = json.loads((run_folder / "metrics.json").read_text())
    (kept,) = [one for one in written if one["video"] == row["video"]]
    assert kept["structure"] == row["structure"] and kept["clip_text"] is not None, "nothing is lost"
