"""Clips longer than a window: all of the clip comes out, and what is kept of it can be used and repaired."""

import subprocess
from fractions import Fraction
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from asking import TARGET, call
from safetensors.numpy import load_file
from tiny import make_pixel_upscaler

from ctxedit.config import UpscaleConfig
from ctxedit.models.upscalers.checkpoints import locate_upscaler, open_upscaler

FRAMES = 21
SMALL = (
    "--frames", "all", "--set", "window.size=8", "--set", "window.overlap=2", "--tune-steps", 2,
    "--steps", 2,
)  # fmt: skip


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory):
    """A clip with sound, of an uneven number of frames at an odd rate."""
    from ctxedit.media.write import write_clip
    from ctxedit.synthetic import scenes
    from ctxedit.synthetic.scenes import Actor, Scene

    folder = tmp_path_factory.mktemp("long")
    scene = Scene((Actor("tiger", None, 0.5, 0.86, 0.56),), "beach", "plain", "walk", -1, 1.0, (0.5,) * 8)
    silent = write_clip(folder / "silent.mp4", scenes.render(scene, FRAMES, 64)[0], Fraction(25, 2))
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        "-v",
        "error",
        "-i",
        silent,
        "-f",
        "lavfi",
        "-i",
        "sine=d=1.68",
    ]
    subprocess.run([*command, "-c:v", "copy", "-c:a", "aac", folder / "clip.mp4"], check=True)
    return folder / "clip.mp4"


@pytest.fixture(scope="module")
def edited(long_clip, tmp_path_factory):
    """The clip, edited in windows."""
    runs = tmp_path_factory.mktemp("long runs")
    prompt = ("--prompt", "a tiger walking on the beach")
    answer = call("run", long_clip, "--target", TARGET, *prompt, *SMALL, "--runs", runs, "--json")
    assert answer.code == 0, answer.err
    return answer.table


def test_a_dry_run_tells_the_windows(ctxedit, long_clip, tmp_path, no_weights):
    arguments = ("run", long_clip, "--target", TARGET, *SMALL, "--runs", tmp_path, "--dry-run")
    plan = ctxedit(*arguments, "--json").table["plan"]
    told = {name: plan[name] for name in ("frames", "windows", "window_frames", "shared_frames")}
    assert told == {"frames": FRAMES, "windows": 4, "window_frames": 7, "shared_frames": 3}
    peaks = {stage["name"]: stage["peak_bytes"] for stage in plan["stages"]}
    said = ctxedit(*arguments).out
    assert "4 of 7 frames, neighbours share up to 3" in said and "4 windows × 7 frames" in said
    # Memory is a window's, disk is the clip's.
    short = ctxedit(*arguments, "--frames", 7, "--json").table["plan"]
    assert {stage["name"]: stage["peak_bytes"] for stage in short["stages"]} == peaks
    assert plan["disk_needed"] > short["disk_needed"] and short["windows"] == 1


def test_the_whole_clip_comes_out(edited, long_clip):
    from ctxedit.media.probe import probe

    before, after = probe(long_clip), probe(edited["edits"][0]["video"])
    assert (after.frames, after.fps, after.has_audio) == (FRAMES, before.fps, True)
    assert probe(edited["edits"][0]["side_by_side"]).frames == FRAMES
    assert edited["edits"][0]["figures"]["psnr"] > 5


def test_a_second_target_takes_the_inversion_and_damage_is_repaired(ctxedit, edited, frames_of):
    run, first = Path(edited["run"]), edited["edits"][0]["video"]
    before = frames_of(first, FRAMES)
    other = ctxedit("edit", "a tiger walking in the desert", "--run", run)
    assert other.code == 0 and "inverting" not in other.err and "invert:" not in other.err
    for kept in (run / "inversion.safetensors", Path(first)):
        kept.write_bytes(kept.read_bytes()[:-100])
    next((run / "edits").glob("a-panda*.safetensors")).unlink()
    again = ctxedit("edit", TARGET, "--run", run)
    assert again.code == 0 and "inversion.safetensors is damaged" in again.err
    assert np.array_equal(frames_of(first, FRAMES), before)
    assert not [file for file in run.rglob("*") if ".part" in file.name]


def test_upscaling_takes_a_chunk_at_a_time(ctxedit, edited, long_clip, tmp_path, frames_of):
    """What a long clip gives in chunks is what all of its frames give in memory; the plan counts chunks."""
    folder = make_pixel_upscaler(tmp_path / "upscaler")
    asked = ("edit", TARGET, "--run", edited["run"], "--upscaler", folder, "--set", "upscale.steps=2")
    plan = ctxedit(*asked, "--dry-run", "--json").table["plan"]
    peak = {stage["name"]: stage["peak_bytes"] for stage in plan["stages"]}[f"upscale “{TARGET}”"]
    assert "2 × 3 chunks × 8 frames" in ctxedit(*asked, "--dry-run").out
    fewer = ctxedit("run", long_clip, "--target", TARGET, *SMALL, "--frames", 8, "--upscaler", folder,
                    "--runs", tmp_path, "--set", "upscale.steps=2", "--dry-run", "--json")  # fmt: skip
    short = fewer.table["plan"]
    assert peak == {s["name"]: s["peak_bytes"] for s in short["stages"]}[f"upscale “{TARGET}”"]
    assert plan["disk_needed"] > 3 * FRAMES * 256 * 256 * 3  # frames and two videos of the whole clip

    answer = ctxedit(*asked, "--json")
    assert answer.code == 0, answer.err
    video = Path(answer.table["video"])
    assert frames_of(video, FRAMES).shape == (FRAMES, 256, 256, 3)
    (kept,) = video.parent.glob("a-panda*-upscaled.safetensors")
    (before,) = set(video.parent.glob("a-panda*.safetensors")) - {kept}
    small = load_file(before)["frames"]
    upscaler = open_upscaler(locate_upscaler(str(folder), None), torch.device("cpu"), torch.float32)
    whole = upscaler.upscale(small, TARGET, UpscaleConfig(4, steps=2), plan["seed"])
    assert np.array_equal(load_file(kept)["frames"], whole)


def test_all_frames_begin_at_a_frame_that_there_is(ctxedit, long_clip, tmp_path, no_weights):
    arguments = ("run", long_clip, "--target", TARGET, *SMALL, "--runs", tmp_path, "--dry-run", "--json")
    assert ctxedit(*arguments, "--start", 5, "--stride", 3).table["plan"]["frames"] == 6
    answer = ctxedit(*arguments, "--start", FRAMES)
    assert answer.code == 3 and f"has {FRAMES} frames" in answer.err
