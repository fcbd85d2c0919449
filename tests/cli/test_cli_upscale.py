"""Super-resolution from the command line: sizes, keys, resuming, and what is refused before the work."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from asking import TARGET
from PIL import Image
from safetensors.numpy import load_file
from tiny import make_pixel_upscaler, make_x4_upscaler

from ctxedit.editing import machine, stages, text_to_image
from ctxedit.errors import WeightsError
from ctxedit.models import weights
from ctxedit.models.upscalers.base import Upscaler
from ctxedit.runs import Run

FEW = ("--set", "upscale.steps=2")
DOG = "a dog walking on the beach"


@pytest.fixture(scope="session")
def own(tmp_path_factory):
    return make_pixel_upscaler(tmp_path_factory.mktemp("own") / "upscaler")


@pytest.fixture(scope="session")
def x4(tmp_path_factory):
    return make_x4_upscaler(tmp_path_factory.mktemp("x4"))


@pytest.fixture(scope="session")
def run(made, runs):
    """The folder of the shared run."""
    assert made.code == 0
    return Run.newest(runs, print).folder


@pytest.fixture()
def calls(monkeypatch):
    """How often frames were upscaled."""
    counted, real = [], Upscaler.upscale

    def upscale(self, frames, *args, **kwargs):
        counted.append(len(frames))
        return real(self, frames, *args, **kwargs)

    monkeypatch.setattr(Upscaler, "upscale", upscale)
    return counted


def pixels_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def test_every_file_of_an_edit_is_larger(ctxedit, run, own, calls, frames_of):
    answer = ctxedit("edit", TARGET, "--run", run, "--upscaler", own, *FEW, "--json")
    assert answer.code == 0, answer.err
    video = Path(answer.table["video"])
    assert frames_of(video, 4).shape == (4, 256, 256, 3)
    assert frames_of(answer.table["side_by_side"], 4).shape[1] == 256
    plain = ctxedit("edit", TARGET, "--run", run, "--json").table
    sheets = [pixels_of(table["sheet"]) for table in (answer.table, plain)]
    assert sheets[0][0] > 1.8 * sheets[1][0]
    assert plain["video"] != answer.table["video"] and calls == [4]
    # The same again is reused; other steps are another edit.
    assert ctxedit("edit", TARGET, "--run", run, "--upscaler", own, *FEW, "--json").table["reused"]
    other = ctxedit(
        "edit", TARGET, "--run", run, "--upscaler", own, "--set", "upscale.steps=1", "--json"
    ).table
    assert not other["reused"] and other["video"] != answer.table["video"]
    told = ctxedit("show", video, "--json").table
    # Four times the size is the built-in models' own default, and no changed setting.
    assert told["settings"]["upscale.steps"] == 2 and "upscale.scale" not in told["settings"]
    assert "upscale.steps=2" in ctxedit("show", video).out


def test_an_edit_that_is_replaced_is_sampled_once(ctxedit, run, own, calls, monkeypatch):
    """Upscaling and writing need the frames, either of which could have them sampled anew."""
    sampled, real = [], stages.edited_frames
    monkeypatch.setattr(stages, "edited_frames", lambda *args: sampled.append(1) or real(*args))
    for _ in range(2):
        answer = ctxedit("edit", DOG, "--run", run, "--upscaler", own, *FEW, "--yes", "--json")
        assert answer.code == 0, answer.err
    assert len(sampled) == len(calls) == 2


def test_an_upscaler_is_known_by_its_weights(ctxedit, run, own, tmp_path):
    """Moved, it is the same; trained anew in its place, the edit is upscaled again."""
    moved = tmp_path / "moved" / "upscaler"
    shutil.copytree(own, moved)
    asked = ("edit", TARGET, "--run", run, *FEW, "--dry-run", "--json", "--upscaler")
    first = ctxedit("edit", TARGET, "--run", run, "--upscaler", own, *FEW, "--json")
    assert first.code == 0, first.err

    def upscaled(folder):
        stages = ctxedit(*asked, folder).table["plan"]["stages"]
        return next(stage["reused"] for stage in stages if stage["name"].startswith("upscale"))

    assert upscaled(own) and upscaled(moved) and upscaled(moved.parent)
    make_pixel_upscaler(moved, scale=0.3)
    assert not upscaled(moved) and not upscaled(moved.parent)


def test_the_small_frames_are_what_is_scored(ctxedit, run, own):
    """An edit is scored at working size, as it is without upscaling."""
    name = ctxedit("edit", TARGET, "--run", run, "--upscaler", own, *FEW, "--json").table["video"]
    kept = Run(run).facts(f"edit/{Path(name).stem}")["frames"]
    plain = ctxedit("edit", TARGET, "--run", run, "--json").table["video"]
    before = Run(run).facts(f"edit/{Path(plain).stem}")["frames"]
    small, unscaled = (load_file(run / file)["frames"] for file in (kept, before))
    assert np.array_equal(small, unscaled)


def test_an_interrupted_upscaling_does_not_sample_again(ctxedit, run, own, monkeypatch):
    asked = ("edit", TARGET, "--run", run, "--upscaler", own, "--set", "upscale.steps=3")
    with monkeypatch.context() as patched:
        patched.setattr(Upscaler, "_denoise", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        assert ctxedit(*asked).code == 130
    import ctxedit.editing.stages as stages

    monkeypatch.setattr(stages, "edited_frames", lambda *args: pytest.fail("sampled again"))
    answer = ctxedit(*asked)
    assert answer.code == 0, answer.err


def test_a_damaged_result_is_upscaled_again(ctxedit, run, own, calls):
    asked = ("edit", TARGET, "--run", run, "--upscaler", own, *FEW, "--json")
    video = Path(ctxedit(*asked).table["video"])
    calls.clear()
    for kept in (run / "edits").glob("*-upscaled.safetensors"):
        kept.write_bytes(b"x")
    video.unlink()
    answer = ctxedit(*asked)
    assert answer.code == 0 and video.is_file() and calls == [4]


def test_a_real_upscaler_takes_the_same_way(ctxedit, run, x4, frames_of):
    answer = ctxedit("edit", TARGET, "--run", run, "--upscaler", x4, *FEW, "--json")
    assert answer.code == 0, answer.err
    assert frames_of(answer.table["video"], 4).shape == (4, 256, 256, 3)


def test_the_plan_foretells_it(ctxedit, run, own, x4, no_weights):
    asked = ("edit", DOG, "--run", run, "--dry-run", "--json")
    plain = ctxedit(*asked).table["plan"]
    assert plain["upscaler"] is None and plain["output_size"] == [64, 64]
    for folder, passes in ((own, 2), (x4, 4)):  # the x4 upscaler is guided: two passes a step
        plan = ctxedit(*asked, "--upscaler", folder, *FEW).table["plan"]
        rows = {stage["name"]: stage for stage in plan["stages"]}
        assert rows[f"upscale “{DOG}”"]["evaluations"] == passes
        assert list(rows)[-2:] == [f"edit “{DOG}”", f"upscale “{DOG}”"], "in the order of work"
        assert plan["output_size"] == [256, 256] and plan["disk_needed"] > plain["disk_needed"]
    assert "to 256×256" in ctxedit("edit", DOG, "--run", run, "--dry-run", "--upscaler", own).out


def test_too_little_memory_is_known_before_the_work(ctxedit, run, own, no_weights, monkeypatch):
    asked = ("edit", DOG, "--run", run, "--upscaler", own, "--dry-run", "--json", *FEW)
    rows = {stage["name"]: stage for stage in ctxedit(*asked).table["plan"]["stages"]}
    peak = rows[f"upscale “{DOG}”"]["peak_bytes"]
    monkeypatch.setattr(machine, "memory_available", lambda device: peak - 1)
    for more in ((), ("--dry-run",)):
        answer = ctxedit("edit", DOG, "--run", run, "--upscaler", own, *FEW, *more)
        assert answer.code == 5 and "error: upscale" in answer.err and "GiB of memory" in answer.err


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--upscale", "3"), 2, "upscale.scale = 3"),
        (("--upscale", "0"), 2, "upscale.scale = 0"),
        (("--upscaler", "no/such/folder"), 4, "no folder or hub id"),
        (("--upscale", "4", "--set", "upscale.steps=-1"), 2, "upscale.steps = -1"),
        (("--upscale", "4", "--set", "upscale.noise_level=1000"), 2, "upscale.noise_level = 1000"),
    ],
)
def test_bad_settings_are_refused_before_the_work(ctxedit, run, no_weights, options, code, words):
    answer = ctxedit("edit", TARGET, "--run", run, *options)
    assert answer.code == code and words in answer.err, answer.err
    assert answer.err.count("error:") == 1 and "hint:" in answer.err


def test_a_backbone_is_no_upscaler_and_an_upscaler_no_backbone(ctxedit, run, stable_diffusion, x4):
    answer = ctxedit("edit", TARGET, "--run", run, "--upscaler", stable_diffusion)
    assert answer.code == 4 and "not an upscaler" in answer.err
    answer = ctxedit("t2i", "a tiger", "--model", x4)
    assert answer.code == 4 and "upscaling networks take a low-resolution image" in answer.err


def test_an_image_of_256_pixels_is_a_cascade(ctxedit, own, calls, tmp_path):
    picture = tmp_path / "tiger.png"
    asked = ("t2i", "a tiger", "--steps", "2", "--upscaler", own, "-o", picture)
    dry = ctxedit(*asked, "--size", "256", "--dry-run", "--json").table["plan"]
    assert dry["size"] == [256, 256] and dry["upscaler"] == f"{own.parent.name}/upscaler"
    answer = ctxedit(*asked, "--size", "256")
    assert answer.code == 0, answer.err
    assert pixels_of(picture) == (256, 256) and calls == [1]
    assert ctxedit(*asked, "-y").code == 0  # without a size: four times the model's own
    assert pixels_of(picture) == (256, 256)


def test_sizes_that_no_cascade_reaches(ctxedit, own, no_weights):
    for size, words in (
        ("300", "not a multiple of 64"),
        ("1024", "is not possible"),
        ("100", "not a multiple"),
    ):
        answer = ctxedit("t2i", "a tiger", "--size", size, "--dry-run", "--upscaler", own)
        assert answer.code == 2 and words in answer.err and "hint: take" in answer.err, answer.err
    answer = ctxedit("t2i", "a tiger", "--size", "256", "--upscale", "1", "--dry-run")
    assert answer.code == 2 and "leave out --upscale 1" in answer.err
    # Twice the model's own size is generated as it is.
    plan = ctxedit("t2i", "a tiger", "--size", "128", "--dry-run", "--json").table["plan"]
    assert plan["upscaler"] is None and plan["size"] == [128, 128]


def test_upscaling_an_image_beyond_memory_is_foretold(ctxedit, own, no_weights, monkeypatch, tmp_path):
    asked = ("t2i", "a tiger", "--size", "256", "--upscaler", own, "-o", tmp_path / "tiger.png")
    monkeypatch.setattr(text_to_image.footprint, "upscaler_bytes", lambda *sizes: 1 << 50)
    for more in ((), ("--dry-run",)):
        answer = ctxedit(*asked, *more)
        assert answer.code == 5 and "error: upscaling needs about" in answer.err, answer.err
    assert not (tmp_path / "tiger.png").exists()


def test_a_missing_hub_upscaler_is_told(ctxedit, run, monkeypatch):
    monkeypatch.setattr(weights.hub, "is_offline", lambda offline=False: True)
    answer = ctxedit("edit", TARGET, "--run", run, "--upscaler", "stabilityai/stable-diffusion-x4-upscaler")
    assert answer.code == 4 and "stable-diffusion-x4-upscaler" in answer.err
    with pytest.raises(WeightsError):
        weights.locate("stabilityai/stable-diffusion-x4-upscaler", offline=True)


@pytest.mark.parametrize("words", [("edit", TARGET), ("t2i", TARGET)], ids=["edit", "t2i"])
def test_an_upscaler_that_would_not_be_used_is_refused(ctxedit, run, own, words):
    where = ("--run", run) if words[0] == "edit" else ()
    for scale in (("--upscale", "1"), ("--set", "upscale.scale=1")):
        answer = ctxedit(*words, *where, "--upscaler", own, *scale, "--dry-run")
        assert answer.code == 2 and "an upscaler is named, and --upscale 1 leaves it out" in answer.err
    model = f'upscale.model="{own}"'
    assert ctxedit(*words, *where, "--set", model, "--set", "upscale.scale=4", "--dry-run").code == 0
