"""Checkpoints as model sites have them: one file under the original names; DreamBooth's folders."""

import json
import shutil

import pytest
from original_keys import MERGES, make_pipeline, original_tensors, save_single, write_merges

from ctxedit.models.hub import SAFE_REVISIONS

IMAGE = ("--steps", "1", "--size", "32", "--device", "cpu", "--seed", "0", "--offline", "-y")
KINDS = ("sd1", "sd2", "sdxl")


@pytest.fixture(scope="module")
def pipelines():
    """One tiny pipeline of each kind."""
    return {kind: make_pipeline(kind, "v_prediction" if kind == "sd2" else "epsilon") for kind in KINDS}


@pytest.fixture(scope="module")
def folders(pipelines, tmp_path_factory):
    """The same as diffusers' folders."""
    place = tmp_path_factory.mktemp("folders")
    for kind, pipe in pipelines.items():
        pipe.save_pretrained(place / kind)
    return place


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    """No configuration of any repository is here; the tokenizer's merges are in a package."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.syspath_prepend(write_merges(tmp_path / "site-packages"))


@pytest.fixture()
def picture(ctxedit, tmp_path):
    """The pixels of an image from a model, with its messages."""

    def make(model, *more):
        from PIL import Image

        answer = ctxedit("t2i", "a photo of a cat", "--model", model, *IMAGE, "-o", tmp_path / "x.png", *more)
        assert answer.code == 0, answer.err
        return Image.open(tmp_path / "x.png").tobytes(), answer.err

    return make


def refused(answer, *texts):
    lines = [line for line in answer.err.splitlines() if line.startswith(("error: ", "hint: "))]
    assert answer.code == 4 and len(lines) == 2, answer.err
    for text in texts:
        assert text in " ".join(lines)


@pytest.mark.parametrize("kind", KINDS)
def test_one_file_gives_what_the_folder_gives(picture, pipelines, folders, tmp_path, kind):
    file = save_single(pipelines[kind], tmp_path / "model.safetensors")
    found, said = picture(file)
    assert found == picture(folders / kind)[0]
    assert ("does not say what it predicts" in said) == (kind == "sd2")


@pytest.mark.parametrize("name", ["merges.txt", "tokenizer.json"])
def test_the_tokenizer_comes_from_the_hubs_cache(
    ctxedit, picture, pipelines, folders, tmp_path, monkeypatch, name
):
    monkeypatch.setattr("ctxedit.models.single_file._PACKAGES", ())
    file = save_single(pipelines["sd1"], tmp_path / "model.safetensors")
    refused(ctxedit("t2i", "a cat", "--model", file, *IMAGE), "CLIP's is not on this machine", "models pull")
    place = tmp_path / "hub" / "models--openai--clip-vit-base-patch32"
    commit = SAFE_REVISIONS["openai/clip-vit-base-patch32"]
    (place / "snapshots" / commit).mkdir(parents=True)
    lines = ["#version: 0.2", *MERGES, ""]
    text = "\n".join(lines) if name == "merges.txt" else json.dumps({"model": {"merges": MERGES}})
    (place / "snapshots" / commit / name).write_text(text, encoding="utf-8")
    assert picture(file)[0] == picture(folders / "sd1")[0]


def test_a_name_in_capitals_is_a_name(picture, pipelines, folders, tmp_path):
    assert (
        picture(save_single(pipelines["sd1"], tmp_path / "MODEL.SAFETENSORS"))[0]
        == picture(folders / "sd1")[0]
    )


def test_half_precision_is_read(picture, pipelines, tmp_path):
    import copy

    import torch

    pipe = copy.deepcopy(pipelines["sd1"]).to(torch.float16)
    file = save_single(pipe, tmp_path / "half.safetensors")
    pipe.save_pretrained(tmp_path / "half")
    assert picture(file)[0] == picture(tmp_path / "half")[0]


def test_other_layouts_of_the_same_weights(picture, pipelines, folders, tmp_path):
    """Nested, with a second (averaged) copy and a training state, and with the older names of CLIP."""
    import torch
    from safetensors.torch import save_file

    expected = picture(folders / "sd1")[0]
    tensors = original_tensors(pipelines["sd1"])
    nested = {f"state_dict.{key}": value for key, value in tensors.items()}
    whole = tensors | {f"model_ema.{n}": torch.ones(2) for n in range(3)} | {"betas": torch.ones(3)}
    whole["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)
    older = {key.replace("transformer.text_model.", "transformer."): value for key, value in tensors.items()}
    for layout in (nested, whole, older):
        save_file(layout, tmp_path / "model.safetensors")
        assert picture(tmp_path / "model.safetensors")[0] == expected


def test_the_last_layer_of_open_clip_is_left_out(picture, pipelines, folders, tmp_path):
    """The original Stable Diffusion 2.x files hold 24 layers of the text encoder, diffusers uses 23."""
    prefix = "cond_stage_model.model.transformer.resblocks"
    tensors = original_tensors(pipelines["sd2"])
    more = {
        k.replace(f"{prefix}.0.", f"{prefix}.23."): 2 * v for k, v in tensors.items() if f"{prefix}.0." in k
    }
    file = save_single(pipelines["sd2"], tmp_path / "model.safetensors", **more)
    assert picture(file)[0] == picture(folders / "sd2")[0]


def test_what_it_predicts_is_read_where_it_is_said(picture, folders, pipelines, tmp_path):
    import torch

    out = shutil.copytree(folders / "sd2", tmp_path / "noise")
    for name, change in (
        ("scheduler/scheduler_config.json", {"prediction_type": "epsilon"}),
        ("unet/config.json", {"sample_size": 64}),
    ):
        (out / name).write_text(json.dumps(json.loads((out / name).read_text()) | change))
    noise = picture(out)[0]
    file = save_single(
        pipelines["sd2"], tmp_path / "metadata.safetensors", {"modelspec.prediction_type": "epsilon"}
    )
    found, said = picture(file)
    assert found == noise and "does not say" not in said
    file = save_single(pipelines["sd2"], tmp_path / "beside.safetensors")
    file.with_suffix(".yaml").write_text('model:\n  params:\n    parameterization: "eps"\n')
    found, said = picture(file)
    assert found == noise and "does not say" not in said
    marked = save_single(pipelines["sd1"], tmp_path / "marked.safetensors", v_pred=torch.ones(1))
    assert picture(marked)[0] != picture(folders / "sd1")[0]


def test_the_plan_knows_its_sizes(ctxedit, clip, pipelines, tmp_path, no_weights):
    file = save_single(pipelines["sd1"], tmp_path / "model.safetensors")
    answer = ctxedit(
        "run", clip, "a cat on the beach", "--prompt", "a tiger on the beach", "--model", file, "--size", 64,
        "--frames", 2, "--set", "clip_model=builtin", "--runs", tmp_path, "--offline", "--dry-run", "--json",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    pipe = pipelines["sd1"]
    networks = (pipe.unet, pipe.vae, pipe.text_encoder)
    assert answer.table["plan"]["parameters"] == sum(p.numel() for n in networks for p in n.parameters())


@pytest.mark.parametrize(
    ("lost", "text"),
    [
        ("first_stage_model.", "no autoencoder"),
        ("cond_stage_model.", "no text encoder"),
        ("model.diffusion_model.", "no UNet"),
        ("model.diffusion_model.out.2", "lacks weights"),
    ],
)
def test_what_is_not_whole_is_refused_by_the_dry_run(ctxedit, pipelines, tmp_path, lost, text):
    from safetensors.torch import save_file

    kept = {k: v for k, v in original_tensors(pipelines["sd1"]).items() if not k.startswith(lost)}
    save_file(kept, tmp_path / "model.safetensors")
    refused(ctxedit("t2i", "a cat", "--model", tmp_path / "model.safetensors", *IMAGE, "--dry-run"), text)


def test_a_weight_that_is_missing_is_not_left_to_chance(ctxedit, pipelines, tmp_path):
    from safetensors.torch import save_file

    tensors = original_tensors(pipelines["sd1"])
    del tensors["model.diffusion_model.middle_block.0.in_layers.2.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    image = (*IMAGE, "-o", tmp_path / "x.png")
    answer = ctxedit("t2i", "a cat", "--model", tmp_path / "model.safetensors", *image)
    refused(answer, "lacks weights of its unet")


def test_kinds_that_cannot_edit_are_refused(ctxedit, pipelines, tmp_path):
    import torch
    from safetensors.torch import save_file

    inpainting = save_single(make_pipeline("sd1", in_channels=9), tmp_path / "inpainting.safetensors")
    tensors = original_tensors(pipelines["sdxl"])
    first = "conditioner.embedders.0."
    refiner = {k: v for k, v in tensors.items() if not k.startswith("conditioner")}
    save_file(refiner | {f"{first}model.ln_final.weight": torch.ones(2)}, tmp_path / "refiner.safetensors")
    save_file({"lora_unet_x.lora_up.weight": torch.ones(2, 2)}, tmp_path / "lora.safetensors")
    flux = {"model.diffusion_model.double_blocks.0.img_attn.qkv.weight": torch.ones(2, 2)}
    save_file(flux, tmp_path / "flux.safetensors")
    silent = save_single(pipelines["sd1"], tmp_path / "silent.safetensors", ztsnr=torch.ones(1))
    for file, text in (
        (inpainting, "takes 9 channels"), (tmp_path / "flux.safetensors", "flow transformers"),
        (silent, "silent.yaml with the line `parameterization: v` beside it"),
        (tmp_path / "refiner.safetensors", "refiner"),
        (tmp_path / "lora.safetensors", "a LoRA goes to --lora"),
    ):  # fmt: skip
        refused(ctxedit("t2i", "a cat", "--model", file, *IMAGE, "--dry-run"), text)


def test_a_pickle_is_refused(ctxedit, tmp_path):
    (tmp_path / "model.ckpt").write_bytes(b"\x80\x04.")
    refused(ctxedit("t2i", "a cat", "--model", tmp_path / "model.ckpt", *IMAGE), "refused", "convert it")


def test_dreambooth_folders(ctxedit, picture, folders, tmp_path):
    """As the training scripts leave them: no safety checker, checkpoints of single networks inside."""
    from diffusers import UNet2DConditionModel

    out = shutil.copytree(folders / "sd1", tmp_path / "dog")
    index = json.loads((out / "model_index.json").read_text())
    assert index["safety_checker"] == [None, None] and not (out / "safety_checker").exists()
    (out / "logs").mkdir()
    step = out / "checkpoint-500"
    shutil.copytree(out / "unet", step / "unet")
    for name in ("optimizer.bin", "scheduler.bin", "random_states_0.pkl"):
        (step / name).write_bytes(b"never read")
    net = UNet2DConditionModel.from_pretrained(step / "unet")
    net.conv_out.bias.data += 1
    net.save_pretrained(step / "unet")
    whole, early = picture(out)[0], picture(step)[0]
    assert whole == picture(folders / "sd1")[0]
    expected = shutil.copytree(out, tmp_path / "expected")
    shutil.rmtree(expected / "unet")
    shutil.copytree(step / "unet", expected / "unet")
    assert early == picture(expected)[0] != whole
    (out / "model_index.json").unlink()
    refused(ctxedit("t2i", "a cat", "--model", step, *IMAGE), "holds only unet/", "checkpoint-500")


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (("clip_l", "clip_g"), None),
        (("text_encoders_0", "text_encoders_1"), None),
        (("clip_l",), "one of its two text encoders"),
        (("emb_params",), "one of its two text encoders"),
    ],
)
def test_an_embedding_for_sdxl(ctxedit, picture, folders, tmp_path, names, wanted):
    """Vectors for both text encoders, as diffusers' scripts and web UIs save them; one alone is refused."""
    import torch
    from safetensors.torch import save_file

    file = tmp_path / "mine.safetensors"
    save_file({name: torch.randn(2, width) for name, width in zip(names, (32, 24), strict=False)}, file)
    more = ("--embedding", file)
    if wanted:
        refused(ctxedit("t2i", "a cat", "--model", folders / "sdxl", *IMAGE, *more, "--dry-run"), wanted)
        return
    plain = picture(folders / "sdxl", *more)[0]
    answer = ctxedit(
        "t2i", "a photo of a mine", "--model", folders / "sdxl", *IMAGE, *more, "-o", tmp_path / "y.png"
    )
    assert answer.code == 0, answer.err
    from PIL import Image

    assert Image.open(tmp_path / "y.png").tobytes() != plain


def test_a_lora_for_sdxl(picture, pipelines, folders, tmp_path):
    """In kohya's format, as model sites have it, on one file and on a folder alike."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(5)
    layer = "down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
    encoder, lora = "lora_te2_text_model_encoder_layers_0_", {}
    for name, width in (
        (f"lora_unet_{layer}", 128),
        (f"{encoder}self_attn_q_proj", 24),
        (f"{encoder}mlp_fc1", 24),
    ):
        outer = 48 if "fc1" in name else width
        lora[f"{name}.lora_down.weight"] = torch.randn(2, width)
        lora[f"{name}.lora_up.weight"] = torch.randn(outer, 2)
        lora[f"{name}.alpha"] = torch.tensor(2.0)
    save_file(lora, tmp_path / "style.safetensors")
    file = save_single(pipelines["sdxl"], tmp_path / "model.safetensors")
    more = ("--lora", tmp_path / "style.safetensors:0.5")
    found = picture(file, *more)[0]
    assert found == picture(folders / "sdxl", *more)[0] != picture(file)[0]
