"""Curves of a tuning: sampling on the way changes nothing of it; both adapters are drawn."""

import csv

import pytest
from safetensors.torch import load_file

from ctxedit import config as configuration
from ctxedit.editing.request import Request
from ctxedit.editing.session import Session
from ctxedit.errors import ConfigError
from ctxedit.inspection.curve import tune_with_curve
from ctxedit.media.write import write_clip
from ctxedit.synthetic import scenes
from ctxedit.synthetic.scenes import Actor

PROMPT, TARGET = "a tiger walking on the beach", "a tiger walking in the snow"
FEW = {
    "clip": {"frames": 3, "stride": 1},
    "tune": {"steps": 4},
    "invert": {"steps": 2},
    "edit": {"steps": 2},
}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    from fractions import Fraction

    actor = Actor("tiger", None, 0.5, 0.86, 0.56)
    scene = scenes.Scene((actor,), "beach", "plain", "walk", 1, 1.0, (0.5,) * 8)
    path = tmp_path_factory.mktemp("clip") / "tiger.mp4"
    write_clip(path, scenes.render(scene, 3, 64)[0], Fraction(8))
    return path


def session(clip, runs, preset="contextdiff", **changes):
    config = configuration.load(preset, flags=FEW | changes, environ={})
    return Session(Request(clip, config, preset, PROMPT, runs=runs))


def tuned(one):
    return load_file(one.run.folder / "tune" / "tuned.safetensors")


def test_a_sampled_tuning_is_the_tuning_and_both_adapters_are_drawn(clip, tmp_path, monkeypatch):
    with session(clip, tmp_path / "plain") as plain:
        plain.tune()
        expected = tuned(plain)
    said = []
    with session(clip, tmp_path / "curve") as watched:
        monkeypatch.setattr(watched.reporter, "say", said.append)
        files = tune_with_curve(watched, TARGET, 3, compare=True)
        assert [t for t in said if t.startswith("tuning")] == [
            "tuning without the adapter",
            "tuning with the adapter",
        ]
        got = tuned(watched)
        assert files.picture.parent == watched.run.folder / "tune" and files.picture.is_file()
        with files.table.open() as file:
            rows = list(csv.DictReader(file))
        # Once more: nothing is tuned again, and the curve is drawn from the logs.
        assert tune_with_curve(watched, TARGET, 3, compare=True) == files
    assert got.keys() == expected.keys() and all((got[k] == expected[k]).all() for k in got)
    for name in ("with the adapter", "without the adapter"):
        of = {r["step"]: r for r in rows if r["tuning"] == name}
        assert list(of) == ["1", "2", "3", "4"]
        # Every third step, and the last.
        assert [s for s in of if of[s]["clip_text"]] == ["3", "4"]
        assert -1 <= float(of["4"]["clip_text"]) <= 1
    assert all(float(r["shift"]) == 0 for r in rows if r["tuning"] == "without the adapter")
    assert float(rows[3]["shift"]) > 0
    assert len(list((tmp_path / "curve").iterdir())) == 2


def test_a_tuning_that_was_not_sampled_says_so(clip, tmp_path, monkeypatch):
    with session(clip, tmp_path) as first:
        first.tune()
    with session(clip, tmp_path) as again:
        said = []
        monkeypatch.setattr(again.reporter, "warn", said.append)
        tune_with_curve(again, TARGET, 2)
        assert any("without samples" in text for text in said)


def test_a_preset_that_trains_no_adapter_has_nothing_to_compare(clip, tmp_path):
    with session(clip, tmp_path, "tune-a-video") as one, pytest.raises(ConfigError, match="adapter"):
        tune_with_curve(one, TARGET, 2, compare=True)
