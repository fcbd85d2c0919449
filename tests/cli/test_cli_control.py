"""A ControlNet from the command line: the map, what is checked before weights, what depends on it."""

import importlib.machinery
import os
import shutil
import sys
import types
from fractions import Fraction
from typing import ClassVar

import numpy as np
import pytest
from asking import TARGET
from PIL import Image, ImageOps

from ctxedit.media.write import write_clip

PROMPT = "a tiger walking on the beach"


@pytest.fixture()
def arguments(clip, stable_diffusion, controlnet, tmp_path):
    """A short ControlVideo run on the tiny models."""
    return (
        clip, "--preset", "controlvideo", "--model", stable_diffusion, "--set", f"control.model={controlnet}",
        "--prompt", PROMPT, "--tune-steps", 2, "--frames", 4, "--stride", 1, "--set", "invert.steps=4",
        "--set", "edit.steps=4", "--set", "clip_model=builtin", "--runs", tmp_path / "runs",
    )  # fmt: skip


@pytest.fixture()
def no_control_weights(no_weights, monkeypatch):
    import ctxedit.models.control

    def refuse(*args, **kwargs):
        raise AssertionError("the ControlNet was loaded")

    monkeypatch.setattr(ctxedit.models.control, "network", refuse)


@pytest.fixture()
def depth(tmp_path):
    """A map for each frame of the clip."""
    frames = np.linspace(0, 255, 8 * 96 * 96).reshape(8, 96, 96).astype(np.uint8)[..., None].repeat(3, -1)
    return write_clip(tmp_path / "depth.mp4", frames, Fraction(25, 2))


def test_a_preset_that_lacks_its_map_says_so_before_any_weight(ctxedit, arguments, no_control_weights):
    for more in ((), ("--dry-run",)):
        answer = ctxedit("tune", *arguments, "--set", "control.kind=video", *more)
        assert answer.code == 2 and "need a control map" in answer.err and "--control FILE" in answer.err


def test_a_dry_run_names_the_control_and_counts_it(ctxedit, arguments, no_control_weights):
    answer = ctxedit("run", *arguments, "--target", TARGET, "--dry-run")
    assert answer.code == 0, answer.err
    assert "Canny edges (100, 100)" in answer.out and "the ControlNet as many" in answer.out
    plan = ctxedit("run", *arguments, "--target", TARGET, "--dry-run", "--json").table["plan"]
    by_name = {stage["name"]: stage for stage in plan["stages"]}
    assert by_name["tune"]["control_evaluations"] == by_name["tune"]["evaluations"] == 2
    plain = ctxedit(
        "run", *arguments, "--target", TARGET, "--dry-run", "--json", "--set", "control.kind=none"
    ).table["plan"]
    assert plain["control"] is None
    for with_it, without in zip(plan["stages"], plain["stages"], strict=True):
        assert without["control_evaluations"] == 0
        if with_it["evaluations"]:
            assert with_it["peak_bytes"] > without["peak_bytes"]


@pytest.mark.parametrize(
    "said, code, wanted",
    [
        (("--control", "gone.mp4"), 3, "gone.mp4"),
        (("--control", "wide.png"), 3, "aspect ratios differ"),
        (("--control", "text.mp4"), 3, "text.mp4"),
        (("--set", "control.map=x.png"), 2, "control.map is given"),
        (("--set", "control.model=nobody/none"), 4, "nobody/none"),
        (("--set", "control.model=auto"), 2, "no ControlNet is known"),
        (("--set", "control.scale=-1"), 2, "control.scale"),
        (("--set", "control.high=10"), 2, "control.high"),
    ],
)
def test_bad_input_is_one_line_and_a_hint(
    ctxedit, arguments, no_control_weights, tmp_path, monkeypatch, said, code, wanted
):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (96, 24)).save("wide.png")
    (tmp_path / "text.mp4").write_text("no video")
    answer = ctxedit("tune", *arguments, *said)
    assert answer.code == code and wanted in answer.err
    assert answer.err.count("error:") == 1 and "Traceback" not in answer.err


def test_a_map_of_ones_own_is_shown_to_the_network(ctxedit, arguments, depth, tmp_path, monkeypatch):
    from ctxedit.models.control import Control

    seen = []
    ask = Control.__call__

    def spy(self, x, timestep, tokens, view, added=None):
        seen.append(view.control)
        return ask(self, x, timestep, tokens, view, added)

    monkeypatch.setattr(Control, "__call__", spy)
    monkeypatch.chdir(depth.parent)
    answer = ctxedit("run", *arguments, "--target", TARGET, "--control", "depth.mp4", "--json",
                     "--round-trip", "estimate")  # fmt: skip
    assert answer.code == 0, answer.err
    assert len(seen) == 2 + 4 + 4 + 4, "in tuning, inversion, round trip and sampling"
    grey = seen[0].mean((1, 2, 3))
    assert seen[0].shape[0] == 4 and seen[0].min() >= 0 and seen[0].max() <= 1
    assert (grey[1:] > grey[:-1]).all(), "each frame its own picture"
    run = answer.table["run"]
    # Another folder, and the map somewhere else, with the same in it: nothing is done again.
    monkeypatch.chdir("/")
    again = ctxedit("edit", "--run", run, "--target", TARGET, "--json", "--dry-run").table["plan"]
    assert all(stage["reused"] for stage in again["stages"])
    kept = depth.read_bytes()
    frames = np.zeros((8, 96, 96, 3), np.uint8)
    write_clip(depth, frames, Fraction(25, 2), overwrite=True)
    changed = ctxedit("edit", "--run", run, "--target", TARGET, "--json", "--dry-run").table["plan"]
    reused = {stage["name"].split()[0]: stage["reused"] for stage in changed["stages"]}
    assert not reused["tune"] and not reused["invert"] and not reused["edit"]
    depth.write_bytes(kept)
    again = ctxedit("edit", "--run", run, "--target", TARGET, "--json", "--dry-run").table["plan"]
    assert all(stage["reused"] for stage in again["stages"])


def test_other_settings_of_the_control_are_another_run(ctxedit, arguments):
    first = ctxedit("tune", *arguments, "--json").table["run"]
    assert ctxedit("tune", *arguments, "--json").table["run"] == first
    assert ctxedit("tune", *arguments, "--set", "control.scale=0.5", "--json").table["run"] != first
    answer = ctxedit("edit", "--run", first, "--target", TARGET, "--set", "control.scale=0.5")
    assert answer.code == 2 and "control.scale" in answer.err and "tune again" in answer.err


def test_a_picture_from_words_takes_no_control(ctxedit, stable_diffusion, tmp_path):
    answer = ctxedit(
        "t2i", PROMPT, "--preset", "controlvideo", "--model", stable_diffusion, "--steps", 2,
        "-o", tmp_path / "x.png",
    )  # fmt: skip
    assert answer.code == 0 and "the ControlNet is not used" in answer.err


def test_a_preset_on_a_base_is_shown_whole(ctxedit):
    from ctxedit.tables import preset_table, tomllib

    answer = ctxedit("presets", "show", "fatezero+adapter")
    assert answer.out.startswith("# fatezero+adapter.toml changes the preset fatezero")
    assert tomllib.loads(answer.out) == preset_table("fatezero+adapter")
    assert "min_channels" in answer.out and ctxedit("presets", "show", "fatezero+adapter", "--json").code == 0


class _Detector:
    """Stands for a detector of controlnet_aux: the frame's negative, at another size."""

    asked: ClassVar[list[tuple[object, ...]]] = []

    @classmethod
    def from_pretrained(cls, name, **options):
        cls.asked.append((name, options))
        return cls()

    def to(self, device):
        return self

    def __call__(self, image, detect_resolution, image_resolution, output_type):
        assert output_type == "pil" and detect_resolution == image_resolution == min(image.size)
        return ImageOps.invert(image).resize((64, 64))


@pytest.fixture()
def detectors(monkeypatch):
    """controlnet_aux as far as ctxedit uses it."""
    library = types.ModuleType("controlnet_aux")
    library.__spec__ = importlib.machinery.ModuleSpec("controlnet_aux", None)
    for name in ("HEDdetector", "MidasDetector", "OpenposeDetector"):
        setattr(library, name, type(name, (_Detector,), {"asked": []}))
    monkeypatch.setitem(sys.modules, "controlnet_aux", library)
    return library


@pytest.mark.parametrize(
    ("name", "detector", "what"),
    [
        ("sd-controlnet-hed", "HEDdetector", "HED edges"),
        ("control_v11f1p_sd15_depth", "MidasDetector", "depth"),
        ("control_v11p_sd15_openpose", "OpenposeDetector", "poses"),
    ],
)
def test_a_map_is_computed_where_the_library_is_there(
    ctxedit, arguments, controlnet, detectors, tmp_path, monkeypatch, name, detector, what
):
    from ctxedit.models.control import Control

    seen = []
    ask = Control.__call__

    def spy(self, x, timestep, tokens, view, added=None):
        seen.append(view.control)
        return ask(self, x, timestep, tokens, view, added)

    monkeypatch.setattr(Control, "__call__", spy)
    model = shutil.copytree(controlnet, tmp_path / name)
    settings = ("--set", "control.kind=video", "--set", f"control.model={model}")
    asked = ("tune", *arguments, *settings, "--tune-steps", 1)
    assert f"{what}, computed from the clip, to the ControlNet" in ctxedit(*asked, "--dry-run").out
    answer = ctxedit(*asked)
    assert answer.code == 0, answer.err
    assert getattr(detectors, detector).asked == [("lllyasviel/Annotators", {})]
    assert seen[0].shape[:2] == (4, 3) and 0 <= seen[0].min() < seen[0].max() <= 1


def test_without_the_library_both_ways_are_named(ctxedit, arguments, no_control_weights, monkeypatch):
    monkeypatch.setattr("ctxedit.models.control_maps.find_spec", lambda name: None)
    wanted = ("--set", "control.kind=video", "--set", "control.model=lllyasviel/sd-controlnet-depth")
    for more in ((), ("--dry-run",)):
        answer = ctxedit("tune", *arguments, *wanted, *more)
        assert answer.code == 2 and answer.err.count("error:") == 1
        assert "needs a map of depth" in answer.err
        assert "pip install 'ctxedit[control]'" in answer.err and "--control FILE" in answer.err


def test_a_detector_whose_weights_are_not_here(ctxedit, arguments, controlnet, detectors, tmp_path):
    def gone(name, **options):
        assert options == {"local_files_only": True}
        raise OSError("not in the cache")

    detectors.MidasDetector.from_pretrained = gone
    model = shutil.copytree(controlnet, tmp_path / "sd-controlnet-depth")
    answer = ctxedit(
        "tune", *arguments, "--set", "control.kind=video", "--set", f"control.model={model}", "--offline"
    )
    assert answer.code == 4 and "lllyasviel/Annotators" in answer.err and "not in the cache" in answer.err


class _Code:
    """Creates a folder when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (str(self.mark),))


@pytest.mark.parametrize("said", [{}, {"weights_only": False}])
def test_no_code_in_a_detectors_pickle_is_run(
    ctxedit, arguments, controlnet, detectors, tmp_path, monkeypatch, said
):
    import torch

    mark, file = tmp_path / "mark", tmp_path / "ControlNetHED.pth"
    torch.save({"norm": torch.zeros(1), "more": _Code(mark)}, file)
    detectors.HEDdetector.from_pretrained = lambda name, **options: torch.load(file, **said)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    model = shutil.copytree(controlnet, tmp_path / "sd-controlnet-hed")
    answer = ctxedit("tune", *arguments, "--set", "control.kind=video", "--set", f"control.model={model}")
    assert answer.code == 4 and "the detector of HED edges could not be loaded" in answer.err
    assert not mark.exists() and answer.err.count("error:") == 1
    torch.load(file, weights_only=False)
    assert mark.exists(), "it would have been run"
