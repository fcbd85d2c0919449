"""A grid of settings: which points there are for which method, and what the methods are called."""

import pytest

from ctxedit import config
from ctxedit.bench import drawn, preview, tables
from ctxedit.bench.sweep import Axis, parse, points
from ctxedit.errors import ConfigError


def load(name, table):
    return config.load(name, None, dict(table), environ={})


def test_values_are_toml_or_words():
    guidance, enabled, image = parse(
        ["edit.guidance=3, 5.5", "adapter.enabled=true,false", "adapter.image=latent,clip"]
    )
    assert guidance == Axis("edit.guidance", (3, 5.5))
    assert enabled.values == (True, False) and image.values == ("latent", "clip")
    assert parse(['adapter.image="latent"'])[0].values == ("latent",)


@pytest.mark.parametrize(
    "texts",
    [
        ["edit.guidance"],
        ["=3"],
        ["edit.guidance="],
        ["edit.guidance=,"],
        ["edit.guidance=3,3"],
        ["edit.guidance=3", "edit.guidance=5"],
        ["edit=1", "edit.guidance=3"],
    ],
)
def test_what_is_no_grid(texts):
    with pytest.raises(ConfigError, match="--sweep"):
        parse(texts)


def test_the_last_axis_moves_fastest():
    axes = parse(["tune.steps=10,20", "edit.guidance=3,5"])
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
    axes = parse(["adapter.bound=0,1", "tune.steps=10,20", "edit.guidance=3,5"])
    counts = {
        name: len(list(points(load(name, {}), axes)))
        for name in ("ddim", "tune-a-video", "tune-a-video+adapter")
    }
    assert counts == {"ddim": 2, "tune-a-video": 4, "tune-a-video+adapter": 8}
    assert all(m.config.tune.steps == 0 for m in preview.methods(["ddim"], load, axes))
    assert [s for s, _ in points(load("sdedit", {}), parse(["invert.steps=5,9"]))] == [""]


def test_what_an_axis_means_is_judged_at_each_point():
    """Where the adapter is switched off, its bound is not swept."""
    axes = parse(["adapter.enabled=true,false", "adapter.bound=0,1"])
    for preset in ("contextdiff", "tune-a-video"):
        assert [suffix for suffix, _ in points(load(preset, {}), axes)] == [
            " adapter.enabled=true adapter.bound=0",
            " adapter.enabled=true adapter.bound=1",
            " adapter.enabled=false",
        ]


@pytest.mark.parametrize("text", ["edit.guidence=3", "adapter.bund=1", "adapter.image=sound"])
def test_what_is_no_setting_is_refused_even_where_it_would_mean_nothing(text):
    with pytest.raises(ConfigError, match=r"guidence|bund|adapter\.image"):
        preview.methods(["ddim"], load, parse([text]))


def test_the_adapters_effect_is_stated_at_every_point():
    methods = ["tune-a-video edit.guidance=3", "tune-a-video+adapter edit.guidance=3", "ddim edit.guidance=3"]
    assert tables.adapter_pairs(methods) == [tuple(methods[:2])]


def test_another_seed_draws_another_list():
    here, there = drawn.default_pairs(), drawn.default_pairs(5)
    assert len(here) == len(there) >= 42
    assert [p.source for p in here] != [p.source for p in there]
