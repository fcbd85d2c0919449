"""Training on compositions: from what ships, with a longer vocabulary, and nothing lost of the old one."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTokenizer

from ctxedit.bundled.training import recipe
from ctxedit.bundled.training.data import DataConfig
from ctxedit.bundled.training.record import describe_data
from ctxedit.bundled.world import composition_captions
from ctxedit.errors import ConfigError
from ctxedit.models.backbone import Backbone
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
