"""BLIP-2 on a tiny random checkpoint, against a decoding loop written here; and the choice of a caption."""

import itertools
import json
import shutil
import string
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    CLIPTokenizer,
    OPTConfig,
)

from ctxedit.config import Config
from ctxedit.errors import ConfigError, InputError, NumericsError, WeightsError
from ctxedit.models.captioner import Blip2Captioner, choose_caption, pick_frames, shares
from ctxedit.stages.caption import asks_clip, caption

SIZES = {"hidden_size": 16, "num_attention_heads": 2}
QUERIES = 4
TOKENS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as save_pretrained leaves it; large random weights, so that images lead to different words."""
    path = tmp_path_factory.mktemp("captioners") / "tiny-blip2"
    letters = string.ascii_lowercase
    words = [*letters, *(c + "</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={w: i for i, w in enumerate(words)}, merges=[], model_max_length=40)
    vision = Blip2VisionConfig(
        **SIZES, intermediate_size=32, num_hidden_layers=1, image_size=16, patch_size=8, initializer_range=0.3
    )
    qformer = Blip2QFormerConfig(
        **SIZES,
        intermediate_size=32,
        num_hidden_layers=2,
        vocab_size=8,
        encoder_hidden_size=16,
        initializer_range=0.5,
    )
    text = OPTConfig(
        **SIZES,
        vocab_size=len(words) + 1,
        ffn_dim=32,
        num_hidden_layers=1,
        word_embed_proj_dim=16,
        max_position_embeddings=32,
        init_std=0.6,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(3)
    config = Blip2Config(
        vision_config=vision.to_dict(),
        qformer_config=qformer.to_dict(),
        text_config=text.to_dict(),
        num_query_tokens=QUERIES,
        image_token_index=len(words),
    )
    model = Blip2ForConditionalGeneration(config)
    torch.nn.init.normal_(model.query_tokens)
    torch.nn.init.normal_(model.language_projection.weight, std=1.0)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    write_images(path, 16)
    return path


def write_images(path, size):
    blob = {
        "image_processor_type": "BlipImageProcessor",
        "size": {"height": size, "width": size},
        "resample": 3,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    (path / "preprocessor_config.json").write_text(json.dumps(blob))


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (16, 16, 3)).astype(np.uint8) for _ in range(4)]
    return [*noise, np.full((16, 16, 3), 255, np.uint8), np.zeros((16, 16, 3), np.uint8)]


@torch.no_grad()
def greedy(folder, image):
    """The captions by hand: vision, queries, projection, then one word after another, no ``generate``."""
    model = Blip2ForConditionalGeneration.from_pretrained(folder).eval()
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1
    seen = model.vision_model(pixel_values=pixels).last_hidden_state
    queries = model.qformer(query_embeds=model.query_tokens, encoder_hidden_states=seen).last_hidden_state
    embed = model.language_model.get_input_embeddings()
    text = [tokenizer.bos_token_id]
    for _ in range(TOKENS):
        line = torch.cat([model.language_projection(queries), embed(torch.tensor([text]))], 1)
        mask = torch.ones(line.shape[:2], dtype=torch.long)
        best = int(model.language_model(inputs_embeds=line, attention_mask=mask).logits[0, -1].argmax())
        if best == tokenizer.eos_token_id:
            break
        text.append(best)
    return " ".join(tokenizer.decode(text[1:], skip_special_tokens=True).split())


def test_captions_are_those_of_a_decoding_loop(folder, images):
    captioner = Blip2Captioner(folder, beams=1, max_tokens=TOKENS)
    got = captioner.caption(images)
    assert [text.replace(" ", "") for text in got] == [greedy(folder, i).replace(" ", "") for i in images]
    assert len(set(got)) > 1, "the captions do not depend on the image: the fixture proves nothing"
    assert captioner.name == "tiny-blip2"


def test_beam_search_is_repeatable(folder, images):
    first = Blip2Captioner(folder, max_tokens=TOKENS)
    torch.manual_seed(1)
    one = first.caption(images)
    torch.manual_seed(2)
    assert one == first.caption(images) == Blip2Captioner(folder, max_tokens=TOKENS).caption(images)
    assert one != ["" for _ in images]


def test_order_and_company_do_not_matter(folder, images):
    captioner = Blip2Captioner(folder, beams=1, max_tokens=TOKENS)
    assert captioner.caption(images)[::-1] == captioner.caption(images[::-1])
    assert captioner.caption([]) == []


def test_a_checkpoint_without_a_placeholder_captions_the_same(folder, copy, images):
    """Salesforce's older repositories have no ``image_token_index``."""
    config = json.loads((copy / "config.json").read_text())
    assert config.pop("image_token_index") is not None
    (copy / "config.json").write_text(json.dumps(config))
    options = {"beams": 1, "max_tokens": TOKENS}
    assert Blip2Captioner(copy, **options).caption(images) == Blip2Captioner(folder, **options).caption(
        images
    )


def test_captions_end_where_positions_do(folder, images):
    captioner = Blip2Captioner(folder, beams=1, max_tokens=500)
    assert captioner._options["max_new_tokens"] == 32 - QUERIES - 1
    assert len(captioner.caption(images)) == len(images)


def test_half_precision_weights_load_in_full(folder, copy, images):
    model = Blip2ForConditionalGeneration.from_pretrained(folder)
    model.half().save_pretrained(copy)
    captioner = Blip2Captioner(copy, dtype=torch.float32, beams=1, max_tokens=TOKENS)
    assert {weight.dtype for weight in captioner._model.parameters()} == {torch.float32}
    assert any(captioner.caption(images))


def test_a_missing_or_unfit_checkpoint_is_refused(copy, tmp_path):
    with pytest.raises(WeightsError, match="not a folder"):
        Blip2Captioner(tmp_path / "nowhere")
    with pytest.raises(WeightsError, match="offline") as caught:
        Blip2Captioner("Salesforce/no-such-blip2", offline=True)
    assert caught.value.hint
    write_images(copy, 24)
    with pytest.raises(WeightsError, match=r"\(24, 24\)"):
        Blip2Captioner(copy)
    (copy / "tokenizer.json").unlink()
    write_images(copy, 16)
    with pytest.raises(WeightsError, match="tokenizer"):
        Blip2Captioner(copy)


@pytest.mark.parametrize(
    ("captions", "want"),
    [
        (["a cat", "a dog", "a cat"], "a cat"),
        (["a dog", "A cat ", "a  cat"], "A cat"),
        (["", "  ", "a dog\n"], "a dog"),
        # One vote each: the one that shares most words with the others wins, wherever it stands.
        (
            ["a boat", "a red cat on grass", "a red cat on a bench", "the red cat on grass"],
            "a red cat on grass",
        ),
        (
            ["the red cat on grass", "a boat", "a red cat on a bench", "a red cat on grass"],
            "a red cat on grass",
        ),
        # Votes come before words.
        (["a boat", "a boat", "a red cat", "a red cat here", "one red cat here"], "a boat"),
        # Nothing in common: the first.
        (["one", "two", "three"], "one"),
        (["a cat , on a mat ."], "a cat, on a mat."),
    ],
)
def test_the_choice_of_a_caption(captions, want):
    assert choose_caption(captions) == want


@pytest.mark.parametrize("captions", [[], ["", " \n"]])
def test_no_caption_at_all(captions):
    with pytest.raises(InputError) as caught:
        choose_caption(captions)
    assert "--prompt" in caught.value.hint


def test_frames_are_spread_evenly():
    assert pick_frames(10) == [1, 3, 5, 7, 9]
    assert pick_frames(3) == [0, 1, 2]
    assert pick_frames(1) == [0]
    assert pick_frames(9, 1) == [4]
    for count in range(1, 60):
        for n in range(1, 9):
            picked = pick_frames(count, n)
            assert len(picked) == min(n, count) and len(set(picked)) == len(picked)
            assert picked[0] >= 0 and picked[-1] < count
            gaps = {b - a for a, b in itertools.pairwise(picked)}
            assert not gaps or max(gaps) - min(gaps) <= 1
    with pytest.raises(ValueError):
        pick_frames(0)


@torch.no_grad()
def likelihood(folder, image, ids):
    """log p of a caption's tokens by hand, one word after another."""
    model = Blip2ForConditionalGeneration.from_pretrained(folder).eval()
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1
    seen = model.vision_model(pixel_values=pixels).last_hidden_state
    queries = model.qformer(query_embeds=model.query_tokens, encoder_hidden_states=seen).last_hidden_state
    embed, total = model.language_model.get_input_embeddings(), 0.0
    text = [model.config.text_config.bos_token_id]
    for word in ids:
        line = torch.cat([model.language_projection(queries), embed(torch.tensor([text]))], 1)
        mask = torch.ones(line.shape[:2], dtype=torch.long)
        logits = model.language_model(inputs_embeds=line, attention_mask=mask).logits[0, -1]
        total += float(logits.log_softmax(-1)[word])
        text.append(word)
    return total


def test_proposals_are_all_beams_with_their_mean_log_likelihood(folder, images):
    captioner = Blip2Captioner(folder, beams=3, max_tokens=TOKENS)
    proposed = captioner.propose(images[:2])
    assert set(captioner.caption(images[:2])) <= set(proposed), "each image's own caption is among them"
    assert 3 <= len(proposed) <= 6 and "" not in proposed
    for text, got in proposed.items():
        # A letter before a space ends a word; of the last one the text does not tell.
        known = [c + "</w>" if text[i + 1 : i + 2] == " " else c for i, c in enumerate(text) if c != " "]
        wanted = []
        for tokens in (known, [*known[:-1], known[-1] + "</w>"]):
            ids = captioner._tokenizer.convert_tokens_to_ids(tokens)
            ids += [captioner._tokenizer.eos_token_id] * (len(ids) < TOKENS)
            wanted.append(np.mean([likelihood(folder, image, ids) for image in images[:2]]))
        assert min(abs(got - want) for want in wanted) < 1e-4
    assert len(set(proposed.values())) > 1
    assert captioner.propose([]) == {}


def test_one_text_spelt_in_two_ways_has_the_likelier_ones_likelihood(folder, images, monkeypatch):
    captioner = Blip2Captioner(folder, beams=1, max_tokens=TOKENS)
    end, line = captioner._tokenizer.eos_token_id, captioner._tokenizer.convert_tokens_to_ids
    clean, other = [*line(["a", "b</w>"]), end], [*line(["a", "b"]), end]
    beams = iter([torch.tensor(clean), torch.tensor(other)])
    monkeypatch.setattr(captioner, "_search", lambda image, count: [next(beams)])
    got = captioner.propose(images[:2])
    want = [np.mean([likelihood(folder, image, ids) for image in images[:2]]) for ids in (clean, other)]
    assert got == {"ab": pytest.approx(max(want), abs=1e-4)} and abs(want[0] - want[1]) > 0.1


def test_proposals_that_cannot_be_weighed_are_refused(folder, images, monkeypatch):
    captioner = Blip2Captioner(folder, max_tokens=TOKENS)
    monkeypatch.setattr(captioner, "_likelihood", lambda image, rows: torch.full((len(rows),), torch.nan))
    with pytest.raises(NumericsError, match="tiny-blip2"):
        captioner.propose(images[:1])
    captioner._model.config.use_decoder_only_language_model = False  # as of flan-t5
    with pytest.raises(ConfigError) as caught:
        captioner.propose(images[:1])
    assert "--caption-by vote" in caught.value.hint


def test_shares_stand_for_likelihoods():
    said = shares(["a cat", "a dog", "", "A  cat", "a cat , here"])
    assert said == pytest.approx({"a cat": np.log(0.5), "a dog": np.log(0.25), "a cat, here": np.log(0.25)})
    assert shares(["", " "]) == {}


class _Scorer:
    """A CLIP for which pictures are nearest to the texts with most of one letter."""

    scale = 100.0

    def __init__(self, letter):
        self.letter = letter

    def embed_images(self, frames):
        return torch.tensor([[1.0, 0.0]]).expand(len(frames), -1)

    def embed_texts(self, texts):
        share = torch.tensor([text.count(self.letter) / 20 for text in texts])
        return torch.stack([share, (1 - share**2).sqrt()], 1)


class _Says:
    name = "says"

    def __init__(self, proposed):
        self.proposed = proposed

    def caption(self, images):
        return [next(iter(self.proposed))] * len(images)

    def propose(self, images):
        assert len(images) == 5
        return self.proposed


FRAMES = np.zeros((9, 16, 16, 3), np.uint8)


def test_the_choice_weighs_captioner_and_clip():
    said = _Says({"a cat": -1.0, "a zebra": -2.0, "a zzz": -40.0})
    assert caption(FRAMES, said) == "a cat"
    # One z is worth five nats here: enough against one, and three of them not against 39.
    assert caption(FRAMES, said, _Scorer("z")) == "a zebra"
    assert caption(FRAMES, said, _Scorer("q")) == "a cat"
    with pytest.raises(InputError, match="no frame"):
        caption(FRAMES, _Says({}), _Scorer("z"))


def test_clip_is_asked_where_that_costs_no_fetch():
    ours, theirs = Config(), replace(Config(), captioner="org/blip")
    assert asks_clip(ours, True) and not asks_clip(ours, False), "a real checkpoint's CLIP would be fetched"
    assert not asks_clip(theirs, True) and not asks_clip(replace(ours, clip_model="org/clip"), True)
    assert asks_clip(replace(ours, captioner="builtin", clip_model="builtin"), False)
    assert asks_clip(replace(theirs, caption_by="clip"), False)
    assert not asks_clip(replace(ours, caption_by="vote"), True)
