"""How well the clip comes back from its inversion: said before the edit, and a warning where it is bad."""

import pytest
from asking import call

from ctxedit import config
from ctxedit.editing.request import Request
from ctxedit.editing.session import Session
from ctxedit.metrics.formulas import psnr

PROMPT, TARGET = "a tiger walking on the beach", "a panda walking on the beach"


@pytest.fixture(autouse=True)
def measured_by_default(monkeypatch):
    """As for a user: the suite switches it off elsewhere, because it takes time."""
    monkeypatch.delenv("CTXEDIT_ROUND_TRIP")


@pytest.fixture(scope="module")
def edited(clip, tmp_path_factory):
    def edit(*more):
        answer = call(
            "run", clip, TARGET, "--preset", "ddim", "--prompt", PROMPT, "--frames", 2, "--stride", 1,
            "--steps", 8, "--runs", tmp_path_factory.mktemp("runs"), *more,
        )  # fmt: skip
        assert answer.code == 0, answer.err
        return answer

    return edit


@pytest.fixture(scope="module")
def measured(clip, tmp_path_factory):
    """Measures the round trip alone, in runs that share what their settings leave the same."""
    runs = tmp_path_factory.mktemp("measured")

    def measure(kind="estimate", **changes):
        flags = {
            "clip": {"frames": 2, "stride": 1}, "invert": {"steps": 8}, "edit": {"steps": 8},
            "round_trip": kind,
        }  # fmt: skip
        for name, value in changes.items():
            flags[name] = {**flags[name], **value}
        settings = config.load("ddim", flags=flags, environ={})
        with Session(Request(clip, settings, prompt=PROMPT, runs=runs)) as session:
            return session.round_trip()

    return measure


def test_the_estimate_stays_below_the_whole_way_and_follows_it(measured):
    exact = {"fixed_point_iterations": 3}
    plain, better = measured(), measured(invert=exact)
    whole, whole_better = measured("whole"), measured("whole", invert=exact)
    assert plain.kind == "estimate" and whole.kind == "whole"
    assert whole_better.psnr > whole.psnr + 5 and better.psnr > plain.psnr + 5
    for one, other in ((plain, whole), (better, whole_better)):
        assert other.psnr - 15 < one.psnr < other.psnr + 1
        assert one.autoencoder == pytest.approx(other.autoencoder)
    assert 25 < whole.autoencoder < 40


def test_the_whole_way_is_what_sampling_the_source_prompt_gives(clip, tmp_path):
    """By another road: a session of its own, at guidance 1 and without fusion."""
    flags = {
        "clip": {"frames": 2, "stride": 1}, "invert": {"steps": 6}, "round_trip": "whole",
        "edit": {"steps": 6, "guidance": 1.0},
        "fusion": {"self_replace_steps": 0.0, "cross_replace_steps": 0.0},
    }  # fmt: skip
    settings = config.load("ddim", flags=flags, environ={})
    with Session(Request(clip, settings, prompt=PROMPT, runs=tmp_path)) as session:
        frames = session.edited_frames(PROMPT, session.invert())
        found = session.round_trip()
        own = session.parts.prepared.unpad(session.parts.backbone.decode(session.parts.latents))
        assert found.psnr == pytest.approx(psnr(frames, own), abs=0.3)
        assert found.autoencoder == pytest.approx(psnr(own, session.parts.prepared.frames), abs=0.3)


def test_it_is_said_and_a_bad_one_is_a_warning_with_what_to_change(edited):
    good = edited("--set", "invert.fixed_point_iterations=3").err
    assert "round trip: the clip comes back from its inversion at about" in good and "warning" not in good
    bad = edited("--steps", 2).err
    (line,) = (line for line in bad.splitlines() if "comes back" in line)
    assert line.startswith("warning: ") and "invert.fixed_point_iterations=2" in line and "float32" in line


def test_the_plan_counts_its_passes_and_off_has_none(edited):
    def stages(*more):
        return {s["name"]: s for s in edited("--dry-run", "--json", *more).table["plan"]["stages"]}

    assert stages()["round trip"]["evaluations"] == 4
    assert stages("--round-trip", "whole")["round trip"]["evaluations"] == 8
    assert stages("--steps", 3)["round trip"]["evaluations"] == 3
    off = edited("--round-trip", "off", "--json")
    assert off.table["round_trip"] is None and "round trip" not in off.err
    assert stages("--set", "round_trip=off")["round trip"]["evaluations"] == 0
    assert stages("--round-trip", "off")["round trip"]["evaluations"] == 0


def test_second_order_comes_back_closer_and_its_passes_are_counted(edited, measured):
    second = {"solver": "dpm++2m"}
    assert measured("whole", invert=second, edit=second).psnr > measured("whole").psnr + 2
    order = ("--set", "invert.solver=dpm++2m", "--set", "edit.solver=dpm++2m")
    plan = edited("--dry-run", "--json", *order).table["plan"]["stages"]
    # The estimate looks at four steps, and at the prediction before each; the first has none before it.
    assert {s["name"]: s["evaluations"] for s in plan}["round trip"] == 8 - 1
    assert measured(invert=second, edit=second).kind == "estimate"


def test_it_is_kept_with_the_run(edited):
    made = edited("--json").table
    again = call("edit", "a cat walking on the beach", "--run", made["run"], "--json")
    assert again.code == 0, again.err
    assert again.table["round_trip"] == made["round_trip"]
    shown = call("edit", TARGET, "--run", made["run"], "--json").table
    assert shown["reused"] and shown["round_trip"] is None
