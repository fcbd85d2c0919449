"""Footage that the built-in models do not know."""

from fractions import Fraction

import numpy as np
import pytest

from ctxedit.media.write import write_clip
from ctxedit.runs import Run

FEW = ("--frames", 2, "--tune-steps", 1)


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    frames = np.random.default_rng(0).integers(0, 255, (2, 64, 64, 3), dtype=np.uint8)
    return write_clip(tmp_path_factory.mktemp("noise") / "holiday clip.mp4", frames, Fraction(8))


def test_it_stops_before_tuning_and_names_a_real_checkpoint_with_its_price(ctxedit, noise, tmp_path):
    plain = ("--prompt", "a man is surfing", "--runs", tmp_path)
    answer = ctxedit("run", noise, "a panda is surfing", *plain, *FEW, "--steps", 2)
    assert answer.code == 3
    assert "do not recognise “a man is surfing” in holiday clip.mp4" in answer.err
    command = f"ctxedit run '{noise}' 'a panda is surfing' --prompt 'a man is surfing' --model sd15"
    assert f"hint: for real footage use a real checkpoint: {command}" in answer.err
    assert "4.27 GB" in answer.err and "GiB" in answer.err and "-y goes on" in answer.err
    run = Run.newest(tmp_path)
    assert run.facts("caption")["text"] == "a man is surfing" and not (run.folder / "tune").exists()

    going_on = ctxedit("tune", noise, *plain, *FEW, "-y")
    assert going_on.code == 0 and "warning: the built-in models do not recognise" in going_on.err
    assert ctxedit("tune", noise, *plain, *FEW).code == 0, "what is tuned already is not questioned again"


def test_a_caption_that_is_a_guess_is_called_one(ctxedit, noise):
    answer = ctxedit("caption", noise, *FEW[:2])
    assert answer.code == 0 and f"do not recognise “{answer.out.strip()}” in holiday clip.mp4" in answer.err
    assert "--captioner Salesforce/blip2-opt-2.7b" in answer.err


def test_of_a_drawn_clip_only_a_wrong_prompt_is_said(ctxedit, clip, tmp_path):
    answer = ctxedit("tune", clip, "--prompt", "a boat on the sea", "--runs", tmp_path, *FEW, "--stride", 1)
    assert answer.code == 0 and "do not recognise “a boat on the sea”" in answer.err
    assert "they see “a tiger" in answer.err


def test_other_models_are_not_questioned(ctxedit, noise, stable_diffusion, tmp_path):
    answer = ctxedit(
        "tune", noise, "--prompt", "a man is surfing", "--runs", tmp_path, *FEW, "--model", stable_diffusion,
        "--set", "adapter.width=32", "--set", "adapter.heads=4", "--set", "adapter.blocks=1",
    )  # fmt: skip
    assert answer.code == 0 and "recognise" not in answer.err
