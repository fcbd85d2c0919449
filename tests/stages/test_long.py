"""Clips in windows: how they are laid, what they see of each other, and that one window changes nothing."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from ctxedit.config import Config, EditConfig, FusionConfig, InvertConfig
from ctxedit.media.scratch import scratch
from ctxedit.models.attention import FrameView
from ctxedit.models.backbones import load_backbone
from ctxedit.patterns import attended_frames
from ctxedit.stages.edit import InvertedClip, edit
from ctxedit.stages.invert import invert
from ctxedit.stages.long import Noise, Strip, edit_long, invert_long, write_window
from ctxedit.windows import Window, plan_windows

PROMPT, TARGET, STEPS = "a tiger walking on the beach", "a panda walking on the beach", 3


@pytest.mark.parametrize("size, overlap", [(24, 3), (8, 0), (5, 4), (2, 1)])
def test_windows_cover_the_clip_evenly(size, overlap):
    for frames in range(1, 120):
        windows = plan_windows(frames, size, overlap)
        assert windows[0].start == 0 and windows[-1].stop == frames and windows[0].shared == 0
        assert {w.stop - w.start for w in windows} == {windows[0].stop} and windows[0].stop <= size
        assert [i for w in windows for i in range(*w.fresh.indices(frames))] == list(range(frames))
        assert all(w.shared == before.stop - w.start for before, w in itertools.pairwise(windows))
        assert all(w.shared >= overlap for w in windows[1:])
        # One window fewer would not do.
        assert len(windows) == 1 or (len(windows) - 1) * (size - overlap) + overlap < frames


def test_shared_frames_go_over_from_one_window_to_the_next():
    result = np.full((6, 1, 1, 1), np.nan, np.float32)
    write_window(result, Window(0, 4), torch.zeros(4, 1, 1, 1))
    write_window(result, Window(1, 6, 3), torch.ones(5, 1, 1, 1))
    assert result.ravel().tolist() == [0, 0.25, 0.5, 0.75, 1, 1]


def test_shared_frames_have_the_same_noise_in_both_windows():
    noise, like = Noise(torch.Generator().manual_seed(0)), torch.zeros(4, 1, 8, 8)
    first, second = noise.of(Window(0, 4), like), noise.of(Window(2, 6, 2), like)
    assert torch.equal(first[2:], second[:2]) and not torch.equal(first[:2], second[2:])


def view(frames):
    return FrameView(attended_frames(Config().attention, frames), (16, 16))


def strip_of(windows, folder):
    return Strip(
        windows, lambda w: view(w.stop - w.start), torch.device("cpu"),
        lambda shape: scratch(folder, shape, np.float32),
    )  # fmt: skip


@pytest.fixture(scope="module")
def single(stable_diffusion):
    """The tiny checkpoint in float32, which is what is stored, with attention across frames."""
    backbone = load_backbone(str(stable_diffusion), torch.device("cpu"), torch.float32)
    with backbone.attention(Config().attention):
        yield backbone


def latents_of(frames):
    return torch.randn(frames, 4, 16, 16, generator=torch.Generator().manual_seed(frames))


def inverted(backbone, latents, windows, folder, refinements=0, solver="ddim"):
    strip, levels = strip_of(windows, folder), backbone.levels(STEPS)
    trajectory = strip.store((STEPS + 1, *latents.shape))
    context = backbone.embed([PROMPT])
    invert_long(
        backbone, latents.numpy(), context, levels, strip, trajectory,
        fixed_point_iterations=refinements, solver=solver,
    )  # fmt: skip
    return strip, trajectory


@pytest.mark.parametrize(
    "changes, fusion",
    [
        ({}, {}),
        ({"eta": 0.7}, {}),
        ({"start": "noise", "strength": 0.7}, {}),
        ({"guidance": 1.0}, {"blend": "self", "mask_resolution": 0.5}),
        ({}, {"blend": "latent", "mask_threshold": 0.9, "mask_resolution": 0.5}),
        ({"solver": "dpm++2m", "guidance_interval": (0.0, 0.7)}, {}),
    ],
    ids=["plain", "eta", "noise", "self-blend", "latent-blend", "second-order"],
)
def test_one_window_is_the_clip_in_one_piece_bit_for_bit(single, tmp_path, changes, fusion):
    latents, levels = latents_of(4), single.levels(STEPS)
    config = Config(
        edit=EditConfig(steps=STEPS, **changes), invert=InvertConfig(steps=STEPS),
        fusion=FusionConfig(**fusion),
    )  # fmt: skip
    how = {"fixed_point_iterations": 1} if config.edit.solver == "ddim" else {"solver": config.edit.solver}
    whole = invert(single, latents, single.embed([PROMPT]), levels, view(4), **how)
    strip, trajectory = inverted(
        single, latents, (Window(0, 4),), tmp_path, how.get("fixed_point_iterations", 0),
        config.edit.solver,
    )  # fmt: skip
    assert torch.equal(torch.from_numpy(trajectory), whole)
    mask = (torch.arange(16) > 4).float().expand(4, 1, 16, 16)
    scene = InvertedClip(single, PROMPT, whole, levels, view(4))
    plain = edit(scene, TARGET, config, None, mask)
    same = edit_long(scene, trajectory, strip, TARGET, config, None, lambda window: mask)
    assert torch.equal(torch.from_numpy(same), plain)


def test_windows_see_the_anchors_as_if_the_clip_were_one(backbone):
    """Windows that share nothing, with anchors: one pass over all frames that sees the same frames."""
    windows, latents = plan_windows(9, 3, 0), latents_of(9).double()
    context, seen = backbone.embed([PROMPT]), []
    for number, window in enumerate(windows):
        anchors = sorted({0, windows[number - 1].start}) if number else []
        own = attended_frames(Config().attention, 3)
        seen += [tuple(window.start + i for i in frames) + tuple(anchors) for frames in own]
    results = np.empty((9, 4, 16, 16))
    with backbone.attention(Config().attention):
        whole = backbone.raw(latents, 500, context, replace(view(9), attended=tuple(seen)))
        strip = Strip(windows, lambda w: view(3), torch.device("cpu"), np.empty)
        strip.walk(latents.numpy(), results, lambda _, here, x: backbone.raw(x, 500, context, here))
        alone = backbone.raw(latents[3:6], 500, context, view(3))
    # Results are stored in single precision.
    torch.testing.assert_close(torch.from_numpy(results), whole, rtol=0, atol=1e-6)
    assert (alone - whole[3:6]).abs().max() > 1e-4


@pytest.mark.parametrize("solver", ["ddim", "dpm++2m"])
def test_an_edit_in_windows_is_near_the_edit_in_one_piece(single, tmp_path, solver):
    """Frames are noise here and see their neighbours only: windows differ by what they cannot see."""
    latents = latents_of(10)
    config = Config(
        edit=EditConfig(steps=STEPS, guidance=2.0, solver=solver),
        invert=InvertConfig(steps=STEPS, solver=solver),
    )
    levels, pieces = single.levels(STEPS), []
    for windows in (plan_windows(10, 10, 3), plan_windows(10, 6, 3)):
        strip, trajectory = inverted(single, latents, windows, tmp_path, solver=solver)
        scene = InvertedClip(single, PROMPT, torch.from_numpy(trajectory), levels, view(windows[0].stop))
        pieces.append(torch.from_numpy(edit_long(scene, trajectory, strip, TARGET, config)))
    whole, parts = pieces
    assert 0 < (parts - whole).norm() / whole.norm() < 0.2
