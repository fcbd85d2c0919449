"""``ctxedit train decoder``: a task that starts from another's weights and replaces them."""

import json
import shutil

import pytest

from ctxedit.models.weights import BUILTIN_FOLDER
from ctxedit.training import job, loop, record
from ctxedit.training.components import hashes
from ctxedit.training.tasks import base as tasks


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_the_decoder_is_trained_further_and_the_latents_stay_the_same(ctxedit, make_recipe, tmp_path):
    from safetensors.torch import load_file

    answer = ctxedit("train", make_recipe("decoder"), "--out", "mine")
    assert answer.code == 0, answer.err
    file = "vae/diffusion_pytorch_model.safetensors"
    before, after = load_file(BUILTIN_FOLDER / file), load_file(tmp_path / "mine" / file)
    moved = {key for key in before if not before[key].equal(after[key])}
    assert moved and all(key.startswith(("decoder.", "post_quant_conv.")) for key in moved)
    scales = [json.loads((f / "vae/config.json").read_text())["scaling_factor"]
              for f in (BUILTIN_FOLDER, tmp_path / "mine")]  # fmt: skip
    assert scales[0] == scales[1]
    assert "_name_or_path" not in json.loads((tmp_path / "mine/vae/config.json").read_text())
    last, *earlier = record.history(tmp_path / "mine/vae")
    assert last["part"] == "decoder" and last["began_with"] == hashes(BUILTIN_FOLDER / "vae")
    assert earlier == record.history(BUILTIN_FOLDER / "vae")
    assert record.matches(tmp_path / "mine", "vae") is True


@pytest.fixture
def two_recipes(make_recipe, monkeypatch, tmp_path):
    """`train all` is an autoencoder and its decoder, a step each."""
    monkeypatch.setattr(tasks, "RECIPES", tmp_path / "recipes")
    tasks.RECIPES.mkdir()
    for part in ("decoder", "autoencoder"):
        make_recipe(part, steps=1).rename(tasks.RECIPES / f"{part}.toml")


def parts_of(folder):
    return [made["part"] for made in record.history(folder)]


def test_with_all_the_decoder_replaces_the_autoencoder(ctxedit, two_recipes, tmp_path):
    vae = tmp_path / "mine/vae"
    assert ctxedit("train", "all", "--out", "mine").code == 0
    made = record.history(vae)
    assert parts_of(vae) == ["decoder", "autoencoder"] and made[0]["began_with"] == made[1]["files"]
    assert "_name_or_path" not in json.loads((vae / "config.json").read_text())
    again = ctxedit("train", "all", "--out", "mine")
    assert again.code == 0 and record.history(vae) == made
    # What was lost is made again from the states, the decoder's last.
    shutil.rmtree(vae)
    assert ctxedit("train", "all", "--out", "mine").code == 0
    assert record.history(vae)[0]["files"] == made[0]["files"]
    shutil.rmtree(vae)
    assert ctxedit("train", "decoder", "--out", "mine").code == 0
    assert hashes(vae) == made[0]["files"]
    # Longer: the decoder begins anew on what the autoencoder came to.
    longer = ctxedit("train", "all", "--out", "mine", "--steps", 2)
    assert longer.code == 0, longer.err
    assert parts_of(vae) == ["decoder", "autoencoder"] and record.read(vae)["before"]["steps"] == 2
    assert record.read(vae)["before"]["files"] != made[1]["files"]


def test_a_decoder_is_restarted_from_another_autoencoder_on_request(ctxedit, two_recipes, tmp_path):
    vae = tmp_path / "mine/vae"
    assert ctxedit("train", "autoencoder", "--out", "mine").code == 0
    refused = ctxedit("train", "decoder", "--out", "mine")
    assert refused.code == 6 and "-y to train these further" in refused.err
    first = ctxedit("train", "decoder", "--out", "mine", "-y")
    assert first.code == 0 and "starting from mine/vae" in first.err
    refused = ctxedit("train", "autoencoder", "--out", "mine", "--steps", 2)
    assert refused.code == 6 and "already contains weights" in refused.err, "they are the decoder's now"
    assert ctxedit("train", "autoencoder", "--out", "mine", "--steps", 2, "-y").code == 0
    for dry in ((), ("--dry-run",)):
        refused = ctxedit("train", "decoder", "--out", "mine", *dry)
        assert (
            refused.code == 2 and "has changed since the training in" in refused.err and "-y" in refused.err
        )
    planned = ctxedit("train", "decoder", "--out", "mine", "-y", "--dry-run", "--json").table
    assert (planned["first step"], planned["starts from"]) == (0, "mine/vae")
    anew = ctxedit("train", "decoder", "--out", "mine", "-y")
    assert anew.code == 0 and "starting from mine/vae" in anew.err
    assert parts_of(vae) == ["decoder", "autoencoder"] and record.read(vae)["before"]["steps"] == 2
    # The autoencoder is wanted back: it is done, and lies no more where it was.
    wanted = record.read(vae)["began_with"]
    assert ctxedit("train", "autoencoder", "--out", "mine", "--steps", 2, "-y").code == 0
    assert parts_of(vae) == ["autoencoder"] and hashes(vae) == wanted


def test_a_restarted_decoder_starts_from_the_autoencoder_not_from_itself(ctxedit, two_recipes, tmp_path):
    vae = tmp_path / "mine/vae"
    assert ctxedit("train", "all", "--out", "mine").code == 0
    made = record.read(vae)
    (tasks.RECIPES / "decoder.toml").write_text(made["recipe"].replace("ssim = 0.1", "ssim = 0.5"))
    refused = ctxedit("train", "decoder", "--out", "mine")
    assert refused.code == 2 and "task.ssim" in refused.err
    assert ctxedit("train", "decoder", "--out", "mine", "-y").code == 0
    assert record.read(vae)["files"] != made["files"]
    assert record.read(vae)["began_with"] == made["began_with"]


def test_a_decoder_resumes_bit_for_bit(ctxedit, make_recipe, monkeypatch, tmp_path):
    path, whole = make_recipe("decoder", steps=3), loop.train
    assert ctxedit("train", path, "--out", "whole").code == 0
    # As a kill leaves it: a state of one step, and weights without their record.
    monkeypatch.setattr(job, "train", lambda *a, exported, **more: whole(*a, **more, stop_after=1))
    assert ctxedit("train", path, "--out", "halves").code == 0
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    resumed = ctxedit("train", path, "--out", "halves")
    assert resumed.code == 0 and "resuming at step 1 of 3" in resumed.err
    assert hashes(tmp_path / "halves/vae") == hashes(tmp_path / "whole/vae")
    assert parts_of(tmp_path / "halves/vae") == ["decoder", *parts_of(BUILTIN_FOLDER / "vae")]


def test_weights_of_another_training_are_not_replaced_without_asking(ctxedit, two_recipes, tmp_path):
    vae = tmp_path / "mine/vae"
    assert ctxedit("train", "all", "--out", "mine").code == 0
    # A decoder of another state went on from this one's; then one of another autoencoder lies there.
    assert ctxedit("train", "decoder", "--out", "mine", "--state", "other", "-y").code == 0
    assert parts_of(vae) == ["decoder", "decoder", "autoencoder"]
    for made in (record.history(vae), record.history(BUILTIN_FOLDER / "vae")):
        if record.history(vae) != made:
            shutil.rmtree(vae)
            shutil.copytree(BUILTIN_FOLDER / "vae", vae)
        refused = ctxedit("train", "all", "--out", "mine")
        assert refused.code == 2 and "has changed since the training in" in refused.err
        assert record.history(vae) == made and hashes(vae) == made[0]["files"]
        assert (tmp_path / "mine/.state/decoder/state.pt").exists()


def test_an_export_that_a_kill_prevented_is_made_next_time(ctxedit, make_recipe, monkeypatch, tmp_path):
    path, vae = make_recipe("autoencoder", steps=2), tmp_path / "mine/vae"
    assert ctxedit("train", path, "--out", "mine", "--steps", 1).code == 0
    first = hashes(vae)

    def killed(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(loop._Loop, "export", killed)
        assert ctxedit("train", path, "--out", "mine").code == 130
    assert hashes(vae) == first, "the state is of two steps, the weights of one"
    assert ctxedit("train", path, "--out", "mine").code == 0
    assert hashes(vae) != first and record.read(vae)["steps"] == 2
    (vae / "training.json").unlink()
    assert ctxedit("train", path, "--out", "mine").code == 0 and record.read(vae)["steps"] == 2


def test_no_record_is_written_for_weights_that_another_task_replaced(ctxedit, two_recipes, tmp_path):
    vae = tmp_path / "mine/vae"
    assert ctxedit("train", "all", "--out", "mine").code == 0
    made = record.history(vae)
    refused = ctxedit("train", "autoencoder", "--out", "mine", "--record")
    assert refused.code == 3 and "contains weights of the decoder" in refused.err
    (vae / "training.json").unlink()
    assert ctxedit("train", "decoder", "--out", "mine", "--record").code == 0
    assert [(s["part"], s["files"]) for s in record.history(vae)] == [(s["part"], s["files"]) for s in made]
    (vae / "training.json").unlink()
    assert ctxedit("train", "all", "--out", "mine", "--record").out.split() == ["mine/vae/training.json"]


def test_several_processes_need_one_precision_for_all_recipes(ctxedit, two_recipes, monkeypatch):
    path = tasks.RECIPES / "decoder.toml"
    path.write_text(path.read_text().replace("workers = 0", 'workers = 0\nprecision = "bf16"'))
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused = ctxedit("train", "all")
    assert refused.code == 2 and "different precisions" in refused.err and "--precision" in refused.err
    assert ctxedit("train", "all", "--precision", "no", "--dry-run").code == 0
    # No launcher has told these processes where to meet.
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    alone = ctxedit("train", "decoder", "--precision", "no", "-y")
    assert alone.code == 2 and "torchrun" in alone.err
