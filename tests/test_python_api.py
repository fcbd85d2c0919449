"""The Python API as a notebook uses it: arrays in, arrays, pictures and HTML out."""

import base64
import json
import logging
import os
import sys
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

import ctxedit
from ctxedit import notebook
from ctxedit.display import facts_html, media_html
from ctxedit.errors import ConfigError, InputError
from ctxedit.media.arrays import clip_path, mask_path
from ctxedit.media.geometry import plan_fit
from ctxedit.media.mask import read_mask
from ctxedit.media.probe import probe
from ctxedit.media.read import read_frames
from ctxedit.media.write import write_clip
from ctxedit.quiet import while_importing
from ctxedit.synthetic import scenes
from ctxedit.synthetic.scenes import Actor, Scene

FEW = {"tune": {"steps": 1}, "invert": {"steps": 2}, "edit": {"steps": 2}}
PROMPT, TARGET = "a tiger walking on the beach", "a panda walking on the beach"


@pytest.fixture(scope="module")
def frames():
    scene = Scene(
        (Actor("tiger", None, 0.5, 0.86, 0.56),), "beach", "plain", "walk", -1, 1.0, (0.5,) * 8
    )  # fmt: skip
    return scenes.render(scene, 3, 64)[0]


@pytest.fixture(scope="module")
def edited(frames, tmp_path_factory):
    """An edit of an array, all stages, with a mask that is one."""
    runs = tmp_path_factory.mktemp("runs")
    allowed = np.zeros((64, 64), bool)
    allowed[16:] = True
    return ctxedit.run(frames, TARGET, PROMPT, config=FEW, mask=allowed, runs=runs), runs


def test_run_makes_all_stages_of_an_array_and_scores_them(edited, frames):
    result, runs = edited
    assert result.target == TARGET and not result.reused and result.files.side_by_side.is_file()
    assert result.figures.table()["clip_text"] is not None
    (folder,) = [file.parent for file in runs.glob("*/run.toml")]
    (row,) = json.loads((folder / "metrics.json").read_text())
    assert row["target"] == TARGET and row["video"] == str(result.files.video)
    again = ctxedit.run(list(frames), [TARGET], PROMPT, config=FEW, mask=result_mask(runs), runs=runs)
    assert [one.reused for one in again] == [True], "the same pixels are the same clip"


def result_mask(runs):
    (mask,) = (runs / "inputs").glob("mask-*.png")
    return mask


def test_a_result_gives_its_frames_as_array_and_pictures(edited, frames):
    result = edited[0]
    assert result.frames.dtype == np.uint8 and result.frames.shape == frames.shape
    assert (result.frames[:, :16] == frames[:, :16]).all(), "outside the mask they are the source's"
    assert [np.asarray(image).tolist() for image in result.images] == result.frames.tolist()


def test_a_result_shows_its_video_and_a_run_its_facts(edited):
    result, runs = edited
    shown = result._repr_html_()
    encoded = base64.b64encode(result.files.video.read_bytes()).decode()
    assert f'<video controls autoplay loop muted playsinline src="data:video/mp4;base64,{encoded}"' in shown
    run = ctxedit.Run(next(runs.glob("*/run.toml")).parent)
    told = run._repr_html_()
    assert all(f"<td>{fact}</td>" in told for fact in (PROMPT, TARGET, "contextdiff", "builtin", run.folder))


def test_what_browsers_cannot_show_is_named(tmp_path, monkeypatch):
    file = tmp_path / "a<b.mkv"
    file.write_bytes(b"1")
    assert media_html(file, "<i>") == (
        f"<figure><code>{tmp_path}/a&lt;b.mkv</code><figcaption>&lt;i&gt;</figcaption></figure>"
    )
    picture = tmp_path / "a.png"
    picture.write_bytes(b"1")
    assert 'src="data:image/png;base64,MQ=="' in media_html(picture, "")
    monkeypatch.setattr("ctxedit.display.EMBEDDED", 0)
    assert "base64" not in media_html(picture, "")
    assert facts_html({"a": "<b>"}) == "<table><tr><th>a</th><td>&lt;b&gt;</td></tr></table>"


def test_evaluate_takes_arrays_and_pictures(edited, frames):
    images = [Image.fromarray(frame) for frame in edited[0].frames]
    figures = ctxedit.evaluate(images, TARGET, source=frames, source_prompt=PROMPT).table()
    there = ctxedit.evaluate(edited[0].frames, TARGET, source=images, source_prompt=PROMPT).table()
    assert figures["psnr"] < 60 and figures["clip_text"] == there["clip_text"]
    assert there["psnr"] == float("inf")


def test_frames_are_kept_without_loss_and_once(frames, tmp_path):
    path = clip_path(frames, tmp_path)
    assert (read_frames(path, frames=3).frames == frames).all() and probe(path).fps == Fraction(8)
    assert clip_path([Image.fromarray(one) for one in frames], tmp_path) == path
    photo = clip_path(frames[0], tmp_path)
    assert probe(photo).kind == "image" and (np.asarray(Image.open(photo)) == frames[0]).all()
    assert clip_path(Image.fromarray(frames[0]).convert("RGBA"), tmp_path) == photo
    assert clip_path(str(path), tmp_path) == path
    allowed = np.zeros((3, 64, 64), np.uint8)
    allowed[1, :32] = 255
    fit = plan_fit(64, 64, 64, 8)
    assert (read_mask(mask_path(allowed, tmp_path), 3, 0, 1, fit) == allowed / 255).all()


@pytest.mark.parametrize(
    "clip",
    [np.zeros((2, 8, 8, 3)), np.zeros((8, 8), np.uint8), np.zeros((2, 8, 8, 4), np.uint8),
     np.zeros((0, 8, 8, 3), np.uint8), [np.zeros((8, 8, 3), np.uint8), np.zeros((4, 8, 3), np.uint8)], 3],
    ids=["float", "grey", "alpha", "none", "sizes", "number"],
)  # fmt: skip
def test_other_arrays_are_refused(clip, tmp_path):
    with pytest.raises(InputError) as error:
        ctxedit.tune(clip, PROMPT, runs=tmp_path)
    assert "uint8 RGB of shape (frames, height, width, 3)" in error.value.hint
    assert not list(tmp_path.rglob("*.png"))


def test_what_is_no_text_and_no_number_of_pictures_is_refused(frames, tmp_path):
    for targets, prompt in (((3,), PROMPT), (TARGET, 3)):
        with pytest.raises(InputError, match="is not text: 3"):
            ctxedit.run(frames, targets, prompt, runs=tmp_path)
    for targets in (None, 5, b"a tiger"):
        with pytest.raises(InputError, match="the target is not text"):
            ctxedit.run(frames, targets, PROMPT, runs=tmp_path)
    with pytest.raises(InputError, match="the prompt is not text: None"):
        ctxedit.evaluate(frames, None)
    for text in (None, [TARGET]):
        with pytest.raises(InputError, match="the text is"):
            ctxedit.generate(text)
    with pytest.raises(ConfigError, match="weight is not a finite number"):
        ctxedit.generate({TARGET: "much"})
    for count in (0, "2", 1.5):
        with pytest.raises(ConfigError, match="count = "):
            ctxedit.generate(TARGET, count=count)


def test_what_is_no_run_is_refused():
    with pytest.raises(InputError, match="the run is NoneType"):
        ctxedit.edit(None, TARGET)
    with pytest.raises(InputError, match="the run is int"):
        ctxedit.evaluate_run(3)


def test_run_wants_targets_and_one_output_for_one(frames, tmp_path):
    for targets, output in (([], None), ([TARGET, PROMPT], "a.mp4")):
        with pytest.raises(ConfigError):
            ctxedit.run(frames, targets, PROMPT, output=output, runs=tmp_path)


def test_unknown_footage_stops_in_python_as_well(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (2, 64, 64, 3), dtype=np.uint8)
    with pytest.raises(InputError, match="do not recognise"):
        ctxedit.run(noise, TARGET, "a man is surfing", config=FEW, runs=tmp_path)
    assert ctxedit.tune(noise, "a man is surfing", config=FEW, any_footage=True, runs=tmp_path).folder


class Shell:
    kernel = object()


def test_a_notebook_sees_messages_and_bars(frames, tmp_path, monkeypatch, capsys):
    assert type(notebook.default_reporter()) is ctxedit.Reporter
    monkeypatch.setitem(sys.modules, "IPython", type("IPython", (), {"get_ipython": Shell}))
    clip = write_clip(tmp_path / "tiger.mp4", frames, Fraction(8))
    ctxedit.tune(clip, PROMPT, config=FEW, runs=tmp_path)
    said = capsys.readouterr()
    assert "3 frames of tiger.mp4 at 64×64" in said.out
    assert "tune: 100%" in said.err and "1/1" in said.err and "loss" in said.err
    assert "Loading weights" not in said.err
    monkeypatch.setattr(Shell, "kernel", None)
    assert type(notebook.default_reporter()) is ctxedit.Reporter, "a terminal's IPython is no notebook"


def test_libraries_are_silent_while_a_verb_runs_and_as_before_afterwards(monkeypatch):
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    before = diffusers_logging.get_verbosity(), transformers_logging.get_verbosity()
    with notebook.quiet_libraries():
        assert transformers_logging.get_verbosity() == diffusers_logging.get_verbosity() == logging.ERROR
        assert not transformers_logging.is_progress_bar_enabled()
    assert (diffusers_logging.get_verbosity(), transformers_logging.get_verbosity()) == before
    monkeypatch.setenv("CTXEDIT_DEBUG", "1")
    with notebook.quiet_libraries():
        assert transformers_logging.get_verbosity() == before[1]


def test_libraries_are_silent_when_they_are_first_imported(monkeypatch):
    monkeypatch.delitem(sys.modules, "transformers")  # as if it had not been imported yet
    monkeypatch.delenv("TRANSFORMERS_VERBOSITY", raising=False)
    level = logging.getLogger("transformers").level
    try:
        with while_importing():
            assert os.environ["TRANSFORMERS_VERBOSITY"] == "error"
        assert "TRANSFORMERS_VERBOSITY" not in os.environ
        assert logging.getLogger("transformers").level == logging.WARNING
        monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "info")
        with while_importing():
            assert os.environ["TRANSFORMERS_VERBOSITY"] == "info", "what the user set stays"
    finally:
        logging.getLogger("transformers").setLevel(level)
