"""Training on compositions: from what ships, with a longer vocabulary, and nothing lost of the old one."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTokenizer

from ctxedit.bundled.training import recipe
from ctxedit.bundled.training.adapter import AdapterTask
from ctxedit.bundled.training.data import DataConfig
from ctxedit.bundled.training.record import describe_data
from ctxedit.bundled.world import composition_captions
from ctxedit.errors import ConfigError
from ctxedit.models.backbone import Backbone
from ctxedit.models.clip import ClipScorer
from ctxedit.models.weights import BUILTIN_FOLDER


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One step of two pictures, at a rate of nothing: what it begins with is what comes of it."""
    out = tmp_path_factory.mktemp("trained")
    one = recipe.resolve("compositions-denoiser")
    assert one.warm and one.data.compositions
    still = one.changed({"steps": 1, "batch": 2, "lr": 0.0, "precision": "no", "workers": 0}, {})
    recipe.run(still, out / ".state", out)
    return out


def test_it_goes_on_from_what_ships(trained):
    name = "diffusion_pytorch_model.safetensors"
    ours, theirs = (load_file(f / "unet" / name) for f in (trained, BUILTIN_FOLDER))
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
    known = json.loads((trained / "unet" / "training.json").read_text())
    assert known["began_with"] and known["data"] == "drawn scenes, 70% compositions, 64 pixels"


def test_the_text_encoder_says_of_old_captions_what_it_said(trained):
    texts = ["a tiger walking on the beach", "a red car in the snow, watercolor style", ""]
    said = []
    for folder in (trained, BUILTIN_FOLDER):
        tokens = CLIPTokenizer.from_pretrained(folder / "tokenizer")(
            texts, padding="max_length", return_tensors="pt"
        )
        model = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
        with torch.no_grad():
            said.append((tokens.input_ids, model(tokens.input_ids).last_hidden_state))
    assert torch.equal(said[0][0], said[1][0]) and torch.equal(said[0][1], said[1][1])


def test_its_new_words_are_tokens_that_begin_as_the_old_ones_mean(trained):
    longer = CLIPTokenizer.from_pretrained(trained / "tokenizer")
    base = CLIPTokenizer.from_pretrained(BUILTIN_FOLDER / "tokenizer")
    assert len(longer.tokenize("three")) == 1 < len(base.tokenize("three"))
    table = CLIPTextModel.from_pretrained(
        trained / "text_encoder", dtype=torch.float32
    ).get_input_embeddings()
    assert len(table.weight) == len(longer)
    new = table.weight[longer.convert_tokens_to_ids("th")]
    pieces = table.weight[[base.convert_tokens_to_ids(p) for p in ("t", "h")]]
    assert torch.allclose(new, pieces.mean(0), atol=2e-3)
    words = json.loads((trained / "vocabulary.json").read_text())
    assert set(composition_captions.words()) <= set(words)


def test_the_folder_is_a_model(trained):
    backbone = Backbone.load(str(trained), torch.device("cpu"), torch.float32)
    assert backbone.embed(["two tiny cats behind a huge red bus"]).isfinite().all()


def test_words_move_only_where_they_are_trained(tmp_path):
    one = recipe.resolve("compositions-denoiser")
    frozen = replace(one, task={**one.task, "words": False})
    task = recipe.make_task(frozen, tmp_path)
    assert not isinstance(task.model, torch.nn.ModuleDict)
    assert not any(p.requires_grad for p in task.text.parameters())


@pytest.mark.parametrize(
    ("change", "said"),
    [({"compositions": 1.5}, "0 to 1"), ({"compositions": 0.5, "source": "folder", "path": "."}, "drawn")],
)
def test_a_share_that_is_none_is_refused(change, said):
    from ctxedit.bundled.training.denoiser import Data, Scenes

    with pytest.raises(ConfigError) as caught:
        Data(replace(DataConfig(), **change), Scenes)
    assert said in f"{caught.value.message} {caught.value.hint}"


def test_a_training_from_before_compositions_goes_on(tmp_path):
    """Its state says nothing of their share, which was none."""
    one = recipe.resolve("judge")
    assert "compositions" not in recipe._fixed(one)["data"]
    assert recipe._fixed(recipe.resolve("compositions-denoiser"))["data"]["compositions"] == 0.7
    assert describe_data(one) == "drawn scenes, 64 pixels"


ARMS = {"arm-plain": {"enabled": False}, "arm-contextual": {}, "arm-bounded": {"bound": 0.1},
        "arm-norm-kept": {"norm": "kept"}}  # fmt: skip


def test_the_arms_differ_in_one_setting_and_in_nothing_else():
    recipes = {name: recipe.resolve(name) for name in ARMS}
    for name, own in ARMS.items():
        one, base = recipes[name], recipes["arm-contextual"]
        assert one.task["adapter"] == base.task["adapter"] | own
        assert {**one.task, "adapter": 0} == {**base.task, "adapter": 0}
        assert (one.schedule, one.data, one.part, one.warm) == (base.schedule, base.data, base.part, False)


@pytest.fixture(scope="module")
def losses(tmp_path_factory):
    """The loss and gradients of every arm on the same two pictures, the adapter away from zero."""
    found = {}
    for name, own in ARMS.items():
        one = recipe.resolve(name)
        settings = {**one.task, "adapter": {"width": 32, "blocks": 1, "heads": 2, "patch": 2, **own}}
        parts = {"autoencoder": "vae", "text_encoder": "text_encoder", "tokenizer": "tokenizer"}
        folders = {name: BUILTIN_FOLDER / folder for name, folder in parts.items()}
        torch.manual_seed(0)
        task = AdapterTask(BUILTIN_FOLDER / "unet", **folders, **settings, data=one.data)
        if own.get("enabled", True):
            torch.nn.init.normal_(task.adapter.out.weight, std=0.5)
        batch = torch.utils.data.default_collate([task.dataset(0)[i] for i in range(2)])
        batch.pop("bad", None)
        loss, row = task.loss(task.model, batch, torch.Generator().manual_seed(1))
        loss.backward()
        found[name] = (task, row)
    return found


def test_every_arm_trains_what_it_should(losses):
    for name, (task, row) in losses.items():
        moved = {n: p.grad is not None and bool(p.grad.any()) for n, p in task.adapter.named_parameters()}
        assert any(moved.values()) == (name != "arm-plain"), name
        assert all(p.grad is not None for p in task.unet.parameters()), "all of the denoiser"
        assert (row["shift"] > 0) == (name != "arm-plain")


def test_the_plain_arm_is_the_ordinary_diffusion_on_the_same_draws(losses):
    rows = {name: row for name, (_, row) in losses.items()}
    assert len({round(row["loss"], 6) for row in rows.values()}) == 4
    # A free shift of this strength shouts; bounded and kept it cannot.
    assert rows["arm-contextual"]["shift"] > rows["arm-norm-kept"]["shift"] > 0
    assert rows["arm-contextual"]["shift"] > rows["arm-bounded"]["shift"] > 0


def test_an_arm_with_nothing_to_train_is_refused():
    one = recipe.resolve("arm-plain")
    with pytest.raises(ConfigError, match="enabled = false and"):
        recipe.make_task(replace(one, task={**one.task, "train": []}), BUILTIN_FOLDER)


def test_all_is_every_parts_own_recipe():
    from ctxedit.cli.train import ALL, _recipes

    assert [one.name for one in _recipes(ALL, None, {})] == list(recipe.ORDER)


def test_clip_goes_on_with_the_words_of_compositions(tmp_path):
    one = recipe.resolve("compositions-clip")
    still = one.changed({"steps": 1, "batch": 4, "lr": 0.0, "workers": 0}, {})
    recipe.run(still, tmp_path / ".state", tmp_path)
    ours, theirs = (load_file(f / "clip" / "model.safetensors") for f in (tmp_path, BUILTIN_FOLDER))
    table = "text_model.embeddings.token_embedding.weight"
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs if k != table)
    assert torch.equal(ours[table][: len(theirs[table])], theirs[table])
    assert len(ours[table]) == len(CLIPTokenizer.from_pretrained(tmp_path / "clip")) > len(theirs[table])
    scorers = ClipScorer(tmp_path / "clip"), ClipScorer(BUILTIN_FOLDER / "clip")
    old = [scorer.embed_texts(["a red car in the snow"]) for scorer in scorers]
    assert (old[0] == old[1]).all()
    assert not (scorers[0].embed_texts(["two cats"]) == scorers[0].embed_texts(["three cats"])).all()
    # Begun anew, it goes on from what it made itself: its words are tokens already.
    assert (
        recipe.make_task(one, tmp_path).tokenizer.get_vocab()
        == recipe.make_task(one, BUILTIN_FOLDER).tokenizer.get_vocab()
    )


def test_a_clip_of_other_sizes_is_refused():
    one = recipe.resolve("compositions-clip")
    with pytest.raises(ConfigError, match="does not fit"):
        recipe.make_task(replace(one, task={**one.task, "width": 96}), BUILTIN_FOLDER)
