"""The command line as a person has it, a clip and a run to ask for."""

from fractions import Fraction
from functools import partial

import numpy as np
import pytest
from asking import FEW, TARGET, call
from small_recipes import write_recipe

#: Set by the suite for all tests.
SUITE = ("CTXEDIT_DTYPE", "CTXEDIT_ROUND_TRIP", "CTXEDIT_UPSCALE_SCALE")


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    import os

    for name in list(os.environ):
        if (name.startswith("CTXEDIT_") and name not in SUITE) or name in (
            "FORCE_COLOR",
            "TTY_COMPATIBLE",
            "NO_COLOR",
        ):
            monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "100")


@pytest.fixture()
def ctxedit():
    return call


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    from ctxedit.media.write import write_clip
    from ctxedit.synthetic import scenes
    from ctxedit.synthetic.scenes import Actor, Scene

    tiger = Actor("tiger", None, 0.5, 0.86, 0.56)
    scene = Scene((tiger,), "beach", "plain", "walk", -1, 1.0, (0.5,) * 8)
    path = tmp_path_factory.mktemp("cli clip") / "tiger.mp4"
    return write_clip(path, scenes.render(scene, 8, 96)[0], Fraction(25, 2))


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def made(clip, runs):
    """One small run on the built-in models, shared by all who only look at it or edit it."""
    answer = call("run", clip, "--target", TARGET, "--tune-steps", 2, *FEW, "--runs", runs)
    assert answer.code == 0, answer.err
    return answer


@pytest.fixture()
def no_weights(monkeypatch):
    """Any attempt to load a network fails the test."""
    import ctxedit.models.backbones.stable_diffusion as stable_diffusion
    import ctxedit.models.captioner
    import ctxedit.models.clip
    import ctxedit.models.upscalers.checkpoints  # imported later, it would keep the refusing function

    def refuse(*args, **kwargs):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(stable_diffusion, "parts", refuse)
    upscalers = ctxedit.models.upscalers.checkpoints
    for module in (stable_diffusion, upscalers, ctxedit.models.captioner, ctxedit.models.clip):
        monkeypatch.setattr(module, "load_model", refuse)


@pytest.fixture()
def frames_of():
    def read(path, count):
        from ctxedit.media.read import read_frames

        return read_frames(path, frames=count).frames.astype(np.int16)

    return read


@pytest.fixture()
def make_recipe(tmp_path):
    """Writes a small recipe of a part, and gives its path."""
    return partial(write_recipe, tmp_path)
