"""Checkpoints and prompts in less usual layouts: loaded rightly, or refused by the dry run."""

import json
import shutil

import pytest
import torch
from asking import call
from safetensors.torch import load_file, save_file

from ctxedit.errors import WeightsError
from ctxedit.models.captioner import Blip2Captioner
from ctxedit.models.clip import ClipScorer
from ctxedit.models.weights import BUILTIN_FOLDER

IMAGE = ("--steps", "1", "--size", "32", "--device", "cpu", "--dtype", "float32", "-y", "--no-metadata")
OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


@pytest.fixture()
def copy(stable_diffusion, tmp_path):
    return shutil.copytree(stable_diffusion, tmp_path / "model")


@pytest.fixture()
def draw(tmp_path):
    def ask(model, *more, text="a tiger on the beach"):
        return call("t2i", text, "--model", model, *IMAGE, "-o", tmp_path / "x.png", *more)

    return ask


@pytest.fixture()
def pixels(draw, tmp_path):
    """What a model draws, as numbers."""
    from PIL import Image

    def make(model, *more, **text):
        answer = draw(model, *more, **text)
        assert answer.code == 0, answer.err
        return torch.tensor(list(Image.open(tmp_path / "x.png").convert("RGB").tobytes())).float()

    return make


def refused(answer, code, *texts):
    lines = [line for line in answer.err.splitlines() if line.startswith(("error: ", "hint: "))]
    assert answer.code == code and len(lines) == 2 and "Traceback" not in answer.err, answer.err
    for text in texts:
        assert text in " ".join(lines), answer.err


def weights_of(folder):
    (file,) = folder.glob("*.safetensors")
    return file, load_file(file)


def halved(folder):
    """A network's weights as its fp16 variant alone."""
    file, table = weights_of(folder)
    save_file(
        {k: v.half() for k, v in table.items()}, file.with_suffix(".fp16.safetensors"), {"format": "pt"}
    )
    file.unlink()


class TestFolders:
    @pytest.mark.parametrize("parts", [("unet",), ("vae", "text_encoder")])
    def test_fp16_variants_of_some_networks_only(self, copy, stable_diffusion, draw, pixels, parts):
        for part in parts:
            halved(copy / part)
        assert draw(copy, "--dry-run").code == 0
        assert (pixels(copy) - pixels(stable_diffusion)).abs().max() <= 3

    def test_an_autoencoder_with_the_names_of_2022(self, copy, stable_diffusion, pixels):
        """As in the published Stable Diffusion 1.x repositories: `query`, `key`, `value`, `proj_attn`."""
        file, table = weights_of(copy / "vae")
        old = {}
        for key, value in table.items():
            name = next((n for n in OLD_NAMES if f".{n}." in key), None)
            old[key.replace(f".{name}.", f".{OLD_NAMES[name]}.") if name else key] = value
        assert set(old) != set(table)
        save_file(old, file, {"format": "pt"})
        assert torch.equal(pixels(copy), pixels(stable_diffusion))

    def test_an_autoencoder_of_ones_own_in_its_place(self, copy, stable_diffusion, pixels):
        """A folder of another autoencoder of the same kind, put where the pipeline's was."""
        file, table = weights_of(copy / "vae")
        table["decoder.conv_out.bias"] += 0.5
        save_file(table, file, {"format": "pt"})
        brighter = pixels(copy) - pixels(stable_diffusion)
        assert brighter.mean() > 20

    @pytest.mark.parametrize("name", ["diffusion_pytorch_model.safetensors", "vae-ft-mse-840000.safetensors"])
    def test_an_autoencoder_file_of_the_original_code(self, copy, draw, name):
        """One file from a model site, dropped into vae/ under the expected name, or under its own."""
        file, table = weights_of(copy / "vae")
        file.unlink()
        original = {k.replace("_blocks", "").replace("resnets", "block"): v for k, v in table.items()}
        save_file(original, copy / "vae" / name)
        refused(draw(copy, "--dry-run"), 4, "vae")

    @pytest.mark.parametrize("lost", ["one", "all", "named by the index alone"])
    def test_missing_shards(self, copy, draw, lost):
        from diffusers import UNet2DConditionModel

        unet = UNet2DConditionModel.from_pretrained(copy / "unet")
        shutil.rmtree(copy / "unet")
        unet.save_pretrained(copy / "unet", max_shard_size="100KB")
        shards = sorted((copy / "unet").glob("*.safetensors"))
        assert len(shards) > 1
        if lost == "named by the index alone":
            (file,) = (copy / "unet").glob("*.index.json")
            index = json.loads(file.read_text())
            first = next(iter(index["weight_map"]))
            index["weight_map"][first] = "diffusion_pytorch_model-extra.safetensors"
            file.write_text(json.dumps(index))
        for shard in shards[: {"one": 1, "all": None}.get(lost, 0)]:
            shard.unlink()
        refused(draw(copy, "--dry-run"), 4, "unet")


class TestLoras:
    @pytest.fixture()
    def layer(self, stable_diffusion):
        """A down and an up matrix for one attention layer of the UNet, and the layer's name."""
        generator = torch.Generator().manual_seed(3)
        name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
        weight = weights_of(stable_diffusion / "unet")[1][f"{name}.weight"]
        down = torch.randn(2, weight.shape[1], generator=generator)
        return name, down, torch.randn(weight.shape[0], 2, generator=generator)

    def test_a_kohya_file_without_alphas_is_taken_at_its_rank(self, copy, layer, pixels, tmp_path):
        name, down, up = layer
        stem = f"lora_unet_{name.replace('.', '_')}"
        tensors = {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
        save_file(tensors, tmp_path / "no-alpha.safetensors")
        found = pixels(copy, "--lora", tmp_path / "no-alpha.safetensors")
        plain = pixels(copy)
        file, table = weights_of(copy / "unet")
        table[f"{name}.weight"] += up @ down
        save_file(table, file, {"format": "pt"})
        wanted = pixels(copy)
        assert (found - wanted).abs().max() <= 1 < (found - plain).abs().max()

    def test_a_locon_is_a_lora_with_convolutions(self, copy, stable_diffusion, pixels, tmp_path):
        """LyCORIS' LoCon: a factor of 3×3 and one of 1×1 for a convolution, with an alpha."""
        name, stem = "down_blocks.0.resnets.0.conv1", "lora_unet_down_blocks_0_resnets_0_conv1"
        file, table = weights_of(copy / "unet")
        weight = table[f"{name}.weight"]
        generator = torch.Generator().manual_seed(4)
        down = torch.randn(2, *weight.shape[1:], generator=generator)
        up = torch.randn(weight.shape[0], 2, 1, 1, generator=generator)
        alpha = torch.tensor(1.0)
        tensors = {
            f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up, f"{stem}.alpha": alpha,
        }  # fmt: skip
        save_file(tensors, tmp_path / "locon.safetensors")
        found = pixels(stable_diffusion, "--lora", tmp_path / "locon.safetensors")
        table[f"{name}.weight"] = weight + 0.5 * (up.flatten(1) @ down.flatten(1)).view_as(weight)
        save_file(table, file, {"format": "pt"})
        assert (found - pixels(copy)).abs().max() <= 1

    def test_kohyas_dora_is_refused(self, stable_diffusion, layer, draw, tmp_path):
        name, down, up = layer
        stem = f"lora_unet_{name.replace('.', '_')}"
        tensors = {
            f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up,
            f"{stem}.alpha": torch.tensor(2.0), f"{stem}.dora_scale": torch.ones(1, down.shape[1]),
        }  # fmt: skip
        save_file(tensors, tmp_path / "dora.safetensors")
        answer = draw(stable_diffusion, "--lora", tmp_path / "dora.safetensors", "--dry-run")
        refused(answer, 4, "a DoRA, not a LoRA")


class TestPrompts:
    def test_an_embedding_in_the_negative_prompt_stands_for_its_vectors(
        self, stable_diffusion, pixels, tmp_path
    ):
        """As EasyNegative is used: one token of several vectors."""
        from transformers import CLIPTokenizer

        words = "red panda walking"
        tokenizer = CLIPTokenizer.from_pretrained(stable_diffusion / "tokenizer")
        table = weights_of(stable_diffusion / "text_encoder")[1]
        (vectors,) = (v for k, v in table.items() if k.endswith("token_embedding.weight"))
        ids = tokenizer(words, add_special_tokens=False).input_ids
        save_file({"emb_params": vectors[ids]}, tmp_path / "bad-hands.safetensors")
        more = ("--embedding", tmp_path / "bad-hands.safetensors", "--guidance", "9")
        found = pixels(stable_diffusion, *more, "--negative-prompt", "bad-hands")
        assert torch.equal(found, pixels(stable_diffusion, "--guidance", "9", "--negative-prompt", words))
        assert not torch.equal(found, pixels(stable_diffusion, *more))

    @pytest.mark.parametrize(
        "text",
        [
            "a ((tiger:1.2):1.3) on the beach",
            "a (striped (tiger:1.2):1.3) on the beach",
            "a tiger BREAK on the beach",
            "a tiger AND a beach",
            "a tiger AND a beach :0.5",
            "a [tiger::0.5] on the beach",
        ],
    )
    def test_syntax_of_other_tools_is_refused_by_the_dry_run(self, stable_diffusion, clip, tmp_path, text):
        # No model of scoring is in the cache: a prompt is refused before anything is asked of the hub.
        answer = call(
            "run", clip, text, "--model", stable_diffusion, "--prompt", "a tiger on the beach", "--frames", 2,
            "--stride", 1, "--runs", tmp_path / "runs", "--dry-run",
        )  # fmt: skip
        refused(answer, 2)


@pytest.mark.parametrize("kind", ["pad", "eos"])
def test_a_tokenizer_with_a_mark_that_the_encoder_does_not_know_is_refused(copy, draw, kind):
    file = copy / "tokenizer" / "tokenizer_config.json"
    table = json.loads(file.read_text())
    file.write_text(json.dumps({**table, f"{kind}_token": ">|endoftext|>"}))
    answer = draw(copy, "--dry-run")
    assert answer.code == 4 and f"{kind}_token" in answer.err


def test_the_scorers_and_captioners_checkpoints_are_checked_likewise(tmp_path):
    for part, load in (("clip", ClipScorer), ("captioner", Blip2Captioner)):
        for name, change in (
            ("config.json", lambda table: table["text_config"].update(num_attention_heads=True)),
            ("tokenizer_config.json", lambda table: table.update(pad_token="unheard of")),
        ):
            folder = shutil.copytree(BUILTIN_FOLDER / part, tmp_path / part / name)
            table = json.loads((folder / name).read_text())
            change(table)
            (folder / name).write_text(json.dumps(table))
            with pytest.raises(WeightsError, match=r"num_attention_heads|pad_token"):
                load(folder)


@pytest.mark.parametrize("value", [[2, True], [-1, 2], 0, "8", 2.5, [[]]])
def test_a_count_that_is_none_is_refused(copy, draw, value):
    file = copy / "unet" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "attention_head_dim": value}))
    answer = draw(copy, "--dry-run")
    assert answer.code == 4 and "attention_head_dim" in answer.err


class TestWhatPeopleGiveInstead:
    """What is near to a checkpoint is named, and where the checkpoint may be."""

    @pytest.mark.parametrize(
        ("data", "texts"),
        [
            (
                "version https://git-lfs.github.com/spec/v1\noid sha256:ab\n",
                ("Git LFS pointer", "git lfs pull"),
            ),
            ("\n<!DOCTYPE html><html>log in</html>", ("web page", "log in")),
            ("GGUF" + "\3" + "\0" * 99, ("GGUF file", "in safetensors")),
        ],
    )
    def test_a_file_that_was_not_fetched(self, copy, draw, tmp_path, data, texts):
        (copy / "unet" / "diffusion_pytorch_model.safetensors").write_text(data)
        refused(draw(copy, "--dry-run"), 4, *texts)
        (tmp_path / "style.safetensors").write_text(data)
        refused(draw("builtin", "--lora", tmp_path / "style.safetensors", "--dry-run"), 4, *texts)

    def test_another_format(self, draw, tmp_path):
        for name in ("model.gguf", "model.onnx", "model"):
            (tmp_path / name).write_bytes(b"GGUF")
            refused(draw(tmp_path / name, "--dry-run"), 4, f"{name} is not a .safetensors file", "GGUF")
            refused(
                draw("builtin", "--lora", tmp_path / name, "--dry-run"), 4, f"{name} is not a .safetensors"
            )

    @pytest.mark.parametrize(
        "quantised",
        [lambda t: {"scaled_fp8": t[:0].float()}, lambda t: {"conv_in.weight": t.to(torch.int8)}],
        ids=["scaled", "integers"],
    )  # fmt: skip
    def test_quantised_weights(self, copy, draw, quantised):
        file = copy / "unet" / "diffusion_pytorch_model.safetensors"
        tensors = load_file(file)
        save_file(tensors | quantised(tensors["conv_in.weight"]), file, metadata={"format": "pt"})
        refused(draw(copy, "--dry-run"), 4, "its weights are quantised", "float16, bfloat16 or float32")

    @pytest.mark.parametrize("variant", ["bf16", "non_ema"])
    def test_weights_of_another_variant_only(self, copy, draw, variant):
        file = copy / "unet" / "diffusion_pytorch_model.safetensors"
        file.rename(file.with_suffix(f".{variant}.safetensors"))
        refused(draw(copy, "--dry-run"), 4, f"but diffusion_pytorch_model.{variant}.safetensors", "rename")

    def test_a_part_of_a_folder_or_a_folder_around_it(self, copy, draw, tmp_path):
        refused(draw(copy / "unet"), 4, f"{copy} has one")
        cache = tmp_path / "models--owner--name"
        (cache / "snapshots").mkdir(parents=True)
        inside = copy.rename(cache / "snapshots" / "0123abcd")
        refused(draw(cache), 4, f"{inside} has one")

    @pytest.mark.parametrize(
        ("part", "text"),
        [("unet", "only a UNet"), ("vae", "an autoencoder"), ("text_encoder", "a text encoder")],
    )
    def test_the_file_of_one_network(self, stable_diffusion, draw, part, text):
        (file,) = (stable_diffusion / part).glob("*.safetensors")
        refused(draw(file), 4, text, "model_index.json")

    @pytest.mark.parametrize(
        ("name", "text"),
        [("model_ema.diffusion_modelout0weight", "averaged"), ("input_blocks.0.0.weight", "a UNet")],
    )
    def test_a_single_file_of_a_part(self, draw, tmp_path, name, text):
        save_file({name: torch.zeros(2, 2)}, tmp_path / "part.safetensors")
        refused(draw(tmp_path / "part.safetensors"), 4, text, "whole checkpoint")

    @pytest.mark.parametrize(
        "name",
        ["https://huggingface.co/owner/name", "https://hf.co/owner/name/tree/main", "owner/name/unet"],
    )
    def test_the_id_in_an_address(self, draw, name):
        refused(draw(name), 4, "did you mean 'owner/name'?")
