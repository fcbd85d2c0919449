"""``--lora``: both formats, UNet and text encoder, the run's identity, and files that do not fit."""

import json

import pytest
import torch
from asking import TARGET, call
from safetensors.torch import load_file, save_file

PROMPT = "a tiger walking on the beach"
SMALL = ("--preset", "tune-a-video", "--tune-steps", 1, "--set", "clip_model=builtin", "--size", 32)
IMAGE = ("--steps", "2", "--size", "32", "--device", "cpu")
LAYERS = {
    "unet": (".to_q", ".to_k", ".to_v", ".to_out.0", ".proj_in", ".ff.net.2", ".conv1", ".time_emb_proj"),
    "text_encoder": (".q_proj", ".k_proj", ".v_proj", ".out_proj", ".fc1", ".fc2"),
}
RANK = 2


def weights_of(folder, part):
    (file,) = (folder / part).glob("*.safetensors")
    return file, load_file(file)


@pytest.fixture(scope="module")
def products(stable_diffusion):
    """(down, up) for chosen layers of both networks, by network and layer."""
    draw = torch.Generator().manual_seed(7)
    found = {}
    for part, ends in LAYERS.items():
        for name, weight in weights_of(stable_diffusion, part)[1].items():
            layer = name.removesuffix(".weight")
            if name.endswith(".weight") and layer.endswith(ends):
                down = torch.randn(RANK, *weight.shape[1:], generator=draw) * 0.2
                up = torch.randn(weight.shape[0], RANK, *(1,) * (weight.ndim - 2), generator=draw) * 0.2
                found[part, layer] = down, up
    assert {part for part, _ in found} == set(LAYERS)
    return found


def in_diffusers_format(products):
    out = {}
    for (part, layer), (down, up) in products.items():
        layer = layer if part == "unet" else f"text_model.{layer.removeprefix('text_model.')}"
        out[f"{part}.{layer}.lora_A.weight"], out[f"{part}.{layer}.lora_B.weight"] = down, up
    return out


def alpha_of(layer):
    """kohya's alphas may differ from layer to layer."""
    return 1.0 if "ff" in layer or "fc" in layer else 4.0


def in_kohya_format(products):
    out = {}
    for (part, layer), (down, up) in products.items():
        layer = layer if part == "unet" else f"text_model.{layer.removeprefix('text_model.')}"
        name = f"{'lora_unet' if part == 'unet' else 'lora_te'}_{layer.replace('.', '_')}"
        out[f"{name}.lora_down.weight"], out[f"{name}.lora_up.weight"] = down, up
        out[f"{name}.alpha"] = torch.tensor(alpha_of(layer))
    return out


def in_half_kohya_format(products):
    """As most files are: products and alphas in half precision."""
    return {key: value.half() for key, value in in_kohya_format(products).items()}


FORMATS = {
    "diffusers": (in_diffusers_format, lambda layer: 1.0),
    "kohya": (in_kohya_format, lambda layer: alpha_of(layer) / RANK),
    "kohya, half": (in_half_kohya_format, lambda layer: alpha_of(layer) / RANK),
}


@pytest.fixture()
def lora(products, tmp_path):
    def make(kind="diffusers", name="style.safetensors"):
        save_file(FORMATS[kind][0](products), tmp_path / name)
        return tmp_path / name

    return make


def merged_by_hand(folder, place, products, scale):
    """The checkpoint with the products added to its weights."""
    import shutil

    shutil.copytree(folder, place)
    for part in LAYERS:
        file, table = weights_of(place, part)
        for (of, layer), (down, up) in products.items():
            if of == part:
                weight = table[f"{layer}.weight"]
                table[f"{layer}.weight"] = weight + scale(layer) * (up.flatten(1) @ down.flatten(1)).view_as(
                    weight
                )
        save_file(table, file, {"format": "pt"})
    return place


def picture(model, tmp_path, *more, name="image.png"):
    answer = call(
        "t2i", PROMPT, "--model", model, *IMAGE, "-o", tmp_path / name, "-y", "--no-metadata", *more
    )
    assert answer.code == 0, answer.err
    from PIL import Image

    return torch.tensor(list(Image.open(tmp_path / name).convert("RGB").tobytes())).float(), answer


@pytest.mark.parametrize("kind", FORMATS)
def test_it_is_the_product_added_to_the_weights(kind, stable_diffusion, products, lora, tmp_path):
    by_hand = merged_by_hand(
        stable_diffusion, tmp_path / "model", products, lambda layer: 0.5 * FORMATS[kind][1](layer)
    )
    wanted, _ = picture(by_hand, tmp_path, name="hand.png")
    found, answer = picture(stable_diffusion, tmp_path, "--lora", f"{lora(kind)}:0.5")
    plain, _ = picture(stable_diffusion, tmp_path, name="plain.png")
    assert (found - wanted).abs().max() <= 1 and (found - plain).abs().mean() > 2
    assert "LoRA style.safetensors at 0.5" in answer.err
    assert "MISSING" not in answer.err and "peft" not in answer.err.lower()


def older_formats(products):
    """The UNet's attention as diffusers' and peft's scripts saved it over the years; what loads, what not."""
    own = {
        layer: pair for (part, layer), pair in products.items() if part == "unet" and ".to_" in layer
    }  # fmt: skip
    ends = {"down": 0, "up": 1}

    def named(form):
        return {form(layer, end): pair[n] for layer, pair in own.items() for end, n in ends.items()}

    def processor(layer, end):
        place, _, name = layer.removesuffix(".0").rpartition(".")
        return f"{place}.processor.{name}_lora.{end}.weight"

    def peft(layer, end):
        return f"base_model.model.{layer}.lora_{'AB'[ends[end]]}.weight"

    return own, {
        "attention processors": named(lambda layer, end: f"unet.{processor(layer, end)}"),
        "attention processors of the UNet alone": named(processor),
        "linear layers": named(lambda layer, end: f"unet.{layer}.lora.{end}.weight"),
        "peft of a wrapped UNet": named(lambda layer, end: f"unet.{peft(layer, end)}"),
        "peft": named(peft),
    }


@pytest.mark.parametrize(
    "kind",
    [
        "attention processors", "attention processors of the UNet alone", "linear layers",
        "peft of a wrapped UNet", "peft",
    ],
)  # fmt: skip
def test_older_formats_and_pefts_own(kind, stable_diffusion, products, tmp_path):
    own, formats = older_formats(products)
    ratio = 2.0 if kind == "peft" else 1.0  # in its config
    by_hand = merged_by_hand(
        stable_diffusion, tmp_path / "model", {("unet", layer): pair for layer, pair in own.items()},
        lambda layer: ratio,
    )  # fmt: skip
    wanted, _ = picture(by_hand, tmp_path, name="hand.png")
    file = tmp_path / "adapter_model.safetensors"
    save_file(formats[kind], file)
    if kind == "peft":
        refused = call("t2i", PROMPT, "--model", stable_diffusion, *IMAGE, "--lora", file, "--dry-run")
        assert refused.code == 4 and "adapter_config.json" in refused.err
        (tmp_path / "adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": 2 * RANK}))
    found, _ = picture(stable_diffusion, tmp_path, "--lora", file)
    assert (found - wanted).abs().max() <= 1


def test_several_are_added_one_after_another(stable_diffusion, lora, tmp_path):
    one, other = lora(), lora(name="other.safetensors")
    both, _ = picture(stable_diffusion, tmp_path, "--lora", f"{one}:1", "--lora", f"{other}:-0.5")
    half, _ = picture(stable_diffusion, tmp_path, "--lora", f"{one}:0.5", name="half.png")
    assert (both - half).abs().max() <= 1


def test_tuning_goes_on_top_and_the_run_is_another(stable_diffusion, clip, lora, tmp_path):
    file, runs = lora(), tmp_path / "runs"
    arguments = (
        "tune", clip, "--model", stable_diffusion, "--prompt", PROMPT, "--frames", 2, "--stride", 1, *SMALL,
        "--runs", runs, "--json",
    )  # fmt: skip
    folders = {
        said: call(*arguments, *(("--lora", f"{file}{said}") if said is not None else ())).table["run"]
        for said in (None, "", ":0.5")
    }
    assert len(set(folders.values())) == 3
    tuned = {k: load_file(f"{v}/tune/tuned.safetensors") for k, v in folders.items()}
    assert set(tuned[None]) == set(tuned[""]), "names as without it"
    name = next(k for k in tuned[""] if "attn1.to_q" in k)
    assert (tuned[""][name] - tuned[None][name]).abs().max() > 0.01
    renamed = file.rename(tmp_path / "renamed.safetensors")
    again = call(*arguments, "--lora", renamed)
    assert again.table["run"] == folders[""], "a LoRA is known by its content"
    edit = call("edit", TARGET, "--run", folders[":0.5"], "--steps", 1, "--dry-run")
    assert edit.code == 4 and "style.safetensors" in edit.err, "the file that the run was tuned with is gone"


def test_a_run_keeps_its_lora(stable_diffusion, clip, lora, tmp_path):
    made = call(
        "run", clip, TARGET, "--model", stable_diffusion, "--prompt", PROMPT, "--frames", 2, "--stride", 1,
        *SMALL, "--steps", 1, "--lora", f"{lora()}:0.5",
        "--runs", tmp_path / "runs", "--json",
    )  # fmt: skip
    assert made.code == 0, made.err
    assert "style.safetensors:0.5" in call("show", made.table["edits"][0]["video"]).out
    plan = call("edit", "a cat", "--run", made.table["run"], "--dry-run")
    assert plan.code == 0, plan.err
    refused = call("edit", "a cat", "--run", made.table["run"], "--set", "lora=[]", "--dry-run")
    assert refused.code == 2 and "tune again" in refused.err


def spoiled(products):
    good = in_diffusers_format(products)
    wide = {k: torch.zeros(RANK, 2048) if "attn2.to_k.lora_A" in k else v for k, v in good.items()}
    return {
        "another kind": (wide, ("does not fit", "Stable Diffusion XL")),
        "another layer": (
            good | {f"unet.up_blocks.9.to_q.lora_{x}.weight": torch.zeros(2, 2) for x in "AB"},
            ("up_blocks.9.to_q is not in the model",),
        ),
        "LoHa": ({"lora_unet_x.hada_w1_a": torch.zeros(2, 2)}, ("a LoHa, not a LoRA",)),
        "a checkpoint": (
            {"model.diffusion_model.out.weight": torch.zeros(2, 2)}, ("whole checkpoint", "--model"),
        ),
        "differences": (good | {"lora_unet_x.diff_b": torch.zeros(2)}, ("a file of whole differences",)),
        "LyCORIS": (
            {f"lycoris_unet_x.lora_{x}.weight": torch.zeros(2, 2) for x in ("down", "up")},
            ("of LyCORIS's own format",),
        ),
        "nothing": ({}, ("not a LoRA",)),
        "LoKr": ({"lora_unet_x.lokr_w1": torch.zeros(2, 2)}, ("a LoKr, not a LoRA",)),
        "DoRA": (good | {"unet.x.lora_magnitude_vector": torch.zeros(2)}, ("a DoRA",)),
        "three factors": (good | {"lora_unet_x.lora_mid.weight": torch.zeros(2, 2, 3, 3)}, ("a LoCon",)),
        "GLoRA": ({"lora_unet_x.a1.weight": torch.zeros(2, 2)}, ("a GLoRA",)),
        "IA3": ({"lora_unet_x.on_input": torch.zeros(1)}, ("an (IA)³",)),
        "with embeddings": (good | {"bundle_emb.x.string_to_param.*": torch.zeros(2, 2)}, ("embeddings",)),
        "Flux": (
            {f"transformer.blocks.0.attn.to_q.lora_{x}.weight": torch.zeros(2, 2) for x in "AB"},
            ("not a LoRA for Stable Diffusion",),
        ),
        "integers": ({k: v.to(torch.int16) for k, v in good.items()}, ("int16",)),
        "quantised": ({k: v.to(torch.int8) for k, v in good.items()}, ("quantised",)),
        "ranks that disagree": (
            good | {k: torch.zeros(3, *v.shape[1:]) for k, v in good.items() if "to_q.lora_A" in k},
            ("matrices of (3, ",),
        ),
        "rank 0": (
            {k: v[:0] if "lora_A" in k else v[:, :0] for k, v in good.items()}, ("matrices of (0, ",),
        ),
        "half a pair": (
            {k: v for k, v in good.items() if not k.endswith("to_q.lora_A.weight")},
            ("not pairs of matrices",),
        ),
        "NaN": (good | {"unet.x.lora_A.weight": torch.tensor([float("nan")])}, ("NaN or infinity",)),
    }  # fmt: skip


@pytest.mark.parametrize(
    "case",
    [
        "another kind", "another layer", "LoHa", "LoKr", "DoRA", "three factors", "GLoRA", "IA3",
        "with embeddings", "Flux", "integers", "quantised", "ranks that disagree", "rank 0", "half a pair",
        "a checkpoint", "differences", "LyCORIS", "nothing", "NaN",
    ],
)  # fmt: skip
def test_a_file_that_does_not_fit_is_refused_by_the_dry_run(
    case, stable_diffusion, products, clip, tmp_path, no_weights
):
    tensors, said = spoiled(products)[case]
    save_file(tensors, tmp_path / "bad.safetensors")
    answer = call(
        "tune", clip, "--model", stable_diffusion, "--prompt", PROMPT, "--frames", 2, "--stride", 1,
        "--lora", tmp_path / "bad.safetensors", "--runs", tmp_path / "runs", "--dry-run",
    )  # fmt: skip
    lines = answer.err.strip().splitlines()
    assert answer.code == 4 and [line.split(":")[0] for line in lines] == ["error", "hint"], answer.err
    assert all(text in answer.err for text in said), answer.err


@pytest.mark.parametrize(
    ("said", "code", "wanted"),
    [
        ("gone.safetensors", 4, "gone.safetensors"),
        ("style.ckpt", 4, "pickled"),
        ("style.safetensors:nan", 2, "scale"),
        ("nobody/none", 4, "nobody/none"),
        ("several", 4, "several safetensors files"),
        ("text.safetensors", 4, "safetensors file"),
    ],
)
def test_a_wrong_name_is_an_error_with_a_hint(
    said, code, wanted, stable_diffusion, lora, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    lora()
    (tmp_path / "several").mkdir()
    for name in ("a.safetensors", "b.safetensors"):
        (tmp_path / "several" / name).write_bytes(b"")
    (tmp_path / "text.safetensors").write_text("no tensors")
    answer = call(
        "t2i", PROMPT, "--model", stable_diffusion, *IMAGE, "--lora", said, "-o", "x.png", "--dry-run"
    )
    assert answer.code == code and wanted in answer.err, answer.err
    assert answer.err.count("error:") == answer.err.count("hint:") == 1 and "Traceback" not in answer.err


def test_the_option_is_a_setting(stable_diffusion, lora, tmp_path):
    (tmp_path / "settings.toml").write_text(f"lora = {json.dumps([f'{lora()}:0.5'])}")
    by_file, _ = picture(stable_diffusion, tmp_path, "--config", tmp_path / "settings.toml")
    by_flag, _ = picture(stable_diffusion, tmp_path, "--lora", f"{lora()}:0.5", name="flag.png")
    assert torch.equal(by_file, by_flag)
