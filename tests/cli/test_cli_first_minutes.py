"""The first ten minutes of three users, each as the commands that they type."""

import sys

import numpy as np
import pytest

from ctxedit import patterns
from ctxedit.media.probe import probe
from ctxedit.media.write import write_clip

FEW = ("--frames", 2, "--tune-steps", 2, "--steps", 2)


@pytest.fixture()
def phone_clip(tmp_path):
    """Two seconds of a portrait clip at an odd rate, of nothing that was ever drawn."""
    from fractions import Fraction

    noise = np.random.default_rng(3).integers(0, 255, (4, 96, 54, 3), dtype=np.uint8)
    return write_clip(tmp_path / "IMG 0042.mp4", noise, Fraction(30000, 1001))


def test_someone_with_a_laptop_and_a_phone_clip(ctxedit, phone_clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "run" in ctxedit("--help").out
    typo = ctxedit("run", "IMG 0024.mp4", "a dog")
    assert typo.code == 3 and "did you mean 'IMG 0042.mp4'?" in typo.err
    order = ctxedit("run", phone_clip, "make it snow", "--prompt", "a dog in the garden", *FEW)
    assert order.code == 3 and "snow" in order.err, "an order is answered with a description"
    wish = ("run", phone_clip, "a dog in the snow", "--prompt", "a dog in the garden", *FEW)
    plan = ctxedit(*wish, "--dry-run")
    assert plan.code == 0 and "54×96" in plan.out
    stopped = ctxedit(*wish)
    assert stopped.code == 3 and "--model sd15" in stopped.err and "GB" in stopped.err
    done = ctxedit(*wish, "-y")
    assert done.code == 0
    (video,) = done.out.split("\n")[:-1]
    info = probe(video)
    assert info.width < info.height and info.fps == probe(phone_clip).fps
    told = ctxedit("show", video)
    assert told.code == 0 and "a dog in the snow" in told.out
    assert phone_clip.name in ctxedit("runs", "ls").out


def test_a_creator_with_a_small_card_and_a_checkpoint(ctxedit, clip, stable_diffusion, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = ("--model", stable_diffusion, "--set", "clip_model=builtin")
    adapter = ("--set", "adapter.width=32", "--set", "adapter.heads=4", "--set", "adapter.blocks=1")
    text, prompt = "a panda walking on the beach", ("--prompt", "a tiger walking on the beach")
    weighted = ctxedit("run", clip, "a (panda:1.3) walking", *prompt, *model, *adapter, *FEW, "--dry-run")
    assert weighted.code == 0, "weights as ComfyUI writes them"
    pulled = ctxedit("models", "pull", "sd15")
    assert pulled.code == 4 and "offline" in pulled.err
    plan = ctxedit("run", clip, text, *prompt, *model, *adapter, *FEW, "--offload", "--dry-run", "--json")
    assert all(stage["peak_bytes"] > 0 for stage in plan.table["plan"]["stages"])
    done = ctxedit("run", clip, text, *prompt, *model, *adapter, *FEW, "--offload", "--json")
    assert done.code == 0
    (edit,) = done.table["edits"]
    stronger = ctxedit("edit", text, "--guidance", 3, "-o", "stronger.mp4")
    assert stronger.code == 0 and stronger.out == "stronger.mp4\n"
    both = ctxedit("compare", clip, edit["video"], "stronger.mp4", "--frames", 2, "-o", "both.gif")
    assert both.code == 0 and probe(tmp_path / "both.gif").width > 3 * 64


PATTERN = """
from ctxedit.patterns import pattern

@pattern("last-two")
def last_two(settings, count):
    return tuple(tuple({i, count - 1}) for i in range(count))
"""
METRIC = """
from ctxedit.metrics import metric

@metric("warmth", title="warmth", needs="", better="higher", decimals=2)
def warmth(edit):
    '''red minus blue, mean over all pixels'''
    return float(edit.frames[..., 0].mean() - edit.frames[..., 2].mean())
"""


@pytest.fixture()
def installed(tmp_path, monkeypatch):
    """The student's package, as pip would leave it."""
    site = tmp_path / "site"
    about = site / "mine-1.0.dist-info"
    about.mkdir(parents=True)
    (site / "mine_pattern.py").write_text(PATTERN)
    (site / "mine_metric.py").write_text(METRIC)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        "[ctxedit.patterns]\nmine = mine_pattern\n[ctxedit.metrics]\nmine = mine_metric\n"
    )
    monkeypatch.syspath_prepend(site)
    monkeypatch.setattr(patterns, "_PATTERNS", dict(patterns._PATTERNS))
    patterns._import_plugins.cache_clear()
    yield
    patterns._import_plugins.cache_clear()
    for name in ("mine_pattern", "mine_metric"):
        sys.modules.pop(name, None)


def test_a_student_with_an_attention_pattern_and_a_metric(ctxedit, clip, installed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert ctxedit("presets", "cp", "ddim", "mine.toml").code == 0
    preset = (tmp_path / "mine.toml").read_text(encoding="utf-8")
    (tmp_path / "mine.toml").write_text(preset.replace('frames = "none"', 'frames = "last-two"'))
    done = ctxedit(
        "run", clip, "a panda walking on the beach", "--prompt", "a tiger walking on the beach",
        "--preset", "mine.toml", *FEW, "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    (row,) = ctxedit("eval", "--metrics", "warmth,psnr", "--json").table["edits"]
    assert isinstance(row["warmth"], float) and row["psnr"] > 0
