"""The backbone's abilities against diffusers' own schedulers, networks and tokenizer."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from ctxedit.config import AttentionConfig
from ctxedit.errors import ConfigError, InputError, WeightsError
from ctxedit.models.attention import FrameView
from ctxedit.models.backbones import builtin_vocabulary, load_backbone, open_backbone, split_words
from ctxedit.patterns import attended_frames

F, SIDE = 2, (16, 16)
ALONE = FrameView(attended_frames(AttentionConfig(frames="none"), F), SIDE)


def load(folder, dtype=torch.float64):
    return load_backbone(str(folder), torch.device("cpu"), dtype)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pixels(frames, height, width):
    return np.random.default_rng(0).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def shared(stable_diffusion):
    """One backbone for the tests that leave it as it is."""
    return load(stable_diffusion)


@pytest.mark.parametrize("head", ["stable_diffusion", "stable_diffusion_2"])
def test_predict_x0_is_the_schedulers(head, request):
    folder = request.getfixturevalue(head)
    backbone = load(folder)
    assert backbone.prediction == {"stable_diffusion": "epsilon", "stable_diffusion_2": "v_prediction"}[head]
    scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
    scheduler.set_timesteps(7)
    x, context, levels = draw(F, 4, *SIDE), backbone.embed(["a tiger"]), backbone.levels(7)
    for level in (1, 4, 7):
        t = levels.timestep(level)
        with torch.no_grad():
            out = backbone.unet(x, t, context.expand(F, -1, -1)).sample
            with backbone.attention(AttentionConfig()):
                raw = backbone.raw(x, t, context, ALONE)
                got = backbone.predict_x0(x, t, context, *levels.at(level), ALONE)
        torch.testing.assert_close(raw, out, rtol=0, atol=1e-10)
        want = scheduler.step(out, t, x).pred_original_sample
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


class TestLevels:
    @pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
    @pytest.mark.parametrize("steps", [1, 3, 7, 20, 50])
    def test_timesteps_are_the_schedulers(self, shared, monkeypatch, spacing, steps):
        config = {**shared._scheduler, "timestep_spacing": spacing}
        monkeypatch.setattr(shared, "_scheduler", type("Config", (dict,), {"__getattr__": dict.get})(config))
        scheduler = DDIMScheduler.from_config(config)
        scheduler.set_timesteps(steps)
        levels = shared.levels(steps)
        assert levels.timesteps.tolist() == scheduler.timesteps.tolist()
        bar = scheduler.alphas_cumprod[scheduler.timesteps].double()
        torch.testing.assert_close(levels.alpha[1:].flip(0) ** 2, bar, rtol=1e-5, atol=1e-7)
        assert (levels.alpha[0], levels.sigma[0]) == (1, 0)

    @pytest.mark.parametrize("kind", ["scaled_linear", "linear", "squaredcos_cap_v2"])
    @pytest.mark.parametrize("rescale", [False, True])
    def test_alphas_are_the_schedulers(self, stable_diffusion, tmp_path, kind, rescale):
        folder = copy_with_scheduler(
            stable_diffusion, tmp_path, beta_schedule=kind, rescale_betas_zero_snr=rescale
        )
        got = load(folder).alphas_cumprod
        want = DDIMScheduler.from_pretrained(folder, subfolder="scheduler").alphas_cumprod.double()
        # diffusers keeps its last at 2e-24 above zero where ours is zero
        torch.testing.assert_close(got, want, rtol=2e-4, atol=1e-7)

    def test_an_unknown_schedule_is_refused(self, stable_diffusion, tmp_path):
        folder = copy_with_scheduler(stable_diffusion, tmp_path, beta_schedule="sigmoid")
        with pytest.raises(WeightsError):
            load(folder)

    def test_betas_of_its_own_are_not_ignored(self, stable_diffusion, tmp_path):
        betas = np.linspace(0.001, 0.02, 1000).tolist()
        folder = copy_with_scheduler(stable_diffusion, tmp_path, trained_betas=betas)
        want = DDIMScheduler.from_pretrained(folder, subfolder="scheduler").alphas_cumprod.double()
        torch.testing.assert_close(load(folder).alphas_cumprod, want, rtol=1e-4, atol=1e-7)

    def test_more_steps_than_the_schedule_has(self, shared):
        # Stable Diffusion's offset of 1 leaves room for 999 steps.
        assert shared.levels(999).steps == 999
        with pytest.raises(ConfigError, match="1000"):
            shared.levels(1000)


def copy_with_scheduler(folder, tmp_path, **changes):
    """The checkpoint's folder with another scheduler; networks are linked."""
    import json

    copy = tmp_path / "model"
    copy.mkdir()
    for item in folder.iterdir():
        if item.name != "scheduler":
            (copy / item.name).symlink_to(item)
    (copy / "scheduler").mkdir()
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    (copy / "scheduler" / "scheduler_config.json").write_text(json.dumps(config | changes))
    return copy


class TestFrames:
    def test_sizes(self, shared):
        assert (shared.factor, shared.multiple, shared.resolution) == (4, 8, 64)
        frames = pixels(3, 40, 24)
        latents = shared.encode(frames)
        assert latents.shape == (3, 4, 10, 6)
        out = shared.decode(latents)
        assert (out.shape, out.dtype) == (frames.shape, np.uint8)

    def test_slices_equal_the_whole(self, shared):
        frames = pixels(5, 16, 16)
        whole = shared.encode(frames, chunk=5)
        for chunk in (1, 2, 4):
            torch.testing.assert_close(shared.encode(frames, chunk=chunk), whole, rtol=0, atol=1e-12)
            np.testing.assert_array_equal(shared.decode(whole, chunk=chunk), shared.decode(whole, chunk=5))

    def test_encode_is_the_posteriors_mean_scaled(self, shared):
        frames = pixels(1, 16, 16)
        x = torch.from_numpy(frames).permute(0, 3, 1, 2).double() / 127.5 - 1
        with torch.no_grad():
            want = shared.vae.encode(x).latent_dist.mode() * shared.vae.config.scaling_factor
        torch.testing.assert_close(shared.encode(frames), want, rtol=0, atol=1e-12)

    def test_decode_rounds_and_clips(self, shared, monkeypatch):
        values = torch.tensor([-9.0, -1.0, 0.0, 0.2, 1.0, 9.0]).view(1, 1, 1, 6).expand(1, 3, 1, 6)
        monkeypatch.setattr(shared.vae, "decode", lambda _: type("Out", (), {"sample": values}))
        assert shared.decode(draw(1, 4, 1, 1))[0, 0, :, 0].tolist() == [0, 0, 128, 153, 255, 255]


PROMPTS = [
    "a tiger walking on the beach",
    "A TIGER, walking... on the beach!!!",
    "a tiger's cub isn't here, they'll say",
    "a tiger’s cub “quoted” text",
    "ein Bär läuft über die Straße",
    "ein Ba\u0308r la\u0308uft",  # the same letters, decomposed
    "a xyzzyqwerty in a zzyzx",
    "3 cats and 12 dogs at 10:30, 50% off?!",
    "black-and-white, semi-transparent (very) [old] photo_of_a cat",
    "a cat   with\tspaces\n and lines ",
    "老虎在海滩上 ☀️",
    "🐯👨‍👩‍👧",
    "<|endoftext|> cat",
    "cat\x1cdog \x1c",
    "e.g. 3.14 -- a/b \\ c && d",
    "...cat",
    ",",
    "",
    "_a_ __ cat",
    "cat...dog !?,;",
]


class TestWords:
    @pytest.mark.parametrize("text", PROMPTS)
    def test_positions_are_the_tokenizers(self, shared, text):
        """Each word's tokens, at the positions the text encoder sees, spell the word."""
        ids = shared.tokenizer(text).input_ids
        words = shared.words(text)
        assert [p for w in words for p in w.tokens] == list(range(1, len(ids) - 1))
        assert all(w.tokens for w in words)
        for word in words:
            spelled = shared.tokenizer.decode([ids[p] for p in word.tokens])
            assert squeezed(spelled) == squeezed(word.text)

    def test_marks_that_are_one_token_are_one_word(self, shared, monkeypatch):
        """CLIP's own vocabulary has tokens for "..." and '",'."""
        from transformers import CLIPTokenizer

        old = shared.tokenizer
        vocab, merges = dict(old.get_vocab()), [(".", "."), ("..", ".</w>"), ('"', ",</w>")]
        for token in ("..", "...</w>", '",</w>'):
            vocab[token] = len(vocab)
        tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=40)
        monkeypatch.setattr(shared, "tokenizer", tokenizer)
        text = '.. "a", b... (c.) !?'
        ids = tokenizer(text).input_ids
        words = shared.words(text)
        assert [w.text for w in words] == [".", ".", '"', "a", '",', "b", "...", "(", "c", ".", ")", "!", "?"]
        assert [w.tokens for w in words] == [(i,) for i in range(1, len(ids) - 1)]
        assert tokenizer.convert_ids_to_tokens(ids)[7] == "...</w>"

    def test_words_are_what_a_person_calls_words(self, shared):
        texts = [w.text for w in shared.words("A tiger's cub, black-and-white, läuft!")]
        assert texts == ["A", "tiger's", "cub", ",", "black-and-white", ",", "läuft", "!"]

    def test_decomposed_letters_are_the_composed_ones(self, shared):
        assert shared.words("ein Ba\u0308r") == shared.words("ein Bär")

    def test_too_long_is_refused_and_says_where(self, shared):
        room = shared.context_length - 2
        assert len(shared.words("cat " * room)) == room
        assert shared.tokenizer("dog").input_ids[1:-1] != shared.tokenizer("cat").input_ids[1:-1]
        with pytest.raises(InputError, match=f"{room + 1} tokens.*{room}") as error:
            shared.words("cat " * room + "dog")
        assert "'dog'" in error.value.hint
        assert error.value.exit_code == 3

    def test_one_endless_word(self, shared):
        with pytest.raises(InputError, match="tokens"):
            shared.words("qz" * 200)

    def test_split(self):
        assert split_words("A cat’s  hat, e.g. this") == [
            "A",
            "cat’s",
            "hat",
            ",",
            "e",
            ".",
            "g",
            ".",
            "this",
        ]


def squeezed(text):
    import unicodedata

    return "".join(unicodedata.normalize("NFC", text).lower().split())


def test_embed_is_the_text_encoders_last_hidden_state(shared):
    tokens = shared.tokenizer(["a tiger", ""], padding="max_length", max_length=shared.context_length)
    with torch.no_grad():
        want = shared.text_encoder(torch.tensor(tokens.input_ids)).last_hidden_state
    got = shared.embed(["a tiger", ""])
    assert got.shape == (2, shared.context_length, shared.context_width)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    assert not torch.equal(got[0], got[1])


def test_select(shared):
    everything = dict(shared.unet.named_parameters())
    queries = shared.select(["attn1.to_q"])
    assert queries
    assert set(queries) == {n for n in everything if ".attn1.to_q." in n}
    assert all(queries[n] is everything[n] for n in queries)
    both = shared.select(["attn1", "attn2"])
    assert set(both) == {n for n in everything if ".attn1." in n or ".attn2." in n}
    # A name is whole parts of a path, not a piece of one.
    assert not shared.select(["attn"])
    assert set(shared.select(["conv_in"])) == {"conv_in.weight", "conv_in.bias"}
    assert not shared.select([])


def test_half_precision_networks_take_and_give_the_latents_precision(stable_diffusion):
    backbone = load(stable_diffusion, torch.bfloat16)
    with backbone.attention(AttentionConfig()), torch.no_grad():
        out = backbone.raw(draw(F, 4, *SIDE).float(), 500, backbone.embed(["a tiger"]), ALONE)
    assert out.dtype == torch.float32


def test_loaded_frozen_and_in_eval_mode(shared):
    for net in (shared.unet, shared.vae, shared.text_encoder):
        assert not net.training
        assert not any(p.requires_grad for p in net.parameters())


def test_a_checkpoint_for_inpainting_is_refused(stable_diffusion, tmp_path):
    from diffusers import UNet2DConditionModel

    copy = tmp_path / "model"
    copy.mkdir()
    for item in stable_diffusion.iterdir():
        if item.name != "unet":
            (copy / item.name).symlink_to(item)
    config = UNet2DConditionModel.load_config(stable_diffusion, subfolder="unet")
    UNet2DConditionModel.from_config({**config, "in_channels": 9}).save_pretrained(copy / "unet")
    with pytest.raises(WeightsError, match="9 channels"):
        load(copy)


def test_vocabulary(tmp_path):
    assert builtin_vocabulary(tmp_path) is None
    (tmp_path / "vocabulary.json").write_text('["cat", "dog"]')
    assert builtin_vocabulary(tmp_path) == {"cat", "dog"}


def test_offloaded_parts_visit_the_device_only_while_they_are_called(stable_diffusion, monkeypatch):
    from ctxedit.models.weights import locate

    place = torch.device("cpu")
    plain = load_backbone(str(stable_diffusion), place, torch.float32)
    offloaded = open_backbone(locate(str(stable_diffusion)), place, torch.float32, offload=True)
    moves = []
    for name in ("vae", "text_encoder"):
        module = getattr(offloaded, name)
        monkeypatch.setattr(module, "to", lambda where, name=name: moves.append((name, str(where))))
    frames = np.random.default_rng(0).integers(0, 255, (2, 32, 32, 3), dtype=np.uint8)
    latents = offloaded.encode(frames)
    assert torch.equal(latents, plain.encode(frames))
    assert np.array_equal(offloaded.decode(latents), plain.decode(latents))
    assert torch.equal(offloaded.embed(["a tiger"]), plain.embed(["a tiger"]))
    visit = [("vae", "cpu"), ("vae", "cpu")]
    # There and back for each call (device and main memory are both the CPU here).
    assert moves == [*visit, *visit, ("text_encoder", "cpu"), ("text_encoder", "cpu")]
