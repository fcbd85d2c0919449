"""The commands on the built-in models: results, streams, reuse."""

import io
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from asking import FEW, TARGET
from PIL import Image

from ctxedit.media.probe import probe
from ctxedit.models.weights import BUILTIN_FOLDER
from ctxedit.runs import Run


@pytest.fixture()
def run_folder(made, runs):
    (folder,) = runs.iterdir()
    return folder


def test_run_prints_the_path_and_talks_on_stderr(made, run_folder):
    (line,) = made.out.splitlines()
    video = Path(line)
    assert video.is_file() and video.parent == run_folder / "edits"
    info = probe(video)
    assert (info.frames, info.width, info.height, str(info.fps)) == (4, 64, 64, "25/2")
    assert (
        len(list(video.parent.glob("*-sheet.png"))) == len(list(video.parent.glob("*-side-by-side.mp4"))) == 1
    )
    for word in ("seed 0", "caption (builtin)", "tune: 2 steps", "invert: done", TARGET, "CLIP: builtin"):
        assert word in made.err
    (beside,) = [one for one in made.err.splitlines() if one.startswith("also written: ")]
    written = beside.removeprefix("also written: ").split(", ")
    assert {Path(one) for one in written} == {*video.parent.glob("*-s*.png"), *video.parent.glob("*-s*.mp4")}
    assert re.search(
        r"CLIP-text 0\.\d{3}, CLIP-temp [01]\.\d{3}, PSNR \d+\.\d dB, SSIM 0\.\d{3} \(", made.err
    )
    (row,) = json.loads((run_folder / "metrics.json").read_text())
    assert row["video"] == str(video.resolve()) and -1 <= row["clip_text"] <= 1


def test_run_again_reuses_everything_and_json_is_pure(ctxedit, made, clip, runs):
    answer = ctxedit("run", clip, "--target", TARGET, "--tune-steps", 2, *FEW, "--runs", runs, "--json", "-q")
    assert answer.code == 0 and answer.err == ""
    (edit,) = answer.table["edits"]
    assert edit["reused"] and edit["video"] == made.out.strip()
    assert edit["figures"]["clip_model"] == "builtin" and answer.table["seed"] == 0
    assert answer.table["run"] == str(next(runs.iterdir()))


def test_a_dry_run_shows_what_is_reused_loads_and_writes_nothing(ctxedit, made, clip, runs, no_weights):
    before = {p: p.stat().st_mtime_ns for p in runs.rglob("*")}
    arguments = ("run", clip, "--target", TARGET, "--target", "a cat", "--tune-steps", 2, *FEW)
    answer = ctxedit(*arguments, "--runs", runs, "--dry-run", "--json")
    assert answer.code == 0, answer.err
    plan = answer.table["plan"]
    reused = {s["name"]: s["reused"] for s in plan["stages"]}
    assert reused == {
        "caption": True, "tune": True, "invert": True, "round trip": True, f"edit “{TARGET}”": True,
        "edit “a cat”": False, "evaluate": False,
    }  # fmt: skip
    assert plan["working_size"] == [64, 64] and plan["source_size"] == [96, 96] and plan["frames"] == 4
    assert plan["fps"] == "25/2" and plan["run"] == str(next(runs.iterdir()))
    assert all(s["peak_bytes"] > 10e6 for s in plan["stages"]) and plan["memory_available"] > 0
    fresh = ctxedit(*arguments, "--runs", runs / "other", "--dry-run").out
    assert "a new one" in fresh and "reused" not in fresh and "2 × 4 frames" in fresh
    assert {p: p.stat().st_mtime_ns for p in runs.rglob("*")} == before


def test_several_targets_give_one_line_each(ctxedit, made, clip, runs):
    targets = ("--target", TARGET, "--target", "a tiger walking in the snow")
    answer = ctxedit("run", clip, *targets, "--tune-steps", 2, *FEW, "--runs", runs)
    first, second = answer.out.splitlines()
    assert first == made.out.strip() and Path(second).is_file() and "snow" in Path(second).name
    assert "tune: 2 steps" not in answer.err and "invert: 4 steps" not in answer.err


def test_edit_takes_the_newest_run_says_so_and_equals_run(ctxedit, made, run_folder, frames_of, tmp_path):
    runs = tmp_path / "runs"  # the shared run stays as it is
    shutil.copytree(run_folder, runs / run_folder.name)
    answer = ctxedit("edit", "--target", TARGET, "--runs", runs, "-o", tmp_path / "again.mp4")
    assert answer.code == 0, answer.err
    assert answer.out == f"{tmp_path / 'again.mp4'}\n"
    assert f"run: {runs / run_folder.name} (the newest)" in answer.err
    assert "tune: 2 steps" not in answer.err and "invert: 4 steps" not in answer.err
    again = frames_of(tmp_path / "again.mp4", 4)
    assert np.array_equal(again, frames_of(Path(made.out.strip()), 4))
    other = ctxedit("edit", "--target", "a dog", "--runs", runs, "-o", tmp_path / "again.mp4")
    assert other.code == 6, "another edit does not take its place"
    again = ctxedit("edit", "--target", TARGET, "--runs", runs, "-o", tmp_path / "again.mp4")
    assert (again.code, again.out) == (0, answer.out) and "exists already" in again.err


def test_an_edit_may_change_sampling_and_seed_and_tunes_nothing(
    ctxedit, made, run_folder, no_weights, monkeypatch, tmp_path
):
    monkeypatch.setenv("CTXEDIT_EDIT_GUIDANCE", "2.5")
    file = tmp_path / "mine.toml"
    file.write_text("[fusion]\nblend = 'latent'\n")
    answer = ctxedit(
        "edit", "--run", run_folder, "--target", TARGET, "--config", file, "--seed", 9, "--dry-run", "--json"
    )
    assert answer.code == 0, answer.err
    stages = {s["name"]: s for s in answer.table["plan"]["stages"]}
    assert stages["tune"]["reused"] and stages["invert"]["reused"]
    edit = stages[f"edit “{TARGET}”"]
    assert not edit["reused"] and edit["evaluations"] == 4 * 3, (
        "a blended edit has the source beside it always"
    )
    assert answer.table["plan"]["seed"] == 9
    answer = ctxedit("edit", "--run", run_folder, "--target", TARGET, "--steps", 6, "--dry-run", "--json")
    stages = {s["name"]: s for s in answer.table["plan"]["stages"]}
    assert stages["tune"]["reused"] and not stages["invert"]["reused"]


@pytest.mark.parametrize(
    "change",
    [
        "clip.frames=3",
        "model=sd14",
        "tune.steps=9",
        "adapter.enabled=false",
        "attention.window=2",
        "dtype=bfloat16",
    ],
)
def test_an_edit_cannot_change_what_was_tuned_with(ctxedit, made, run_folder, no_weights, change):
    answer = ctxedit("edit", "--run", run_folder, "--target", TARGET, "--set", change)
    assert answer.code == 2 and change.split("=")[0] in answer.err and "tune again" in answer.err
    assert ctxedit("edit", "--run", run_folder, "--target", TARGET, "--preset", "ddim").code == 2


def test_mask_and_source_size(ctxedit, made, run_folder, clip, tmp_path, frames_of):
    mask = np.zeros((96, 96), np.uint8)
    mask[:, 48:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    out = tmp_path / "frames"
    answer = ctxedit(
        "edit", "--run", run_folder, "--target", "a rocket in space", "--mask", tmp_path / "mask.png",
        "-o", f"{out}/", "--output-size", "source", "--guidance", 6,
    )  # fmt: skip
    assert answer.code == 0, answer.err
    edited, source = frames_of(out, 4), frames_of(clip, 4)
    assert edited.shape == (4, 96, 96, 3)
    changed = np.abs(edited - source).mean((0, 1, 3))
    assert changed[:40].mean() < 0.3 * changed[56:].mean()


def test_heat_maps_come_with_and_without_the_shift_and_once(ctxedit, made, run_folder):
    arguments = ("edit", "--run", run_folder, "--target", TARGET, "--steps", 4, "--heatmaps", "--json")
    first = ctxedit(*arguments)
    assert first.code == 0 and first.table["reused"], first.err
    with Image.open(first.table["heatmaps"]) as sheet:
        sheet.load()
    for kind in ("heatmaps", "heatmaps_video"):  # known as results of ctxedit
        assert ctxedit("show", first.table[kind], "--json").table["target"] == TARGET
    video = probe(first.table["heatmaps_video"])
    # Source; edit and three words; the same with the shift off: nine columns of video, rows of the sheet.
    assert video.frames == 4 and video.width > 9 * 128 and sheet.height > 9 * 128
    assert first.err.count("heat maps “") >= 2 and "”, shift off: done" in first.err
    assert "heat maps “" not in ctxedit(*arguments).err


def test_tune_prints_the_run_folder_and_takes_a_prompt(ctxedit, clip, tmp_path):
    arguments = ("tune", clip, "--prompt", "a tiger", "--tune-steps", 1, *FEW[:4], "--no-adapter")
    answer = ctxedit(*arguments, "--runs", tmp_path, "--seed", 4)
    assert answer.code == 0, answer.err
    run = Run(Path(answer.out.strip()))
    assert run.facts("caption")["text"] == "a tiger" and run.facts("tune")["steps"] == 1
    assert run.config.seed == 4 and not run.config.adapter.enabled
    assert not (run.folder / "tune" / "adapter.safetensors").exists() and "seed 4" in answer.err
    assert f'next: ctxedit edit "TEXT" --run {run.folder}' in answer.err
    assert "tuned already" in ctxedit(*arguments, "--runs", tmp_path, "--seed", 4).err not in answer.err
    answer = ctxedit(*arguments, "--runs", tmp_path, "--seed", 4, "--json", "-q")
    assert answer.table["run"] == str(run.folder) and answer.err == ""


def test_tune_draws_its_curve_on_request(ctxedit, clip, tmp_path):
    arguments = ("tune", clip, "--prompt", "a tiger", "--tune-steps", 2, *FEW[:4], "--runs", tmp_path)
    wanted = ("--curve", 1, "--target", "a cat", "--set", "edit.steps=2", "--set", "invert.steps=2")
    answer = ctxedit(*arguments, *wanted, "--json")
    assert answer.code == 0, answer.err
    assert Path(answer.table["curve"]).is_file() and Path(answer.table["curve_table"]).is_file()


def test_the_plan_of_a_curve_has_its_samples_and_its_second_tuning(ctxedit, clip, tmp_path, no_weights):
    arguments = ("tune", clip, "--prompt", "a tiger", "--tune-steps", 5, *FEW[:4], "--runs", tmp_path)
    few = (
        "--set",
        "edit.steps=2",
        "--set",
        "invert.steps=2",
        "--set",
        "edit.guidance=1",
        "--dry-run",
        "--json",
    )

    def stages(*more):
        return {s["name"]: s["evaluations"] for s in ctxedit(*arguments, *few, *more).table["plan"]["stages"]}

    assert list(stages()) == ["tune"]
    curve = ("--curve", 2, "--target", "a cat")
    sampled = stages(*curve)
    assert list(sampled) == ["tune", "sampled edits (3)"]  # after steps 2, 4 and 5
    assert sampled["sampled edits (3)"] == 3 * stages("--curve", 5, "--target", "a cat")["sampled edits (1)"]
    both = stages(*curve, "--compare")
    assert {**sampled, "tune without the adapter": 5} == both
    assert len(ctxedit(*arguments, *few, *curve, "--compare").table["plan"]["stages"]) == 4


@pytest.mark.parametrize("wrong", [("--curve", 2), ("--target", "a cat"), ("--compare",), ("--curve", 0)])
def test_half_a_curve_is_refused(ctxedit, clip, tmp_path, no_weights, wrong):
    answer = ctxedit("tune", clip, "--prompt", "a tiger", "--runs", tmp_path, *wrong)
    assert answer.code == 2 and answer.err.count("error:") == 1 and not list(tmp_path.iterdir())


def test_caption_says_what_is_there_and_leaves_nothing(ctxedit, clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = ctxedit("caption", clip, *FEW[:4])
    assert answer.code == 0, answer.err
    assert len(answer.out.splitlines()) == 1 and {"tiger", "beach"} & set(answer.out.split())
    assert "do not recognise" not in answer.err
    table = ctxedit("caption", clip, *FEW[:4], "--json", "-q").table
    assert table["caption"] == answer.out.strip()
    assert not any(tmp_path.iterdir())


def test_the_choice_of_a_caption_is_the_users(ctxedit, clip, monkeypatch):
    """Frames' captions of which most are wrong: CLIP knows, a vote does not."""
    from ctxedit.models.captioner import Blip2Captioner

    wrong, right = "a duck walking in the snow", "a tiger walking on the beach"
    monkeypatch.setattr(Blip2Captioner, "caption", lambda self, images: [wrong] * (len(images) - 1) + [right])
    monkeypatch.setattr(Blip2Captioner, "propose", lambda self, images: {wrong: -9.0, right: -9.5})
    assert ctxedit("caption", clip, *FEW[:4], "--caption-by", "vote").out.strip() == wrong
    for by in ("clip", "auto"):
        assert ctxedit("caption", clip, *FEW[:4], "--caption-by", by).out.strip() == right
    refused = ctxedit("caption", clip, "--caption-by", "dice")
    assert refused.code == 2 and "dice" in refused.err


def test_models_that_were_trained_here_are_used_as_the_built_in_ones(ctxedit, clip, tmp_path, monkeypatch):
    """The same weights in another folder: the same settings, captioner, CLIP and ControlNet."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    for part in BUILTIN_FOLDER.iterdir():
        (tmp_path / "mine" / part.name).symlink_to(part)
    ask = ("run", clip, "--target", "a zebu", "--preset", "controlvideo", *FEW[:4], "--json")
    plans = [ctxedit(*ask, "--dry-run", *more).table["plan"] for more in ((), ("--model", "mine"))]
    for stage in (stage for plan in plans for stage in plan["stages"]):
        stage.pop("seconds")  # known of a model that this machine has timed
    ours, mine = (
        {k: v for k, v in p.items() if not k.startswith(("model", "memory", "disk"))} for p in plans
    )
    assert ours == mine
    said = ctxedit("caption", clip, *FEW[:4], "--model", "mine")
    assert said.out == ctxedit("caption", clip, *FEW[:4]).out, said.err
    made = ctxedit(*ask, "--model", "mine", "--prompt", "a tiger", "--tune-steps", 1, "--steps", 2)
    assert made.code == 0 and "mine do not know 'zebu'" in made.err, made.err
    table = ctxedit("eval", "--json", "-q").table
    assert table["edits"][0]["clip_model"] == "mine/clip"
    # The run knows its models from any folder, by whichever path they are named.
    run = tmp_path / made.table["run"]
    monkeypatch.chdir(BUILTIN_FOLDER)
    relative = os.path.relpath(tmp_path / "mine")
    more = ctxedit("edit", "--run", run, "--target", "a panda", "--model", relative)
    assert more.code == 0 and "tune: " not in more.err, more.err


def test_caption_dry_run(ctxedit, clip, no_weights):
    answer = ctxedit("caption", clip, *FEW[:4], "--dry-run", "--json")
    assert answer.table["plan"]["frames"] == 4 and answer.table["plan"]["parameters"] > 1e6
    voted = ctxedit("caption", clip, *FEW[:4], "--caption-by", "vote", "--dry-run", "--json").table["plan"]
    assert voted["peak_bytes"] < answer.table["plan"]["peak_bytes"], "CLIP is asked besides"
    assert ctxedit("caption", clip, *FEW[:4], "--captioner", "lavis").code == 2


def test_t2i_names_the_picture_after_the_text(ctxedit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = ctxedit("t2i", "A cat, on the beach", "--steps", 3, "--seed", 1)
    assert (answer.code, answer.out) == (0, "a-cat-on-the-beach.png\n"), answer.err
    first = (tmp_path / "a-cat-on-the-beach.png").read_bytes()
    with Image.open("a-cat-on-the-beach.png") as image:
        assert image.size == (64, 64) and "seed 1" in answer.err
    assert ctxedit("t2i", "A cat, on the beach", "--steps", 3).code == 6
    assert (tmp_path / "a-cat-on-the-beach.png").read_bytes() == first
    assert ctxedit("t2i", "A cat, on the beach", "--steps", 3, "--seed", 2, "-y").code == 0
    assert (tmp_path / "a-cat-on-the-beach.png").read_bytes() != first
    same = ctxedit("t2i", "A cat, on the beach", "--steps", 3, "--seed", 1, "-o", "same.png", "--json", "-q")
    assert same.table["image"] == "same.png"
    pixels = [np.asarray(Image.open(file)) for file in (io.BytesIO(first), "same.png")]
    assert (pixels[0] == pixels[1]).all()  # the files differ: each has its own name in its metadata


def test_texts_without_known_letters_are_told_apart_and_warned_of(ctxedit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    texts = ("一只老虎", "一只猫", "...", "🐯", "café", "cafe")
    plans = [ctxedit("t2i", text, "--dry-run", "--json").table["plan"]["image"] for text in texts]
    assert len(set(plans)) == len(texts) and plans[-1] == "cafe.png"
    assert all(name.startswith("image-") for name in plans[:4]) and plans[4].startswith("caf-")
    for text, said in (("🐯", "do not know '🐯'"), ("...", "do not know a text without words")):
        answer = ctxedit("t2i", text, "--steps", 1)
        assert answer.code == 0 and said in answer.err


def test_t2i_knows_its_own_finished_image(ctxedit, tmp_path, monkeypatch):
    """As when it was killed after the image got its name."""
    ask = ("t2i", "a cat", "--steps", 1, "--no-metadata", "-o", tmp_path / "cat.jpg")
    assert ctxedit(*ask).code == 0
    first = (tmp_path / "cat.jpg").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("ctxedit.editing.text_to_image.generate", lambda *a, **k: pytest.fail("made again"))
        again = ctxedit(*ask)
    assert (again.code, again.out) == (0, f"{tmp_path / 'cat.jpg'}\n") and "already" in again.err
    assert ctxedit(*ask, "--seed", 5).code == 6
    (tmp_path / "cat.jpg").write_bytes(first + b"!")
    assert ctxedit(*ask).code == 6, "somebody changed it"
    assert ctxedit(*ask, "-y").code == 0 and (tmp_path / "cat.jpg").read_bytes() == first


def test_t2i_checks_first(ctxedit, tmp_path, monkeypatch, no_weights):
    monkeypatch.chdir(tmp_path)
    answer = ctxedit("t2i", "a cat", "--size", 50)
    assert answer.code == 2 and "take 48" in answer.err
    plan = ctxedit("t2i", "a cat", "--steps", 7, "--dry-run", "--json").table["plan"]
    assert plan["evaluations"] == 14 and plan["size"] == [64, 64] and plan["image"] == "a-cat.png"
    assert ctxedit("t2i", " ").code == 3 and not any(tmp_path.iterdir())


def test_eval_of_a_run_prints_a_table_and_writes_metrics(ctxedit, made, run_folder):
    answer = ctxedit("eval", "--run", run_folder)
    assert answer.code == 0, answer.err
    head, *rows = answer.out.splitlines()
    assert "CLIP-text" in head and "of CLIP" in head and "PSNR" in head
    assert rows and all("builtin" in row for row in rows) and any(TARGET in row for row in rows)
    table = ctxedit("eval", "--run", run_folder, "--json", "-q").table
    written = json.loads((run_folder / "metrics.json").read_text())
    assert {e["video"] for e in table["edits"]} <= {w["video"] for w in written}
    (one,) = [e for e in table["edits"] if e["video"] == str(Path(made.out.strip()).resolve())]
    assert 5 < one["psnr"] < 60 and one["clip_model"] == "builtin" and not one["outside_mask"]


def test_eval_of_any_file(ctxedit, clip):
    answer = ctxedit("eval", "--video", clip, "--prompt", "a tiger walking on the beach", "--json")
    right = answer.table
    assert answer.code == 0 and right["clip_model"] == "builtin" and right["psnr"] is None
    wrong = ctxedit("eval", "--video", clip, "--prompt", "a rocket in space", "--json", "-q").table
    assert right["clip_text"] > wrong["clip_text"]
    assert right["clip_temp"] == wrong["clip_temp"] <= 1
    one = ctxedit("eval", "--video", clip, "--prompt", "a tiger", "--frames", 1, "--json", "-q").table
    assert one["clip_temp"] is None
    text = ctxedit("eval", "--video", clip, "--prompt", "a tiger", "-q").out
    row = text.splitlines()[1]
    assert "builtin" in row and row.split()[-3:] == ["at", "96×96", clip.name]


def test_an_unchanged_clip_has_infinite_psnr_in_words(ctxedit, made, run_folder, monkeypatch):
    from ctxedit.metrics import formulas as metrics

    monkeypatch.setattr(metrics, "psnr", lambda *args: float("inf"))
    answer = ctxedit("eval", "--run", run_folder, "--json", "-q")
    assert {e["psnr"] for e in answer.table["edits"]} == {"inf"}
    assert "Infinity" not in (run_folder / "metrics.json").read_text()
    assert " inf " in ctxedit("eval", "--run", run_folder, "-q").out
