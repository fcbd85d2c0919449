"""``ctxedit train`` and ``ctxedit models check``: through the command line, on the user's own images."""

import hashlib
import itertools
import json
import shutil

import numpy as np
import pytest
from small_recipes import TASKS

from ctxedit.models.weights import BUILTIN_FOLDER
from ctxedit.training import recipe, record
from ctxedit.training.components import hashes
from ctxedit.training.record import describe_data
from ctxedit.training.tasks import base as tasks


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Eight drawn pictures with captions, one of them unreadable."""
    from PIL import Image

    from ctxedit.synthetic import scenes

    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(8):
        scene = scenes.draw_scene(rng)
        Image.fromarray(scenes.render_frame(scene, 0.5)[0]).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(scenes.caption(scene, rng))
    (folder / "0.png").write_bytes(b"nothing")
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("part", TASKS)
def test_every_task_trains_on_a_folder_of_images(ctxedit, make_recipe, pictures, tmp_path, part):
    answer = ctxedit("train", make_recipe(part), "--data", pictures, "--out", "mine", "--json")
    assert answer.code == 0, answer.err
    table = answer.table
    assert table["steps"] == 2 and table["images"] == 8
    assert table["bad"].keys() == {"0.png"}, "eight samples of eight images include the unreadable one"
    assert "1 bad sample was left out: 0.png" in answer.err
    folder = tmp_path / "mine" / tasks.get(part).folder
    known = json.loads((folder / "training.json").read_text())
    assert known["steps"] == 2 and known["bad"] == 1 and known["data"].startswith("folder pictures")
    assert known["files"] == hashes(folder) and record.matches(tmp_path / "mine", folder.name)
    assert known["recipe_sha256"] == hashlib.sha256(known["recipe"].encode()).hexdigest()
    if part == "denoiser":
        assert known["built_on"]["vae"] == hashes(BUILTIN_FOLDER / "vae")
        made = ctxedit("t2i", "a tiger", "--model", "mine", "--steps", 2, "-o", "a.png")
        assert made.code == 0, made.err
    if part == "adapter":
        assert not (tmp_path / "mine" / "unet").exists(), "a frozen denoiser is not copied"
        made = ctxedit(
            "t2i", "a tiger", "--adapter", folder / "adapter.safetensors", "--steps", 2, "-o", "a.png"
        )
        assert made.code == 0, made.err


def test_an_adapter_can_train_the_denoiser_too(ctxedit, make_recipe, tmp_path):
    path = make_recipe("adapter", TASKS["adapter"].replace("[]", '["attn2"]'))
    answer = ctxedit("train", path, "--out", "mine")
    assert answer.code == 0, answer.err
    from safetensors.torch import load_file

    new = load_file(tmp_path / "mine/unet/diffusion_pytorch_model.safetensors")
    old = load_file(BUILTIN_FOLDER / "unet" / "diffusion_pytorch_model.safetensors")
    moved = {key for key, value in new.items() if not value.equal(old[key])}
    assert moved and all(".attn2." in key for key in moved)
    rows = [
        json.loads(row) for row in (tmp_path / "mine/.state/adapter/metrics.jsonl").read_text().splitlines()
    ]
    assert rows[-1]["shift"] > 0, "the shift's share of the signal is in the metrics"
    made = ctxedit(
        "t2i", "a tiger", "--model", "mine", "--adapter", "mine/adapter/adapter.safetensors",
        "--steps", 2, "-o", "a.png",
    )  # fmt: skip
    assert made.code == 0, made.err


def test_a_training_resumes_and_its_weights_are_not_overwritten(ctxedit, make_recipe, tmp_path):
    path = make_recipe("autoencoder")
    assert ctxedit("train", path, "-q").out == "weights-my-autoencoder/vae\n"
    first = hashes(tmp_path / "weights-my-autoencoder/vae")
    done = ctxedit("train", path)
    assert done.code == 0 and "trained already, 2 steps" in done.err and "resuming" not in done.err
    longer = ctxedit("train", path, "--steps", 3)
    assert longer.code == 0 and "resuming at step 2 of 3" in longer.err
    assert hashes(tmp_path / "weights-my-autoencoder/vae") != first
    other = make_recipe("autoencoder", TASKS["autoencoder"].replace("1.0", "2.0"))
    refused = ctxedit("train", other)
    assert refused.code == 2 and "started with a different task.edges" in refused.err
    elsewhere = ctxedit("train", other, "--state", "s")
    assert elsewhere.code == 6 and "already contains weights" in elsewhere.err
    anew = ctxedit("train", other, "-y", "--json")
    assert anew.code == 0 and anew.table["steps"] == 2


def test_a_step_may_take_several_passes(ctxedit, make_recipe, tmp_path):
    path = make_recipe("autoencoder", steps=1)
    first = ctxedit("train", path, "--passes", 2, "--json")
    assert first.code == 0 and first.table["images"] == 4
    made = record.read(tmp_path / "weights-my-autoencoder/vae")["recipe"]
    assert "batch = 2\n" in made and "accumulate = 2\n" in made
    # The next sitting may take them at once: it is the same training.
    second = ctxedit("train", path, "--steps", 2, "--json")
    assert second.code == 0 and second.table["images"] == 8 and "resuming at step 1" in second.err
    refused = ctxedit("train", path, "--passes", 3)
    assert refused.code == 2 and "4 samples per step cannot be split into 3 passes" in refused.err


def test_all_recipes_are_trained_in_the_order_of_their_dependencies(
    ctxedit, make_recipe, monkeypatch, tmp_path
):
    monkeypatch.setattr(tasks, "RECIPES", tmp_path / "recipes")
    tasks.RECIPES.mkdir()
    for part in ("denoiser", "clip", "autoencoder"):
        make_recipe(part, steps=1).rename(tasks.RECIPES / f"{part}.toml")
    plans = ctxedit("train", "all", "--dry-run", "--json").table["parts"]
    assert [p["part"] for p in plans] == ["autoencoder", "clip", "denoiser"]
    answer = ctxedit("train", "all", "--json")
    assert answer.code == 0, answer.err
    assert [p["steps"] for p in answer.table["parts"]] == [1, 1, 1]
    out = tmp_path / "weights-all"
    assert record.read(out / "unet")["built_on"]["vae"] == hashes(out / "vae")
    text = json.loads((out / "text_encoder/config.json").read_text())
    assert text["hidden_size"] == 32, "the text side of the CLIP that was trained before it"
    before = hashes(out / "unet")
    again = ctxedit("train", "all")
    assert again.code == 0 and again.err.count("trained already, 1 step;") == 3
    assert hashes(out / "unet") == before


def test_a_warm_start_records_its_initial_weights(ctxedit, make_recipe, tmp_path):
    path = make_recipe("autoencoder", "channels = [32, 64, 128]\nlayers = 1\nkl = 1e-5\nedges = 1.0", steps=1)
    answer = ctxedit("train", path, "--warm")
    assert answer.code == 0, answer.err
    known = record.read(tmp_path / "weights-my-autoencoder/vae")
    assert known["began_with"] == hashes(BUILTIN_FOLDER / "vae")
    rows = (tmp_path / "weights-my-autoencoder/.state/autoencoder/metrics.jsonl").read_text().splitlines()
    assert json.loads(rows[0])["psnr"] > 20, "it began with trained weights"


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(ctxedit, make_recipe, pictures, tmp_path):
    path = make_recipe("denoiser")
    before = sorted(tmp_path.rglob("*"))
    table = ctxedit("train", path, "--data", pictures, "--dry-run", "--json").table
    assert table["pictures"] == 8 and table["steps"] == 2 and table["images"] == 8
    assert table["parameters"] > 1e4 and table["weights"] == "weights-my-denoiser/unet"
    told = ctxedit("train", path, "--data", pictures, "--dry-run")
    assert f"{table['parameters']:,}" in told.out and "8 images" in told.out and "2, on 8 images" in told.out
    assert "unusable" not in told.out and told.err == "", "no bars of libraries"
    assert sorted(tmp_path.rglob("*")) == before


def test_data_of_ones_own_take_the_place_of_compositions(ctxedit, make_recipe, pictures):
    path = make_recipe("autoencoder", data="compositions = 0.5")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # as some editors save it
    table = ctxedit("train", path, "--data", pictures, "--dry-run", "--json").table
    assert table["pictures"] == 8 and "compositions" not in table["data"]


def test_the_recipes_are_listed(ctxedit):
    found = {r["recipe"]: r for r in ctxedit("train", "--list", "--json").table["recipes"]}
    # Every task has a recipe of its name, but for those that need their data named.
    assert set(tasks.names()) - {"pixel-denoiser"} <= set(found)
    assert all(r["about"] and r["steps"] > 0 for r in found.values())
    assert "AutoencoderKL" in ctxedit("train", "--list").out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("train",), 2, "no recipe"),
        (("train", "kitchen"), 2, "no recipe"),
        (("train", "judge", "--data", "PICTURES"), 2, "drawn scenes"),
        (("train", "autoencoder", "--data", "nowhere"), 3, "no folder nowhere"),
        (("train", "autoencoder", "--device", "cuda:7"), 2, "device"),
        (("train", "autoencoder", "--record"), 3, "no state in"),
        (("train", "autoencoder", "--steps", 10**20, "--dry-run"), 2, "schedule.steps"),
        (("models", "check", "--work", "/dev/null", "--part", "autoencoder"), 6, "cannot write"),
        (("models", "pull", "/etc"), 4, "no model named '/etc'"),
        (("models", "pull", "a b/c"), 4, "no model named 'a b/c'"),
        (("models", "check", "--part", "kitchen"), 2, "no check of"),
        (("models", "check", "--weights", "nowhere"), 4, "no folder nowhere"),
        (("models", "check", "--weights", "."), 4, "holds no models"),
    ],
)
def test_what_does_not_fit_is_refused(ctxedit, pictures, tmp_path, arguments, code, words):
    answer = ctxedit(*[pictures if a == "PICTURES" else a for a in arguments])
    assert answer.code == code and words in answer.err and "hint:" in answer.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("width = 32", "widht = 32", "widht"),
        ("steps = 2", "steps = 0", "steps = 0"),
        ("steps = 2", "stepz = 2", "stepz"),
        ("[data]", "[data]\nsource = 'cellar'", "cellar"),
        ("[data]", "[data]\nsource = 'folder'", "data.path"),
        ("[data]", "[data]\nsize = 50", "data.size"),
        ("[data]", "[data]\npath = 'pictures'", "with drawn scenes"),
        ("steps = 2", f"steps = {'9' * 5000}", "a recipe is TOML"),
        ("steps = 2", f"steps = {'[' * 5000}", "nested too deeply"),
        ('part = "clip"', 'part = "ear"', "no part named"),
        ("[task]", "task", "recipe"),
    ],
)
def test_bad_recipes_are_refused(ctxedit, make_recipe, old, new, words):
    path = make_recipe("clip")
    path.write_text(path.read_text().replace(old, new))
    answer = ctxedit("train", path)
    assert answer.code == 2 and words in answer.err


def test_bad_input_stops_the_training_where_the_recipe_says_so(ctxedit, make_recipe, pictures):
    path = make_recipe("autoencoder", data=f'source = "folder"\npath = "{pictures}"\non_error = "stop"')
    answer = ctxedit("train", path)
    assert answer.code == 3 and "0.png" in answer.err


def test_a_missing_tensorboard_is_reported_before_training(ctxedit, make_recipe, monkeypatch, tmp_path):
    import sys

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    answer = ctxedit("train", make_recipe("autoencoder"), "--tensorboard", "board")
    assert answer.code == 2 and "ctxedit[tensorboard]" in answer.err
    assert not (tmp_path / "weights-my-autoencoder").exists()


def test_tensorboard_receives_the_metrics(ctxedit, make_recipe, tmp_path):
    pytest.importorskip("tensorboard")
    answer = ctxedit("train", make_recipe("autoencoder"), "--tensorboard", "board")
    assert answer.code == 0, answer.err
    assert list((tmp_path / "board").glob("events.out.tfevents.*"))


def test_a_missing_record_can_be_written(ctxedit, make_recipe, tmp_path):
    path = make_recipe("autoencoder")
    ctxedit("train", path)
    file = tmp_path / "weights-my-autoencoder/vae/training.json"
    before = json.loads(file.read_text())
    file.unlink()
    assert record.matches(tmp_path / "weights-my-autoencoder", "vae") is None
    assert ctxedit("train", path, "--record").out.strip().endswith("vae/training.json")
    after = json.loads(file.read_text())
    for key in ("steps", "images", "files", "device", "recipe_sha256"):
        assert after[key] == before[key]
    (file.parent / "diffusion_pytorch_model.safetensors").write_bytes(b"other")
    assert record.matches(tmp_path / "weights-my-autoencoder", "vae") is False


def test_a_part_that_another_models_record_names_is_known_though_older_models_name_an_earlier_one(tmp_path):
    text = tmp_path / "text_encoder/model.safetensors"
    text.parent.mkdir()
    text.write_bytes(b"now")
    for name, files in (("controlnet", {text.name: "earlier"}), ("unet", hashes(text.parent))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "training.json").write_text(json.dumps({"built_on": {"text_encoder": files}}))
    assert record.matches(tmp_path, "text_encoder") is True
    text.write_bytes(b"other")
    assert record.matches(tmp_path, "text_encoder") is False


@pytest.mark.parametrize("part", tasks.names())
def test_the_shipped_weights_are_those_of_their_record(part):
    """After a change of weights or recipe, `ctxedit train PART --record` writes the record again."""
    folder = BUILTIN_FOLDER / tasks.get(part).folder
    records = record.history(folder)
    if not any(made["part"] == part for made in records):
        pytest.skip(f"no record of the {part} yet")
    assert records[0]["files"] == hashes(folder)
    for later, earlier in itertools.pairwise(records):
        assert later["began_with"] == earlier["files"]
    for made in records:
        assert made["recipe_sha256"] == hashlib.sha256(made["recipe"].encode()).hexdigest()
    known = next(made for made in records if made["part"] == part)
    made = recipe.parse(known["recipe"], part)
    own = [one for one in map(recipe.resolve, recipe.names()) if one.part == part]
    like = [one for one in own if describe_data(one) == known["data"]]
    shipped = max(like, key=lambda one: one.about == known["about"])  # a later round may have the same data
    for table in ("part", "task", "schedule", "data"):
        assert getattr(made, table) == getattr(shipped, table), "the shipped recipe made these weights"
    for name, files in known["built_on"].items():
        # A decoder that was trained further leaves the latents as they were.
        same = [hashes(BUILTIN_FOLDER / name)]
        for made in record.history(BUILTIN_FOLDER / name):
            if made["part"] != "decoder":
                break
            same.append(made["began_with"])
        # Denoiser, text encoder and CLIP were trained further on compositions; what is built on the earlier
        # ones is measured with the later by `ctxedit models check`.
        if name in ("unet", "clip"):
            same += [made["began_with"] for made in record.history(BUILTIN_FOLDER / name)]
        same += [made["built_on"].get(name) for made in record.history(BUILTIN_FOLDER / "unet")]
        assert files in same


def test_models_check_saves_what_models_ls_shows(ctxedit, monkeypatch, tmp_path):
    from ctxedit.models import weights

    shutil.copytree(BUILTIN_FOLDER, tmp_path / "models", ignore=shutil.ignore_patterns("check.json"))
    for name in (
        "ctxedit.models.weights",
        "ctxedit.training.checks.base",
        "ctxedit.training.components",
    ):
        __import__(name)
        monkeypatch.setattr(f"{name}.BUILTIN_FOLDER", tmp_path / "models")
    assert tmp_path / "models" == weights.BUILTIN_FOLDER
    answer = ctxedit("models", "check", "--part", "autoencoder", "--count", 2, "--save")
    assert answer.code == 0 and "autoencoder  PSNR, dB" in answer.out
    rows = ctxedit("models", "ls", "--json").table["checked"]
    assert [r["figure"] for r in rows] == ["PSNR, dB", "SSIM"] and all(r["current"] for r in rows)
    recipes = recipe.resolve("autoencoder")
    record.write(recipes, record.Facts(10, 60.0, 0, "cpu"), tmp_path / "models")
    parts = {p["part"]: p for p in ctxedit("models", "ls", "--json").table["builtin"]}
    assert parts["vae"]["images"] == 10 * recipes.schedule.images and parts["vae"]["recorded"] is True
    assert parts["vae"]["trained_on"] == "drawn scenes, 64 pixels" and parts["vae"]["licence"] == "Apache-2.0"
    file = tmp_path / "models/vae/diffusion_pytorch_model.safetensors"
    from safetensors.torch import load_file, save_file

    save_file({k: v + 1 for k, v in load_file(file).items()}, file)
    text = ctxedit("models", "ls").out
    assert "(of earlier weights)" in text and "not those of the record" in text
