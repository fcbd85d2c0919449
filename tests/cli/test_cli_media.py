"""What becomes of time, size and sound of unusual clips, through the command line."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest
from asking import TARGET, call
from PIL import Image

from ctxedit.media.read import read_frames
from ctxedit.media.write import write_clip

PROMPT = "a tiger walking on the beach"
QUICK = ("--prompt", PROMPT, "--target", TARGET, "--stride", "1", "--tune-steps", "1", "--steps", "2")


@pytest.fixture()
def uneven(clip, tmp_path):
    """Eight frames of 96×72, the first four ten times as short as the others."""
    images = [Image.fromarray(frame[:72]) for frame in read_frames(clip, frames=8).frames]
    path = tmp_path / "uneven.webp"
    images[0].save(path, save_all=True, append_images=images[1:], duration=[40] * 4 + [400] * 4)
    return path


def test_an_uneven_clip_in_an_odd_size_is_said_and_lasts_as_long(uneven, tmp_path):
    asked = ("run", uneven, *QUICK, "--frames", "3", "--start", "2", "--size", "60", "--runs", tmp_path)
    planned = call(*asked, "--dry-run", "--json").table["plan"]
    assert [note for note in planned["notes"] if "unevenly" in note]
    assert [note for note in planned["notes"] if "60×45 becomes 60×46" in note]
    assert planned["reading_bytes"] > 3 * 96 * 72 and planned["writing_bytes"] > 3 * 60 * 46
    done = call(*asked, "--json", "-o", tmp_path / "edit.mp4")
    assert done.code == 0, done.err
    assert done.err.count("unevenly") == done.err.count("becomes") == 1
    assert [note for note in done.table["notes"] if "unevenly" in note]
    for name in ("edit.mp4", "edit-side-by-side.mp4"):
        with av.open(str(tmp_path / name)) as container:
            video = container.streams.video[0]
            assert (video.codec_context.pix_fmt, video.height) == ("yuv420p", 46)
            assert container.duration == 480_000
            times = [float(frame.pts * frame.time_base) for frame in container.decode(video)]
        assert times == pytest.approx([0, 0.04, 0.08])


def test_chroma_is_444_only_when_asked_for(uneven, tmp_path):
    asked = ("run", uneven, *QUICK, "--frames", "2", "--size", "60", "--runs", tmp_path, "--chroma", "444")
    assert call(*asked, "--dry-run", "--json").table["plan"]["notes"] == []
    done = call(*asked, "--json", "-o", tmp_path / "edit.mp4")
    assert done.code == 0, done.err
    with av.open(str(tmp_path / "edit.mp4")) as container:
        video = container.streams.video[0]
        assert (video.codec_context.pix_fmt, video.width, video.height) == ("yuv444p", 60, 45)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("-", "standard input"),
        ("https://example.org/clip.mp4", "web address"),
        ("frame_%04d.png", "pattern"),
        ("*.png", "pattern"),
    ],
)
@pytest.mark.parametrize("command", ["run", "caption", "tune", "eval"])
def test_what_only_looks_like_a_clip(name, says, command):
    more = ("--target", "x") if command == "run" else ("--prompt", "x") if command == "tune" else ()
    asked = (command, "--video", name, "--prompt", "x") if command == "eval" else (command, name, *more)
    answer = call(*asked)
    assert answer.code == 3 and says in answer.err and "hint: " in answer.err


def test_a_clip_that_memory_cannot_hold_is_refused_before_it_is_read(tmp_path, monkeypatch):
    from ctxedit.editing import plan

    path = write_clip(tmp_path / "clip.mp4", np.zeros((4, 64, 64, 3), np.uint8), Fraction(8))
    monkeypatch.setattr(plan.machine, "memory_available", lambda device: 10_000)
    monkeypatch.setattr("ctxedit.stages.prepare.read_working", None)
    answer = call("run", path, *QUICK, "--frames", "4", "--runs", tmp_path)
    assert answer.code == 5 and "reading the clip needs about" in answer.err
