"""A new attention pattern is one function: settings, planning and the networks take it by its name."""

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from asking import TARGET, call

from ctxedit import patterns, plugins
from ctxedit.config import AttentionConfig, load
from ctxedit.errors import ConfigError
from ctxedit.models.attention import FrameView


@pytest.fixture()
def following(monkeypatch):
    """Each frame attends to itself and the next; registered for one test."""
    monkeypatch.setattr(patterns, "_PATTERNS", dict(patterns._PATTERNS))

    @patterns.pattern("following")
    def pattern(config, count):
        return tuple(tuple(range(i, min(i + 2, count))) for i in range(count))


def test_a_registered_pattern_is_a_setting_and_reaches_the_network(following, backbone):
    config = load("ddim", flags={"attention": {"frames": "following"}}, environ={}).attention
    x = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    other = x.clone()
    other[1] += 1
    view = FrameView(patterns.attended_frames(config, 3), (8, 8))
    with backbone.attention(config), torch.no_grad():
        a, b = (backbone.raw(z, 500, backbone.condition(["a tiger"]), view) for z in (x, other))
    assert [i for i in range(3) if not torch.equal(a[i], b[i])] == [0, 1]


def test_an_unknown_pattern_is_refused_with_those_there_are():
    with pytest.raises(ConfigError, match=r"attention\.frames") as error:
        load("ddim", flags={"attention": {"frames": "acausal"}}, environ={})
    assert "sparse-causal" in error.value.hint
    with pytest.raises(ConfigError, match="acausal"):
        patterns.attended_frames(AttentionConfig(frames="acausal"), 3)


def test_a_key_frame_beyond_the_clip_is_refused_at_the_dry_run(tmp_path):
    sample = Path(__file__).parents[2] / "samples" / "tiger-beach.mp4"
    answer = call(
        "run", sample, "--preset", "ddim", "--prompt", "a tiger", "--target", TARGET, "--frames", 2,
        "--set", "attention.frames=key-frame", "--set", "attention.key_frame=5",
        "--runs", tmp_path, "--dry-run",
    )  # fmt: skip
    assert answer.code == 2 and "attention.key_frame = 5" in answer.err


def test_a_plugin_that_cannot_be_imported_is_said(monkeypatch):
    nowhere = EntryPoint("nowhere", "nowhere:at_all", patterns.PLUGINS)
    monkeypatch.setattr(plugins, "entry_points", lambda group: [nowhere])
    patterns._import_plugins.cache_clear()
    try:
        with pytest.raises(ConfigError, match="nowhere:at_all"):
            patterns.pattern_names()
    finally:
        patterns._import_plugins.cache_clear()
