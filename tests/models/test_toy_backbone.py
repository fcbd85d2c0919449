"""A new family is one file: a flow model on pixels goes through everything, and nothing else knows of it."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from asking import TARGET, call
from toy_flow import ToyFlow, make

from ctxedit.config import AttentionConfig, TuneConfig
from ctxedit.media.write import write_clip
from ctxedit.models.attention import FrameView
from ctxedit.models.backbones import load_backbone
from ctxedit.patterns import attended_frames
from ctxedit.stages.invert import invert
from ctxedit.stages.sample import Sampling, sample
from ctxedit.stages.tune import tune

CPU = torch.device("cpu")
PROMPT = "a tiger walking on the beach"
F, SIDE = 2, (6, 8)
VIEW = FrameView(attended_frames(AttentionConfig(), F), SIDE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make(tmp_path_factory.mktemp("toy") / "toy")


@pytest.fixture()
def toy(folder):
    backbone = load_backbone(str(folder), CPU, torch.float32)
    with backbone.attention(AttentionConfig()):
        yield backbone


def draw(seed=0):
    return torch.randn(F, 3, *SIDE, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    frames = np.random.default_rng(0).integers(0, 255, (4, 16, 16, 3), dtype=np.uint8)
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", frames, Fraction(8))


def test_sampling_is_euler_along_the_velocity(toy):
    """Which is how flow models are sampled: ``x += (tau_next - tau) v``, whatever the sampler is called."""
    steps, condition = 5, toy.condition(["", PROMPT])
    x = want = draw()
    told = []
    hook = toy.net.register_forward_pre_hook(lambda _, args: told.append(args[1]))
    got = sample(toy, x, condition, toy.levels(steps), VIEW, Sampling(1.0))
    hook.remove()
    taus = torch.linspace(1, 0, steps + 1).tolist()
    assert told == pytest.approx(taus[:-1]), "the network is told tau, not an integer"
    with torch.no_grad():
        for tau, after in itertools.pairwise(taus):
            want = want + (after - tau) * toy.raw(want, tau, condition[1:], VIEW)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_inversion_leads_back(toy):
    x, steps, condition = draw(), 8, toy.condition(["", PROMPT])
    toy.net.conv_out.weight.data.mul_(0.2)  # nearby levels predict nearly alike, as in a trained network
    trajectory = invert(toy, x, condition[1:], toy.levels(steps), VIEW, fixed_point_iterations=10)
    back = sample(toy, trajectory[-1], condition, toy.levels(steps), VIEW, Sampling(1.0))
    torch.testing.assert_close(back, x, rtol=1e-3, atol=1e-3)
    assert (trajectory[-1] - x).abs().max() > 0.05


def test_the_first_step_up_goes_along_the_velocity(toy):
    """Clean data holds no noise: the head's velocity says where to go, not taken for the noise itself."""
    x, condition, levels = draw(), toy.condition([PROMPT]), toy.levels(4)
    trajectory = invert(toy, x, condition, levels, VIEW)
    with torch.no_grad():
        want = x + 0.25 * toy.raw(x, 0.25, condition, VIEW)
    torch.testing.assert_close(trajectory[1], want, rtol=1e-5, atol=1e-6)


def test_it_is_tuned_and_checkpointing_changes_no_bit(toy, tmp_path):
    before = {k: v.clone() for k, v in toy.net.state_dict().items()}
    tuned, losses = [], []
    for checkpointing in (False, True):
        toy.net.load_state_dict(before)
        config = TuneConfig(
            steps=4,
            lr=1e-2,
            trainable_modules=("attn1.to_q", "attn2", "conv_out"),
            gradient_checkpointing=checkpointing,
        )
        rows = []
        tuned.append(
            tune(
                toy, draw(1), toy.condition([PROMPT]), VIEW, config, tmp_path / str(checkpointing), 0,
                report=lambda row, rows=rows: rows.append(row.loss),
            )
        )  # fmt: skip
        losses.append(rows)
    assert losses[0] == losses[1]
    assert all(torch.equal(tuned[0][name], tuned[1][name]) for name in tuned[0])
    assert not torch.equal(tuned[0]["unet.attn1.to_q.weight"], before["attn1.to_q.weight"])


@pytest.mark.parametrize("preset", ["contextdiff", "fatezero", "sdedit"])
def test_through_the_command_line(folder, clip, tmp_path, preset):
    answer = call(
        "run", clip, "--model", folder, "--preset", preset, "--prompt", PROMPT, "--target", TARGET,
        "--set", "attention.min_channels=0", "--set", "attention.group_norm=frame",
        "--frames", 2, "--stride", 1, "--steps", 3, "--tune-steps", 2, "--runs", tmp_path, "--json",
        "--set", "clip_model=builtin", "--set", "adapter.width=32", "--set", "adapter.heads=4",
        "--set", "adapter.blocks=1", "--set", "fusion.mask_resolution=1.0",
        "--set", "fusion.max_resolution=1.0",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    assert list(tmp_path.rglob("*.mp4"))


def test_a_controlnet_is_refused_before_anything_is_loaded(folder, clip, tmp_path, monkeypatch):
    def loaded(*_):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(ToyFlow, "open", loaded)
    answer = call(
        "run", clip, "--model", folder, "--preset", "controlvideo", "--prompt", PROMPT, "--target", TARGET,
        "--frames", 2, "--stride", 1, "--runs", tmp_path, "--set", "clip_model=builtin", "--dry-run",
    )  # fmt: skip
    assert answer.code == 2 and "ControlNet" in answer.err
