"""ClipScorer on a tiny random CLIP, against transformers' own forward pass and image processor."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import pre_tokenizers
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig

from ctxedit.errors import WeightsError
from ctxedit.models import clip
from ctxedit.models.clip import ClipScorer, ImagePreprocessor

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
IMAGES = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": 16},
    "crop_size": {"height": 16, "width": 16},
    "resample": 3,
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.3, 0.4],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as save_pretrained leaves it, with bytes for a vocabulary."""
    path = tmp_path_factory.mktemp("clips") / "tiny-clip"
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(c + "</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={w: i for i, w in enumerate(words)}, merges=[], model_max_length=12)
    text = CLIPTextConfig(
        vocab_size=len(words),
        max_position_embeddings=12,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **SIZES,
    )
    vision = CLIPVisionConfig(image_size=16, patch_size=8, **SIZES)
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)
    CLIPModel(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    (path / "preprocessor_config.json").write_text(json.dumps(IMAGES))
    return path


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


@pytest.fixture(scope="module")
def frames():
    return np.random.default_rng(0).integers(0, 256, (3, 24, 37, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def scorer(folder):
    return ClipScorer(folder)


def test_embeddings_are_those_of_the_whole_model(folder, scorer, frames):
    texts = ["a cat", "dog on a"]
    model = CLIPModel.from_pretrained(folder).eval()
    tokens = CLIPTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        out = model(pixel_values=ImagePreprocessor(folder, square=False)(list(frames)), **tokens)
    images, words = scorer.embed_images(frames), scorer.embed_texts(texts)
    assert images.shape == (3, 8) and words.shape == (2, 8)
    torch.testing.assert_close(images, out.image_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(words, out.text_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(images.norm(dim=-1), torch.ones(3))
    assert not torch.allclose(words[0], words[1], atol=1e-3)
    assert scorer.name == "tiny-clip"


def test_batches_do_not_matter(scorer):
    many = np.random.default_rng(1).integers(0, 256, (clip._BATCH + 3, 16, 16, 3)).astype(np.uint8)
    one_by_one = torch.cat([scorer.embed_images(many[i : i + 1]) for i in range(len(many))])
    torch.testing.assert_close(scorer.embed_images(many), one_by_one, atol=1e-5, rtol=0)


def test_padding_beside_a_longer_text_changes_nothing(scorer):
    together = scorer.embed_texts(["a", "a dog on"])
    torch.testing.assert_close(together[:1], scorer.embed_texts(["a"]), atol=1e-5, rtol=0)


def test_long_texts_are_cut_and_the_rest_is_named(scorer):
    # Twelve places, two of them for start and end, one letter a token: ten letters are seen.
    text = "a b c d e f g h i j"
    torch.testing.assert_close(scorer.embed_texts([text]), scorer.embed_texts([text + " k l m"]))
    assert not torch.allclose(scorer.embed_texts([text]), scorer.embed_texts([text[:-1] + "k"]), atol=1e-3)
    assert scorer.cut(text) == ""
    assert scorer.cut(text + " k l m") == "k l m"


@pytest.mark.parametrize("size", [(24, 37), (37, 24), (16, 16), (9, 11)])
@pytest.mark.parametrize("square", [False, True])
def test_pixels_are_those_of_transformers(tmp_path, size, square):
    pil = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    blob = dict(IMAGES)
    if square:
        blob |= {"size": {"height": 16, "width": 16}, "do_center_crop": False}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(blob))
    image = np.random.default_rng(2).integers(0, 256, (*size, 3)).astype(np.uint8)
    theirs = pil.CLIPImageProcessorPil(**{k: v for k, v in blob.items() if k != "image_processor_type"})
    want = theirs([image], input_data_format="channels_last", return_tensors="pt")["pixel_values"]
    got = ImagePreprocessor(tmp_path, square=square)([image])
    assert got.shape == (1, 3, 16, 16)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


def test_the_middle_of_a_wide_image_is_seen(folder):
    image = np.zeros((16, 48, 3), np.uint8)
    image[:, 16:32] = 255
    pixels = ImagePreprocessor(folder, square=False)([image])[0]
    want = torch.tensor([(1 - m) / s for m, s in zip(IMAGES["image_mean"], IMAGES["image_std"], strict=True)])
    torch.testing.assert_close(pixels, want.view(3, 1, 1).expand(3, 16, 16))


def test_old_and_nested_settings_are_understood(tmp_path, folder):
    image = np.random.default_rng(3).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    want = ImagePreprocessor(folder, square=False)([image])
    old = IMAGES | {"size": 16, "crop_size": 16}  # OpenAI's repositories still have numbers here
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(old))
    torch.testing.assert_close(ImagePreprocessor(tmp_path, square=False)([image]), want)
    (tmp_path / "preprocessor_config.json").unlink()
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": IMAGES}))
    torch.testing.assert_close(ImagePreprocessor(tmp_path, square=False)([image]), want)


def test_floats_are_not_taken_for_bytes(scorer):
    with pytest.raises(ValueError, match="uint8"):
        scorer.embed_images(np.zeros((1, 16, 16, 3), np.float32))


def refused(what, match):
    with pytest.raises(WeightsError, match=match) as caught:
        ClipScorer(what)
    assert "\n" not in caught.value.message
    assert caught.value.hint
    return caught.value


def test_missing_checkpoints_are_named(tmp_path):
    refused(tmp_path / "nowhere", "not a folder")
    refused(str(tmp_path / "nowhere"), "not a folder")
    refused("no/such/thing", "not a folder")
    assert "--offline" in refused("nobody/no-such-model", "offline").hint


def test_pickles_are_refused(copy):
    (copy / "model.safetensors").unlink()
    refused(copy, "no safetensors")
    (copy / "pytorch_model.bin").write_bytes(b"never read")
    refused(copy, "pickle")


@pytest.mark.parametrize(
    ("file", "match"),
    [
        ("config.json", "config.json"),
        ("preprocessor_config.json", "preprocessor_config.json"),
        ("tokenizer.json", "tokenizer"),
    ],
)
def test_a_missing_file_is_named(copy, file, match):
    (copy / file).unlink()
    refused(copy, match)


def test_broken_files_are_refused(copy):
    good = (copy / "preprocessor_config.json").read_text()
    (copy / "preprocessor_config.json").write_text("{")
    refused(copy, "is not a valid model.s settings file")
    (copy / "preprocessor_config.json").write_text('{"size": {"width": 3}}')
    refused(copy, "broken image settings")
    (copy / "preprocessor_config.json").write_text(good.replace("16", "32"))
    refused(copy, "32")
    (copy / "preprocessor_config.json").write_text(good)
    (copy / "model.safetensors").write_bytes(b"\x10\0\0\0")
    refused(copy, "cannot be loaded")


def test_missing_and_nan_weights_are_refused(copy):
    weights = load_file(copy / "model.safetensors")
    key = "visual_projection.weight"
    save_file({k: v for k, v in weights.items() if k != key}, copy / "model.safetensors", {"format": "pt"})
    refused(copy, f"lacks 1 weights, including {key}")
    weights[key][0, 0] = float("nan")
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    refused(copy, f"NaN or infinity in {key}")
