"""A grid of settings: which points there are for which method, and what the methods are called."""

import pytest

from ctxedit import config
from ctxedit.bench import drawn, preview
from ctxedit.bench.sweep import Axis, parse, points
from ctxedit.errors import ConfigError


def load(name, table):
    return config.load(name, None, dict(table), environ={})


def test_values_are_toml_or_words():
    assert parse("edit.guidance=3, 5.5") == Axis("edit.guidance", (3, 5.5))
    assert parse("adapter.enabled=true,false").values == (True, False)
    assert parse("adapter.image=latent,clip").values == ("latent", "clip")
    assert parse('adapter.image="latent"').values == ("latent",)


@pytest.mark.parametrize("text", ["edit.guidance", "=3", "edit.guidance=", "edit.guidance=3,3"])
def test_what_is_no_axis(text):
    with pytest.raises(ConfigError, match="--sweep"):
        parse(text)


def test_the_last_axis_moves_fastest():
    axes = [parse("tune.steps=10,20"), parse("edit.guidance=3,5")]
    found = preview.methods(["contextdiff"], load, axes)
    assert [m.label for m in found] == [
        "contextdiff tune.steps=10 edit.guidance=3",
        "contextdiff tune.steps=10 edit.guidance=5",
        "contextdiff tune.steps=20 edit.guidance=3",
        "contextdiff tune.steps=20 edit.guidance=5",
    ]
    assert [(m.config.tune.steps, m.config.edit.guidance) for m in found] == [
        (10, 3), (10, 5), (20, 3), (20, 5),
    ]  # fmt: skip
    # One preset: what two points share of the tuning, they share on disk.
    assert {m.preset for m in found} == {"contextdiff"}


def test_an_axis_that_means_nothing_to_a_method_is_left_out():
    axes = [parse("adapter.bound=0,1"), parse("tune.steps=10,20"), parse("edit.guidance=3,5")]
    counts = {
        name: len(list(points(load(name, {}), axes)))
        for name in ("ddim", "tune-a-video", "tune-a-video+adapter")
    }
    assert counts == {"ddim": 2, "tune-a-video": 4, "tune-a-video+adapter": 8}
    assert all(m.config.tune.steps == 0 for m in preview.methods(["ddim"], load, axes))
    assert [s for s, _ in points(load("sdedit", {}), [parse("invert.steps=5,9")])] == [""]


def test_a_setting_that_does_not_exist_is_refused():
    with pytest.raises(ConfigError, match="guidence"):
        preview.methods(["ddim"], load, [parse("edit.guidence=3")])


def test_another_seed_draws_another_list(tmp_path):
    here, there = drawn.default_pairs(), drawn.default_pairs(5)
    assert len(here) == len(there) >= 42
    assert [p.source for p in here] != [p.source for p in there]
