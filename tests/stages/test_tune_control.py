"""Tuning with a ControlNet beside the denoiser: precision, checkpointing, and the way back from disk."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch

from ctxedit import config
from ctxedit.editing.request import Request
from ctxedit.editing.session import Session
from ctxedit.errors import ConfigError
from ctxedit.media.write import write_clip
from ctxedit.runs import Run
from ctxedit.stages.tune import trainable
from ctxedit.synthetic import scenes

PROMPT, TARGET = "a tiger walking on the beach", "a panda walking on the beach"


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    scene = scenes.draw_scene(np.random.default_rng(0), pairs=0.0)
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    return write_clip(path, scenes.render(scene, 3, 64)[0], Fraction(8))


@pytest.fixture()
def settings(stable_diffusion, controlnet):
    flags = {
        "model": str(stable_diffusion),
        "control": {"model": str(controlnet)},
        "clip": {"frames": 3},
        "tune": {"steps": 3, "save_every": 3, "lr": 1e-3},
        "adapter": {"width": 32, "heads": 4, "blocks": 1},
        "invert": {"steps": 3},
        "edit": {"steps": 3},
    }
    return config.load("controlvideo+adapter", flags=flags, environ={})


def session(clip, settings, tmp_path):
    return Session(Request(clip, settings, "controlvideo+adapter", PROMPT, runs=tmp_path / "runs"))


def test_an_edit_after_reloading_equals_the_edit_of_the_tuning_process(clip, settings, tmp_path):
    with session(clip, settings, tmp_path) as s:
        run = s.tune()
        here = s.edited_frames(TARGET, s.invert())
    (run.folder / "inversion.safetensors").unlink()
    with Session(Request.of_run(Run(run.folder))) as s:
        assert np.array_equal(here, s.edited_frames(TARGET, s.invert()))
    untuned = replace(settings, tune=replace(settings.tune, steps=0))
    with session(clip, untuned, tmp_path) as s:
        assert not np.array_equal(here, s.edited_frames(TARGET, s.invert()))


def test_checkpointing_changes_the_memory_not_the_result(clip, settings, tmp_path):
    tuned = []
    for on in (True, False):
        with session(
            clip,
            replace(settings, tune=replace(settings.tune, gradient_checkpointing=on)),
            tmp_path / str(on),
        ) as s:
            s.tune()
            nets = s.parts.backbone.networks
            parameters = trainable(s.parts.backbone, settings.tune, s.parts.shift(PROMPT), s.parts.temporal)
            tuned.append({k: v.clone() for k, v in parameters.items()})
            assert not any(net.is_gradient_checkpointing for net in nets)
            assert not any(p.requires_grad for net in nets for p in net.parameters())
    assert {k.split(".")[0] for k in tuned[0]} == {"unet", "controlnet", "temporal", "adapter"}
    for name, value in tuned[0].items():
        assert torch.allclose(value, tuned[1][name], atol=1e-5), name


def test_half_precision_is_tuned_in_float32_and_comes_back(clip, settings, tmp_path):
    with session(clip, replace(settings, dtype="bfloat16"), tmp_path) as s:
        before = {k: v.clone() for k, v in s.parts.backbone.select_control(["attn1.to_out"]).items()}
        s.tune()
        assert {p.dtype for net in s.parts.backbone.networks for p in net.parameters()} == {torch.bfloat16}
        after = s.parts.backbone.select_control(["attn1.to_out"])
        assert any(not torch.equal(before[k], after[k]) for k in before)
        assert np.isfinite(s.edited_frames(TARGET, s.invert())).all()


def test_a_name_in_the_controlnet_that_is_none_is_refused(clip, settings, tmp_path):
    wrong = replace(settings.tune, trainable_modules=("controlnet.attn7",))
    refused = pytest.raises(ConfigError, match=r"controlnet\.attn7")
    with session(clip, replace(settings, tune=wrong), tmp_path) as s, refused:
        trainable(s.parts.backbone, wrong, None, None)
    # Without a ControlNet what is listed of it is passed over, as the adapter's is.
    off = replace(settings, control=replace(settings.control, kind="none"))
    with session(clip, off, tmp_path) as s:
        names = trainable(s.parts.backbone, settings.tune, None, s.parts.temporal)
        assert names and not any(n.startswith("controlnet.") for n in names)
