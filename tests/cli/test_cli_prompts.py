"""Prompts as people write them: weights, more tokens than the text encoder takes, learned tokens."""

import pytest
import torch
from asking import call
from PIL import Image
from safetensors.torch import load_file, save_file

PROMPT = "a tiger walking on the beach"
FAST = (
    "--preset", "ddim", "--frames", 2, "--stride", 1, "--size", 32, "--steps", 4, "--guidance", 3,
    "--set", "clip_model=builtin", "--set", "fusion.cross_replace_steps=0.5",
)  # fmt: skip
LONG = "a tiger walking on the beach in the snow, " * 12 + "watercolor style"


@pytest.fixture()
def edited(stable_diffusion, clip, tmp_path):
    """Frames of an edit on the tiny checkpoint, or the answer where it is refused."""

    def edit(target, *more, prompt=PROMPT, code=0):
        answer = call(
            "run", clip, target, "--model", stable_diffusion, "--prompt", prompt, *FAST, *more, "-y",
            "--runs", tmp_path / "runs", "--json",
        )  # fmt: skip
        assert answer.code == code, answer.err
        if code or "--dry-run" in more:
            return answer
        (edits,) = {p.parent for p in (tmp_path / "runs").glob("*/edits/*.safetensors")}
        newest = max(edits.glob("*.safetensors"), key=lambda file: file.stat().st_mtime_ns)
        return load_file(newest)["frames"].int()

    return edit


class TestWeights:
    def test_a_weight_is_that_of_the_equaliser(self, edited):
        plain = edited("a panda walking on the beach")
        written = edited("a (panda:3) walking on the beach")
        setting = edited("a panda walking on the beach", "--set", "fusion.word_weights.panda=3")
        assert torch.equal(written, setting) and not torch.equal(written, plain)

    def test_it_holds_for_the_words_in_the_brackets_alone(self, edited):
        everywhere = edited("a tiger and a tiger", "--set", "fusion.word_weights.tiger=3")
        first = edited("a (tiger:3) and a tiger")
        assert not torch.equal(first, everywhere)
        assert torch.equal(edited("a (tiger and:1.0) a tiger"), edited("a tiger and a tiger"))

    @pytest.mark.parametrize(
        ("more", "said"),
        [
            (("--set", "edit.start=noise"), "--set edit.start=inversion"),
            (("--set", "fusion.cross_replace_steps=0"), "fusion.word_weights_where=everywhere"),
        ],
    )
    def test_a_weight_that_would_do_nothing_is_refused(self, edited, more, said):
        answer = edited("a (panda:3) walking on the beach", *more, "--dry-run", code=2)
        assert "no effect" in answer.err and said in answer.err

    def test_other_prompts_take_none(self, edited):
        refused = edited("a panda", "--negative-prompt", "(blurry:1.2)", "--dry-run", code=2)
        assert "the negative prompt has a weight in it" in refused.err


class TestLongPrompts:
    def test_they_are_refused_unless_asked_for(self, edited):
        assert "--set edit.long_prompts=true" in edited(LONG, "--dry-run", code=3).err
        edited(LONG, "--dry-run", "--set", "edit.long_prompts=true")

    def test_what_comes_late_counts(self, edited):
        asked = ("--set", "edit.long_prompts=true")
        one, other = edited(LONG, *asked), edited(LONG.replace("watercolor", "sketch"), *asked)
        assert not torch.equal(one, other)

    def test_short_ones_are_as_without(self, edited):
        short = "a panda walking on the beach"
        assert torch.equal(edited(short, "--set", "edit.long_prompts=true"), edited(short))

    def test_a_long_source_prompt_and_a_negative_one(self, edited):
        asked = ("--set", "edit.long_prompts=true")
        refused = edited("a panda", prompt=LONG, code=3)
        assert "long_prompts" in refused.err
        plain = edited("a panda", *asked, prompt=LONG)
        negative = edited("a panda", *asked, "--negative-prompt", LONG, prompt=LONG)
        assert not torch.equal(plain, negative)

    def test_its_chunks_are_encoded_one_by_one(self, backbone):
        length = backbone.context_length
        backbone.long_prompts = True
        words = ["tiger", "panda", "beach", "snow"] * length
        text = " ".join(words[: length + 3])
        with backbone.room_for([text, "a tiger"]):
            assert backbone.context_length == 2 * length
            both = backbone.embed([text, "a tiger"])
            places = [word.tokens for word in backbone.words(text)]
        assert backbone.context_length == length
        first, second = " ".join(words[: length - 2]), " ".join(words[length - 2 : length + 3])
        assert torch.allclose(both[0], backbone.embed([first, second]).flatten(0, 1))
        assert torch.allclose(both[1], backbone.embed(["a tiger", ""]).flatten(0, 1))
        assert [n for one in places for n in one] == [*range(1, length - 1), *range(length + 1, length + 6)]


@pytest.fixture()
def embedding(stable_diffusion, tmp_path):
    """The vectors of words that the text encoder knows, as a file of one of the formats."""

    def make(*words, form="diffusers", name="<my-cat>"):
        from transformers import CLIPTokenizer

        tokenizer = CLIPTokenizer.from_pretrained(stable_diffusion / "tokenizer")
        table = load_file(stable_diffusion / "text_encoder" / "model.safetensors")
        (key,) = (k for k in table if k.endswith("token_embedding.weight"))
        ids = tokenizer(" ".join(words), add_special_tokens=False).input_ids
        vectors = table[key][ids]
        tensors = {name: vectors if len(ids) > 1 else vectors[0]}
        if form == "a1111":
            tensors = {"emb_params": vectors}
        file = tmp_path / ("My-Cat.safetensors" if form == "a1111" else "learned.safetensors")
        save_file(tensors, file)
        return file

    return make


def picture(model, tmp_path, text, *more):
    answer = call(
        "t2i", text, "--model", model, "--steps", 2, "--size", 32, "--device", "cpu", "-y", *more,
        "-o", tmp_path / "image.png", "--no-metadata",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    return Image.open(tmp_path / "image.png").tobytes(), answer


class TestEmbeddings:
    @pytest.mark.parametrize(
        ("words", "form", "token"),
        [
            (("panda",), "diffusers", "<my-cat>"),
            (("red", "panda"), "diffusers", "<my-cat>"),
            (("red", "panda"), "a1111", "My-Cat"),
        ],
    )
    def test_the_token_stands_for_its_vectors(
        self, embedding, stable_diffusion, tmp_path, words, form, token
    ):
        file = embedding(*words, form=form)
        wanted, _ = picture(stable_diffusion, tmp_path, f"a {' '.join(words)} on the beach")
        more = ("--embedding", file)
        found, answer = picture(stable_diffusion, tmp_path, f"a {token} on the beach", *more)
        assert found == wanted and f"write {token} in a prompt" in answer.err
        assert (
            picture(stable_diffusion, tmp_path, "a tiger", *more)[0]
            == (picture(stable_diffusion, tmp_path, "a tiger")[0])
        ), "nothing else changes"

    def test_in_a_target_it_is_one_word_and_the_run_is_another(self, edited, embedding, tmp_path):
        file = embedding("red", "panda")
        with_it = edited("a <my-cat> walking on the beach", "--embedding", file)
        heavy = edited("a (<my-cat>:3) walking on the beach", "--embedding", file)
        assert not torch.equal(with_it, heavy)

    def test_a_token_that_no_prompt_has_is_a_warning(self, stable_diffusion, clip, embedding, tmp_path):
        answer = call(
            "run", clip, "a panda", "--model", stable_diffusion, "--prompt", PROMPT, *FAST,
            "--embedding", embedding("panda"), "--runs", tmp_path / "runs",
        )  # fmt: skip
        assert answer.code == 0 and "<my-cat>, the token of an embedding, is in no prompt" in answer.err

    def test_its_vectors_count_as_tokens(self, stable_diffusion, embedding, tmp_path):
        file = embedding(*["panda"] * 60)
        text = (
            "a <my-cat> and a tiger walking on the beach in the snow, a car and a boat and a sun and a moon"
        )
        answer = call(
            "t2i", text, "--model", stable_diffusion, "--size", 32, "--embedding", file, "--dry-run",
            "-o", tmp_path / "x.png",
        )  # fmt: skip
        assert answer.code == 3 and "tokens" in answer.err

    @pytest.mark.parametrize(
        ("tensors", "said"),
        [
            ({"<x>": torch.zeros(2, 768)}, "vectors of 768"),
            ({"clip_l": torch.zeros(1, 32), "clip_g": torch.zeros(1, 16)}, "it has none"),
            ({"a": torch.zeros(32), "b": torch.zeros(32)}, "not a textual inversion embedding"),
            (
                {"clip_l": torch.zeros(2, 32), "clip_g": torch.zeros(3, 16)},
                "not a textual inversion embedding",
            ),
            ({"<x>": torch.ones(1, 32, dtype=torch.int64)}, "not a textual inversion embedding"),
            ({"<x>": torch.zeros(1, 2, 32)}, "not a textual inversion embedding"),
            ({"<x>": torch.full((32,), float("nan"))}, "NaN"),
            ({}, "not a textual inversion embedding"),
        ],
    )
    def test_what_does_not_fit_is_refused_by_the_dry_run(self, stable_diffusion, tmp_path, tensors, said):
        save_file(tensors, tmp_path / "bad.safetensors")
        answer = call(
            "t2i", "a cat", "--model", stable_diffusion, "--embedding", tmp_path / "bad.safetensors",
            "--dry-run", "-o", tmp_path / "x.png",
        )  # fmt: skip
        assert answer.code == 4 and said in answer.err and answer.err.count("hint:") == 1

    def test_twice_the_same(self, stable_diffusion, embedding, tmp_path):
        file = embedding("panda")
        answer = call(
            "t2i", "a cat", "--model", stable_diffusion, "--embedding", file, "--embedding", file,
            "--dry-run", "-o", tmp_path / "x.png",
        )  # fmt: skip
        assert answer.code == 2 and "two embeddings are named '<my-cat>'" in answer.err
