"""Training on compositions starts from the shipped models, with a longer vocabulary."""

import json
import shutil
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTokenizer

from ctxedit.errors import ConfigError
from ctxedit.models.backbones.base import load_backbone
from ctxedit.models.captioner import Blip2Captioner
from ctxedit.models.clip import ClipScorer
from ctxedit.models.weights import BUILTIN_FOLDER
from ctxedit.synthetic import composition_captions, scenes
from ctxedit.synthetic.composition_captions import caption, word
from ctxedit.synthetic.composition_changes import change
from ctxedit.synthetic.compositions import RELATIONS
from ctxedit.training import policy, recipe
from ctxedit.training.checks.captioner import true_captions
from ctxedit.training.checks.compositions import held_out
from ctxedit.training.components import Components
from ctxedit.training.data import Data, DataConfig, Scenes
from ctxedit.training.job import Training
from ctxedit.training.noise import noise_like
from ctxedit.training.record import describe_data
from ctxedit.training.tasks.adapter import AdapterTask
from ctxedit.training.tasks.captioner import CaptionerTask
from ctxedit.training.tasks.denoiser import DenoiserTask
from ctxedit.training.tasks.encoders import Encoders
from ctxedit.training.tasks.shifted import denoise
from ctxedit.training.tokenizer import extend

_UNET = "diffusion_pytorch_model.safetensors"


def _run(name, out, batch):
    """One step at a learning rate of zero: the result is what the training starts from."""
    changes = {"steps": 1, "batch": batch, "lr": 0.0, "precision": "no", "workers": 0}
    Training(recipe.resolve(name).changed(changes, {}), out / ".state", out).run(lambda row: None)
    return out


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return _run("compositions-denoiser", tmp_path_factory.mktemp("trained"), 2)


def test_it_starts_from_the_shipped_denoiser(trained):
    ours, shipped = (load_file(f / "unet" / _UNET) for f in (trained, BUILTIN_FOLDER))
    assert all(torch.equal(ours[k], shipped[k]) for k in shipped)
    known = json.loads((trained / "unet" / "training.json").read_text())
    assert known["began_with"] and known["data"] == "drawn scenes, 75% compositions, 64 pixels"


def test_captions_of_easy_scenes_are_embedded_as_before(trained):
    texts = ["a tiger walking on the beach", "a red car in the snow, watercolor style", ""]
    found = []
    for folder in (trained, BUILTIN_FOLDER):
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        tokens = tokenizer(texts, padding="max_length", return_tensors="pt").input_ids
        model = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
        with torch.no_grad():
            found.append((tokens, model(tokens).last_hidden_state))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])


def test_new_words_are_tokens_that_start_as_the_mean_of_their_parts(tmp_path):
    encoders = Encoders(Components(tmp_path))
    base, table = encoders.tokenizer, encoders.text.get_input_embeddings().weight.clone()
    assert len(base.tokenize("quokka")) > 1
    before = encoders.embed(["a tiger walking on the beach"], torch.device("cpu"))
    encoders.add_words(["two quokkas", "a quokka"])
    longer = encoders.tokenizer
    assert all(len(longer.tokenize(word)) == 1 for word in ("quokka", "quokkas", "two"))
    assert all(longer.get_vocab()[token] == at for token, at in base.get_vocab().items())
    grown = encoders.text.get_input_embeddings().weight
    assert len(grown) == len(longer) and torch.equal(grown[: len(table)], table)
    pieces = base.convert_tokens_to_ids(base.tokenize("quokka"))
    (new,) = longer.convert_tokens_to_ids(longer.tokenize("quokka"))
    assert torch.allclose(grown[new], table[pieces].mean(0), atol=1e-6)
    assert torch.equal(encoders.embed(["a tiger walking on the beach"], torch.device("cpu")), before)


def test_what_ships_knows_the_words_of_compositions():
    tokenizer = CLIPTokenizer.from_pretrained(BUILTIN_FOLDER / "tokenizer")
    assert all(len(tokenizer.tokenize(word)) == 1 for word in composition_captions.words())
    words = json.loads((BUILTIN_FOLDER / "vocabulary.json").read_text())
    assert set(composition_captions.words()) <= set(words)


def test_the_folder_can_be_loaded_as_a_model(trained):
    backbone = load_backbone(str(trained), torch.device("cpu"), torch.float32)
    assert backbone.embed(["two tiny cats behind a huge red bus"]).isfinite().all()


def test_the_text_encoder_is_frozen_unless_asked(tmp_path):
    one = recipe.resolve("compositions-denoiser")
    settings = {**one.task, "train_text": False}
    task = DenoiserTask.build(Components(tmp_path), one.data, settings)
    assert not any(p.requires_grad for p in task.velocity.encoders.text.parameters())
    assert sum(1 for _ in task.model.parameters()) == sum(1 for _ in task.unet.parameters())


def test_gradients_reach_the_text_encoder(tmp_path):
    one = recipe.resolve("compositions-denoiser")
    task = DenoiserTask.build(Components(tmp_path), one.data, one.task)
    batch = torch.utils.data.default_collate([task.dataset(0)[i] for i in range(2)])
    task.loss(task.model, batch, torch.Generator().manual_seed(1))[0].backward()
    table = task.velocity.encoders.text.get_input_embeddings().weight
    assert table.grad is not None and table.grad.any()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"compositions": 1.5}, "data.compositions = 1.5 must be from 0 to 1"),
        ({"compositions": 0.5, "source": "folder", "path": "."}, "drawn"),
    ],
)
def test_a_wrong_share_is_refused(change, said):
    with pytest.raises(ConfigError) as caught:
        Data(recipe.resolve("denoiser").changed({}, change).data, Scenes)
    assert said in f"{caught.value.message} {caught.value.hint}"


def test_a_share_is_a_share_and_leaves_the_other_samples_alone():
    easy, mixed = Scenes(3), Scenes(3, compositions=0.5)
    same = [easy[i]["caption"] == mixed[i]["caption"] for i in range(40)]
    assert 8 < sum(same) < 32


def test_states_from_before_compositions_can_be_resumed():
    assert "compositions" not in recipe.resolve("judge").resume_settings["data"]
    assert recipe.resolve("compositions-denoiser").resume_settings["data"]["compositions"] == 0.75
    assert describe_data(recipe.resolve("judge")) == "drawn scenes, 64 pixels"


def test_all_has_one_recipe_of_each_task():
    parts = [one.part for one in policy.Request(policy.ALL).recipes()]
    assert len(parts) == len(set(parts)) and not {"arm-plain", "compositions-clip"} & set(parts)


ARMS = {"arm-plain": {"enabled": False}, "arm-contextual": {}, "arm-bounded": {"bound": 0.1},
        "arm-norm-kept": {"norm": "kept"}}  # fmt: skip


def test_the_arms_differ_in_one_setting_and_in_nothing_else():
    base = recipe.resolve("arm-contextual")
    for name, own in ARMS.items():
        one = recipe.resolve(name)
        assert one.task["adapter"] == base.task["adapter"] | own
        assert {**one.task, "adapter": 0} == {**base.task, "adapter": 0}
        assert (one.schedule, one.data, one.part, one.warm) == (
            base.schedule,
            base.data,
            base.part,
            base.warm,
        )


def test_the_arms_see_the_same_images_words_levels_and_noise_in_the_same_order(tmp_path, monkeypatch):
    changes = {"steps": 2, "batch": 2, "precision": "no", "workers": 0, "snapshots": 1}
    seen = {}
    for name in ARMS:
        rows = seen[name] = []

        def spy(unet, adapter, scheduler, x0, context, embeddings, t, generator, rows=rows):
            copy = torch.Generator()
            copy.set_state(generator.get_state())
            rows.append((x0, context, embeddings, t, noise_like(x0, copy)))
            return denoise(unet, adapter, scheduler, x0, context, embeddings, t, generator)

        monkeypatch.setattr("ctxedit.training.tasks.adapter.denoise", spy)
        out = tmp_path / name
        Training(recipe.resolve(name).changed(changes, {}), out / ".state", out).run(lambda row: None)
    plain = seen.pop("arm-plain")
    assert len(plain) == 2 and not torch.equal(plain[0][0], plain[1][0])
    for name, rows in seen.items():
        for ours, theirs in zip(rows, plain, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)), name


def test_an_earlier_trainings_snapshots_are_deleted_when_another_begins(tmp_path):
    for name in ("000007", "mine"):
        (tmp_path / "snapshots" / name).mkdir(parents=True)
        (tmp_path / "snapshots" / name / "model_index.json").write_text("{}")
    changes = {"steps": 2, "batch": 1, "lr": 0.0, "precision": "no", "workers": 0, "snapshots": 2}
    one = recipe.resolve("arm-plain").changed(changes, {})
    Training(one, tmp_path / ".state", tmp_path).run(lambda row: None)
    assert {path.name for path in (tmp_path / "snapshots").iterdir()} == {"000001", "mine"}
    Training(one, tmp_path / ".state", tmp_path).run(lambda row: None)
    assert (tmp_path / "snapshots" / "000001" / "unet").is_dir(), "a finished training keeps its own"


@pytest.fixture(scope="module")
def losses(tmp_path_factory):
    """Loss and gradients of every arm on the same two images, with an adapter that is not zero."""
    found = {}
    for name, own in ARMS.items():
        one = recipe.resolve(name)
        settings = {**one.task, "adapter": {"width": 32, "blocks": 1, "heads": 2, "patch": 2, **own}}
        torch.manual_seed(0)
        task = AdapterTask.build(Components(tmp_path_factory.mktemp(name)), one.data, settings)
        if own.get("enabled", True):
            torch.nn.init.normal_(task.adapter.out.weight, std=0.5)
        batch = torch.utils.data.default_collate([task.dataset(0)[i] for i in range(2)])
        loss, row = task.loss(task.model, batch, torch.Generator().manual_seed(1))
        loss.backward()
        found[name] = (task, row)
    return found


def test_every_arm_trains_what_it_should(losses):
    for name, (task, row) in losses.items():
        moved = any(p.grad is not None and bool(p.grad.any()) for p in task.adapter.parameters())
        assert moved == (name != "arm-plain"), name
        assert all(p.grad is not None for p in task.unet.parameters()), "all of the denoiser"
        assert (row["shift"] > 0) == (name != "arm-plain")


def test_bound_and_norm_limit_the_shift(losses):
    rows = {name: row for name, (_, row) in losses.items()}
    assert len({round(row["loss"], 6) for row in rows.values()}) == 4
    assert rows["arm-contextual"]["shift"] > rows["arm-norm-kept"]["shift"] > 0
    assert rows["arm-contextual"]["shift"] > rows["arm-bounded"]["shift"] > 0


def test_clip_learns_the_words_of_compositions_and_keeps_the_others(tmp_path):
    out = _run("compositions-clip", tmp_path, 4)
    ours, shipped = (load_file(f / "clip" / "model.safetensors") for f in (out, BUILTIN_FOLDER))
    table = "text_model.embeddings.token_embedding.weight"
    assert all(torch.equal(ours[k], shipped[k]) for k in shipped if k != table)
    assert torch.equal(ours[table][: len(shipped[table])], shipped[table])
    tokenizer = CLIPTokenizer.from_pretrained(out / "clip")
    assert all(len(tokenizer.tokenize(word)) == 1 for word in composition_captions.words())
    assert len(ours[table]) == len(tokenizer) >= len(shipped[table])
    scorers = ClipScorer(out / "clip"), ClipScorer(BUILTIN_FOLDER / "clip")
    old = [scorer.embed_texts(["a red car in the snow"]) for scorer in scorers]
    assert (old[0] == old[1]).all()
    assert not (scorers[0].embed_texts(["two cats"]) == scorers[0].embed_texts(["three cats"])).all()


def test_the_captioner_keeps_what_it_knows_when_its_vocabulary_grows(tmp_path):
    longer, _ = extend(CLIPTokenizer.from_pretrained(BUILTIN_FOLDER / "captioner"), ["a quokka", "quokkas"])
    shutil.copytree(BUILTIN_FOLDER / "clip", tmp_path / "clip")
    longer.save_pretrained(tmp_path / "clip")
    out = _run("compositions-captioner", tmp_path, 4)
    ours, shipped = (load_file(f / "captioner" / "model.safetensors") for f in (out, BUILTIN_FOLDER))
    table = "language_model.model.decoder.embed_tokens.weight"
    assert all(torch.equal(ours[k], shipped[k]) for k in shipped if k != table)
    count = len(shipped[table]) - 1
    assert len(ours[table]) == len(longer) + 1 > count + 1
    assert torch.equal(ours[table][:count], shipped[table][:count])
    assert torch.equal(ours[table][-1], shipped[table][-1]), "the image token comes last"
    frames = scenes.render(scenes.draw_scene(np.random.default_rng(3)), 2)[0]
    texts = [Blip2Captioner(f / "captioner").caption(list(frames)) for f in (out, BUILTIN_FOLDER)]
    assert texts[0] == texts[1]


def test_a_captioner_with_other_tokens_is_refused(tmp_path):
    other, _ = extend(CLIPTokenizer.from_pretrained(BUILTIN_FOLDER / "clip"), ["quokka"])
    shutil.copytree(BUILTIN_FOLDER / "captioner", tmp_path / "captioner")
    other.save_pretrained(tmp_path / "captioner")
    task = CaptionerTask.build(Components(tmp_path), DataConfig(), {"width": 160, "layers": 3})
    with pytest.raises(ConfigError, match="does not fit the recipe"):
        task.load_weights(tmp_path / "captioner")


def test_equivalent_compositions_have_one_caption():
    for composed in held_out(40, 2):
        texts = {word(one.normalized, "beach") for one in _equivalent(composed.composition)}
        assert len(texts) == 1 and texts <= {word(one, "beach") for one in _equivalent(composed.composition)}


def _equivalent(one):
    """The composition and those that say the same: groups in another order, the relation turned round."""
    if one.relation is None:
        return [replace(one, groups=groups) for groups in permutations(one.groups)]
    inverse = RELATIONS[RELATIONS.index(one.relation) ^ 1]
    return [one, replace(one, groups=one.groups[::-1], relation=inverse)]


def test_true_captions_are_those_that_hold_where_the_objects_are():
    assert true_captions(held_out(3, 7)[2]) == {
        "a cat and a yellow helicopter near a volcano",
        "a yellow helicopter and a cat near a volcano",
        "a cat to the right of a yellow helicopter near a volcano",
        "a yellow helicopter to the left of a cat near a volcano",
    }
    for composed in held_out(40, 2):
        assert caption(composed) in true_captions(composed)
        changed = change(composed.composition, np.random.default_rng(0), "object")[0]
        scene = composed.scene
        assert word(changed, scene.background, scene.style) not in true_captions(composed)
