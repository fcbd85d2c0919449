"""Text to image with a model's own adapter, tuning that starts from it, and sweeps judged by samples."""

import csv
import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from ctxedit.bench.sweeps import snapshots
from ctxedit.config import AdapterConfig
from ctxedit.models.adapter import ContextAdapter
from ctxedit.training import recipe
from ctxedit.training.job import Training

ADAPTER = {"width": 32, "blocks": 1, "heads": 2, "patch": 2}
# The built-in settings bound the shift; this adapter is free.
SIZES = [
    part for key, value in {**ADAPTER, "bound": 0}.items() for part in ("--set", f"adapter.{key}={value}")
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The built-in models, after two steps of joint training with a small adapter and a snapshot between."""
    out = tmp_path_factory.mktemp("trained") / "arm"
    one = recipe.resolve("arm-contextual")
    short = {"steps": 2, "batch": 2, "lr": 1e-4, "precision": "no", "workers": 0, "snapshots": 2}
    small = recipe.parse(one.text, one.name).changed(short, {"compositions": 0.5})
    small.task["adapter"] = ADAPTER
    Training(small, out / ".state", out).run(lambda row: None)
    file = out / "adapter" / "adapter.safetensors"
    adapter = ContextAdapter.load(file)
    torch.nn.init.normal_(adapter.out.weight, std=0.5)  # two steps leave it next to zero
    adapter.save(file)
    return out


def picture(ctxedit, model, path, *more):
    result = ctxedit("t2i", "a cat on the beach", "--model", model, "--steps", 2, "-o", path, "-y",
                     "--no-metadata", *more)  # fmt: skip
    assert result.code == 0, result.err
    return path.read_bytes()


def test_t2i_uses_the_models_own_adapter_by_default(ctxedit, trained, tmp_path):
    own = picture(ctxedit, trained, tmp_path / "own.png")
    file = trained / "adapter" / "adapter.safetensors"
    assert own == picture(ctxedit, trained, tmp_path / "named.png", "--adapter", file)
    assert own != picture(ctxedit, trained, tmp_path / "plain.png", "--no-adapter")


def test_adapter_and_no_adapter_contradict(ctxedit, trained, tmp_path):
    file = trained / "adapter" / "adapter.safetensors"
    result = ctxedit("t2i", "a cat", "--adapter", file, "--no-adapter", "-o", tmp_path / "a.png")
    assert result.code == 2 and "--no-adapter" in result.err


def plan_of(ctxedit, model, clip, *more):
    return ctxedit(
        "tune", clip, "--prompt", "a tiger", "--model", model, "--frames", 2, "--dry-run",
        "--set", "tune.adapter_init=pretrained", *more,
    )  # fmt: skip


def test_tuning_starts_from_the_pretrained_adapter(ctxedit, trained, clip, tmp_path):
    result = ctxedit(
        "tune", clip, "--prompt", "a tiger", "--model", trained, "--frames", 2,
        "--tune-steps", 1, *SIZES,
        "--set", "tune.lr=1e-9", "--set", "tune.adapter_lr=1e-9", "--set", "tune.adapter_init=pretrained",
        "--runs", tmp_path,
    )  # fmt: skip
    assert result.code == 0, result.err
    (tuned,) = tmp_path.glob("*/tune/adapter.safetensors")
    stored = load_file(trained / "adapter" / "adapter.safetensors")
    assert_close(load_file(tuned), stored, atol=1e-3, rtol=0)


def test_a_pretrained_adapter_of_other_sizes_is_refused_before_work(ctxedit, trained, clip):
    result = plan_of(ctxedit, trained, clip)
    assert result.code == 2 and "adapter.width" in result.err and "adapter.width=32" in result.err


def test_a_model_without_an_adapter_is_refused_before_work(ctxedit, clip):
    result = plan_of(ctxedit, "builtin", clip)
    assert result.code == 2 and "has no adapter" in result.err


def table(file):
    return list(csv.DictReader(file.read_text().splitlines()))


def test_convergence_compares_a_trainings_snapshots(ctxedit, trained, tmp_path):
    ask = ("eval", "convergence", trained, "--count", 10, "--steps", 1, "-o", tmp_path)
    result = ctxedit(*ask)
    assert result.code == 0, result.err
    rows = table(tmp_path / "convergence.csv")
    assert [(r["steps"], r["metric"]) for r in rows] == [
        (steps, metric) for steps in ("1", "2") for metric in ("fid", "clip_score", "all_right")
    ]
    right = next(r for r in rows if r["metric"] == "all_right")
    assert 0 <= float(right["low"]) <= float(right["value"]) <= float(right["high"]) <= 1
    assert (tmp_path / "convergence.png").read_bytes().startswith(b"\x89PNG")
    images = {f: f.stat().st_mtime_ns for f in tmp_path.glob("arm-*/*.png")}
    assert len(images) == 20
    assert ctxedit(*ask).code == 0
    assert images == {f: f.stat().st_mtime_ns for f in images}, "nothing is generated again"


def test_guidance_is_swept_over_the_same_captions(ctxedit, tmp_path):
    result = ctxedit(
        "eval", "guidance", "builtin", "--values", "1,3", "--count", 10, "--steps", 1, "-o", tmp_path
    )  # fmt: skip
    assert result.code == 0, result.err
    rows = table(tmp_path / "guidance.csv")
    assert [float(r["guidance"]) for r in rows if r["metric"] == "fid"] == [1, 3]
    assert len({r["value"] for r in rows if r["metric"] == "fid"}) == 2
    assert not any(r["difference"] for r in rows), "one model has nothing to differ from"
    assert {r["images"] for r in rows} == {"10"}
    assert {r["metric"]: r["features"] for r in rows} == {
        "fid": "CLIP builtin", "clip_score": "CLIP builtin", "all_right": "composition judge",
    }  # fmt: skip
    head, *lines = result.out.splitlines()
    assert head.split()[-2:] == ["images", "features"]
    assert all(line.split()[-3:] == ["10", "CLIP", "builtin"] for line in lines)
    assert (tmp_path / "guidance.png").read_bytes().startswith(b"\x89PNG")


def test_models_are_compared_with_the_first_caption_by_caption(ctxedit, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "copy")
    models = (trained, tmp_path / "copy", trained / "snapshots" / "000001")
    ask = ("eval", "guidance", *models, "--values", "3", "--count", 20, "--steps", 1)
    result = ctxedit(*ask, "--json", "-o", tmp_path / "out")
    assert result.code == 0, result.err
    found = {(r["model"], r["metric"]): r for r in result.table["rows"]}
    for metric in ("fid", "clip_score", "all_right"):
        first, same, other = (found[model.name, metric] for model in models)
        assert first["difference"] is None
        assert (same["difference"], same["difference_low"], same["difference_high"]) == (0, 0, 0)
        assert other["difference_from"] == trained.name
        assert other["difference"] == pytest.approx(other["value"] - first["value"])
        assert other["difference_low"] <= other["difference"] <= other["difference_high"]
    other = found["000001", "clip_score"]
    assert other["difference"] != 0
    assert other["difference_high"] - other["difference_low"] < other["high"] - other["low"], "paired"
    shown = ctxedit(*ask, "-o", tmp_path / "out")
    assert f"minus {trained.name}" in shown.out


def test_runs_in_folders_of_one_name_are_two_curves(ctxedit, trained, tmp_path):
    other = shutil.copytree(trained, tmp_path / "again" / trained.name)
    ask = ("eval", "convergence", trained, other, "--count", 10, "--steps", 1, "-o", tmp_path / "out")
    result = ctxedit(*ask)
    assert result.code == 0, result.err
    rows = table(tmp_path / "out" / "convergence.csv")
    assert {r["model"] for r in rows} == {str(trained), str(other)}
    assert len(list((tmp_path / "out").glob("*-g*"))) == 4


def _with_snapshots(folder, steps, snapshots=3):
    """A folder as a training leaves it that went on from a model with a record of its own."""
    for step in (133, 266):
        (folder / "snapshots" / f"{step:06d}").mkdir(parents=True)
    for name, known in {
        "adapter": {"steps": steps, "recipe": f"[schedule]\nsnapshots = {snapshots}\nsteps = 400\n"},
        "unet": {"steps": 640, "recipe": "[schedule]\nsteps = 640\n"},
    }.items():
        (folder / name).mkdir()
        (folder / name / "training.json").write_text(json.dumps(known))


@pytest.mark.parametrize(
    ("steps", "places"), [(400, [133, 266, 400]), (300, [133, 266, 300]), (266, [133, 266])]
)
def test_the_newest_weights_are_placed_by_the_steps_of_their_record(tmp_path, steps, places):
    _with_snapshots(tmp_path / "arm", steps)
    found = snapshots(str(tmp_path / "arm"), "arm")
    assert [one.steps for one in found] == places and found[-1].path == str(tmp_path / "arm")


def test_a_conflict_with_existing_images_is_found_before_any_are_made(ctxedit, tmp_path, no_weights):
    (tmp_path / "builtin-g3").mkdir()
    (tmp_path / "builtin-g3" / "coco.json").write_text('{"model": "another"}')
    result = ctxedit("eval", "guidance", "builtin", "--values", "1,3", "--count", 10, "-o", tmp_path)
    assert result.code == 6 and "builtin-g3 holds images of another model" in result.err
    assert "or delete" in result.err and "-y" not in result.err, "these commands have no -y"
    assert [path.name for path in tmp_path.iterdir()] == ["builtin-g3"]


def test_a_model_of_another_size_than_drawn_images_is_refused(
    ctxedit, stable_diffusion, tmp_path, no_weights
):
    large = shutil.copytree(stable_diffusion, tmp_path / "large")
    config = json.loads((large / "unet" / "config.json").read_text())
    config["sample_size"] *= 2
    (large / "unet" / "config.json").write_text(json.dumps(config))
    result = ctxedit("eval", "guidance", large, "--clip-model", "builtin", "-o", tmp_path / "out")
    assert result.code == 2 and "drawn compositions have 64" in result.err and "--coco" in result.err
    assert not (tmp_path / "out").exists()


def test_an_adapter_that_sees_frames_through_clip_is_refused_before_work(ctxedit, tmp_path, no_weights):
    sizes = {"width": 32, "blocks": 1, "heads": 2, "patch": 2}
    seeing = ContextAdapter(AdapterConfig(**sizes, image="clip"), 4, 192, 16)
    seeing.save(tmp_path / "seeing.safetensors")
    ContextAdapter(AdapterConfig(**sizes), 16, 192).save(tmp_path / "wide.safetensors")
    for name, said in (("seeing", "adapter.image = clip"), ("wide", "another model than")):
        result = ctxedit(
            "t2i", "a cat", "--adapter", tmp_path / f"{name}.safetensors", "-o", tmp_path / "a.png"
        )
        assert result.code == 2 and said in result.err, result.err
        assert result.err.count("error:") == result.err.count("hint:") == 1


def test_an_adapter_that_is_switched_off_is_none_to_start_from(ctxedit, trained, clip, tmp_path):
    plain = shutil.copytree(trained, tmp_path / "plain")
    file = plain / "adapter" / "adapter.safetensors"
    adapter = ContextAdapter.load(file)
    adapter.config = replace(adapter.config, enabled=False)
    adapter.save(file)
    result = plan_of(ctxedit, plain, clip, *SIZES)
    assert result.code == 2 and "has no adapter" in result.err, result.err


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (("guidance", "builtin", "--values", "1,x"), "--values"),
        (("guidance", "builtin", "--values", "0.5"), "1 or more"),
        (("guidance", "builtin", "builtin"), "twice"),
        (("guidance", "builtin", "--coco", "captions.json"), "--images"),
        (("convergence", "."), "no snapshots"),
    ],
)
def test_bad_sweeps_are_refused_before_work(ctxedit, tmp_path, ask, said):
    result = ctxedit("eval", *ask, "-o", tmp_path / "out")
    assert result.code == 2 and said in result.err, result.err
    assert not (tmp_path / "out").exists()


def test_convergence_of_a_folder_that_is_not_there(ctxedit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain-0").mkdir()
    result = ctxedit("eval", "convergence", "plian-0", "-o", "out")
    assert result.code == 3 and "plian-0 is not a folder" in result.err
    assert "did you mean 'plain-0'?" in result.err and not (tmp_path / "out").exists()


def test_cost_sets_the_adapter_beside_the_plain_denoiser(ctxedit, trained):
    result = ctxedit(
        "eval", "cost", "--model", trained, "--batch", 1, "--repeats", 1, "--steps", 1,
        "--set", "upscale.scale=4", "--json",
    )  # fmt: skip
    assert result.code == 0, result.err
    plain, contextual, cascade = result.table["rows"]
    assert cascade["way"] == "cascade" and cascade["parameters"] > plain["parameters"]
    assert cascade["seconds_per_training_image"] > 0 and cascade["sampling_ratio"] > 1
    adapter = ContextAdapter.load(trained / "adapter" / "adapter.safetensors")
    more = sum(p.numel() for p in adapter.parameters())
    assert contextual["parameters"] - plain["parameters"] == more
    assert plain["training_ratio"] == plain["sampling_ratio"] == 1
    assert contextual["seconds_per_training_image"] > 0 < contextual["seconds_per_image"]


def test_a_batch_beyond_memory_is_foretold(ctxedit, no_weights):
    result = ctxedit("eval", "cost", "--batch", 1_000_000)
    assert result.code == 5 and "a training step of 1000000 images needs about" in result.err, result.err
    assert "smaller --batch" in result.err and result.out == ""
