"""A small clip, settings of seconds, and a finished run."""

import shutil
from fractions import Fraction

import numpy as np
import pytest
from damaged import PROMPT, TARGET, Listener
from safetensors.numpy import load_file

from ctxedit import config
from ctxedit.editing import plan
from ctxedit.editing.request import Request
from ctxedit.editing.session import Session
from ctxedit.media.write import write_clip
from ctxedit.runs import Run
from ctxedit.synthetic import scenes


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    scene = scenes.draw_scene(np.random.default_rng(0), pairs=0.0)
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    return write_clip(path, scenes.render(scene, 4, 64)[0], Fraction(8))


@pytest.fixture(scope="session")
def settings(stable_diffusion):
    flags = {
        "model": str(stable_diffusion), "clip_model": "builtin", "clip": {"frames": 2, "stride": 1},
        "tune": {"steps": 2, "save_every": 1, "lr": 1e-3}, "invert": {"steps": 2},
        "adapter": {"width": 32, "heads": 4, "blocks": 1}, "edit": {"steps": 2, "guidance": 2.0},
        "fusion": {"max_resolution": 1.0},
    }  # fmt: skip
    return config.load("contextdiff", flags=flags, environ={})


@pytest.fixture()
def work(clip, settings, tmp_path):
    """Runs the stages over ``tmp_path/runs``; gives the result, its frames and whom it told."""

    def work(target=TARGET, checked=False, **options):
        heard = Listener()
        request = Request(clip, settings, prompt=PROMPT, targets=(target,), runs=tmp_path / "runs", **options)
        if checked:
            plan.make(request).check()
        with Session(request, heard) as session:
            session.tune()
            session.invert()
            result = session.edit(target)
            heard.run = session.run
            heard.frames = load_file(next((session.run.folder / "edits").glob("*.safetensors")))["frames"]
        return result, heard

    return work


@pytest.fixture(scope="session")
def finished(clip, settings, tmp_path_factory):
    """A finished run, to be copied."""
    root = tmp_path_factory.mktemp("finished") / "runs"
    with Session(Request(clip, settings, prompt=PROMPT, runs=root)) as session:
        session.edit(TARGET)
    return root


@pytest.fixture()
def run(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "runs")
    (folder,) = (tmp_path / "runs").iterdir()
    return Run(folder)
