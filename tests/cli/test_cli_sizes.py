"""One sampling serves every size and file of an edit; outside a mask each of them shows the source."""

import json

import numpy as np
import pytest
from asking import FEW, TARGET
from PIL import Image
from tiny import make_pixel_upscaler

from ctxedit.media.geometry import plan_fit, resize
from ctxedit.media.mask import read_mask
from ctxedit.models.backbones.stable_diffusion import StableDiffusion
from ctxedit.runs import Run

STEPS = ("--set", "upscale.steps=1")


@pytest.fixture(scope="session")
def own(tmp_path_factory):
    # Of other weights than other files' upscalers: an edit that they made in the shared run would be reused.
    return make_pixel_upscaler(tmp_path_factory.mktemp("own") / "upscaler", scale=0.25)


@pytest.fixture()
def run(made, runs):
    return Run.newest(runs, print).folder


@pytest.fixture()
def asked(monkeypatch):
    """Passes of the denoiser, counted where it is called."""
    counted, real = [], StableDiffusion.raw

    def raw(self, *args, **kwargs):
        counted.append(1)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(StableDiffusion, "raw", raw)
    return counted


def row(answer, target):
    stages = {stage["name"]: stage for stage in answer.table["plan"]["stages"]}
    return stages[f"edit “{target}”"]


def test_another_size_or_file_of_an_edit_is_not_sampled_again(ctxedit, run, own, asked, tmp_path):
    target = "a whale walking on the beach"
    edit = ("edit", target, "--run", run)
    first = ctxedit(*edit, "--json")
    assert first.code == 0 and asked, first.err
    asked.clear()
    upscaled, source_size = ("--upscaler", own, *STEPS), ("--output-size", "source")
    written = (source_size, upscaled, ("-o", tmp_path / "dog.gif"))
    for way in (
        *written,
        (*upscaled, *source_size),
        ("--no-audio",),
        ("--chroma", "444"),
        ("--no-metadata",),
    ):
        plan = row(ctxedit(*edit, *way, "--dry-run", "--json"), target)
        assert not plan["reused"] and plan["evaluations"] == 0, way
    for way in written:
        answer = ctxedit(*edit, *way, "--json")
        assert answer.code == 0 and not answer.table["reused"] and not asked, (way, answer.err)
    names = {Run(run).facts(name)["frames"] for name in Run(run).edits() if "a-whale" in name}
    assert len(names) == 1, "all of them share the frames that were sampled"
    assert row(ctxedit(*edit, "--guidance", 5, "--dry-run", "--json"), target)["evaluations"]


def test_y_samples_again_once_for_all_that_needs_it(ctxedit, run, own, asked):
    edit = ("edit", "a bird walking on the beach", "--run", run)
    assert ctxedit(*edit).code == 0
    once = len(asked)
    asked.clear()
    assert ctxedit(*edit, "--upscaler", own, *STEPS, "-y").code == 0 and len(asked) == once > 0


@pytest.fixture(scope="module", params=["picture", "boxes"])
def mask(request, tmp_path_factory):
    """The right half, with an edge that falls between the pixels of the working size."""
    folder = tmp_path_factory.mktemp("mask")
    if request.param == "boxes":
        boxes = {"size": [96, 96], "boxes": [{"label": "tiger", "box": [50, 10, 96, 96]}]}
        (folder / "mask.json").write_text(json.dumps(boxes))
        return folder / "mask.json"
    picture = np.zeros((96, 96), np.uint8)
    picture[10:, 50:] = 255
    Image.fromarray(picture).save(folder / "mask.png")
    return folder / "mask.png"


@pytest.mark.parametrize(
    ("way", "side"),
    [((), 64), (("--output-size", "source"), 96), (("--upscale",), 256),
     (("--upscale", "--output-size", "source"), 96)],
)  # fmt: skip
def test_outside_a_mask_every_size_has_the_sources_pixels(
    ctxedit, run, own, clip, mask, way, side, tmp_path, frames_of
):
    options = [
        part for word in way for part in (("--upscaler", own, *STEPS) if word == "--upscale" else [word])
    ]
    answer = ctxedit(
        "edit", "a rocket in space", "--run", run, "--mask", mask, "-o", f"{tmp_path / 'out'}/", *options,
        "--guidance", 6,
    )  # fmt: skip
    assert answer.code == 0, answer.err
    edited, source = frames_of(tmp_path / "out", 4), frames_of(clip, 4).astype(np.uint8)
    white = read_mask(mask, 4, 0, 1, plan_fit(96, 96, side, 1))
    own_pixels = resize(source, side, side).astype(np.int16)
    kept, changed = white == 0, white == 1
    assert edited.shape == (4, side, side, 3) and 0.3 < kept.mean() < 0.7
    assert np.array_equal(edited[kept], own_pixels[kept])
    assert np.abs(edited[changed] - own_pixels[changed]).mean() > 5


def test_figures_say_the_size_that_they_were_measured_at(ctxedit, run, own, clip):
    """Working size, whatever the edit's own is: on the terminal, in JSON and in the run's metrics.json."""
    upscaled = ("--upscaler", own, *STEPS)
    again = ("run", clip, TARGET, "--tune-steps", 2, *FEW, "--runs", run.parent, *upscaled)
    done = ctxedit(*again, "--json")
    assert done.table["edits"][0]["figures"]["measured_size"] == [64, 64] and "(at 64×64; CLIP" in done.err
    rows = ctxedit("eval", "--run", run, "--json").table["edits"]
    assert {tuple(row["measured_size"]) for row in rows} == {(64, 64)}
    assert json.loads((run / "metrics.json").read_text())[0]["measured_size"] == [64, 64]
    assert "at 64×64" in ctxedit("eval", "--run", run, "--metrics", "psnr").out
    video = done.table["edits"][0]["video"]
    whole = ctxedit("eval", "--video", video, "--source", clip, "--prompt", TARGET, "--metrics", "psnr")
    assert "256×256" in whole.out, "a video by itself is measured as large as it is"
