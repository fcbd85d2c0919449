"""Checkpoints that are folders and files are known by what they hold, not by where they lie."""

import shutil

import pytest
from asking import TARGET
from safetensors.torch import load_file, save_file

from ctxedit import config
from ctxedit.bench.listing import Clip, Target
from ctxedit.bench.subject import Bench, Method
from ctxedit.models.weights import BUILTIN_FOLDER
from ctxedit.stages import caption as captioning

PROMPT = "a tiger walking on the beach"
SHORT = ("--frames", 2, "--stride", 1, "--set", "invert.steps=1", "--set", "edit.steps=1", "--tune-steps", 1)
#: Nothing is tuned, captioned or scored by a network that takes long to load.
PLAIN = ("--preset", "ddim", "--prompt", PROMPT, "--set", "clip_model=builtin")
#: A context adapter, in small.
ADAPTER = (
    "--set", "adapter.width=16", "--set", "adapter.blocks=1", "--set", "adapter.heads=2",
    "--set", "adapter.image=clip",
)  # fmt: skip


def trained_again(folder, name="*.safetensors"):
    """Other weights under the same names, of the same size."""
    file = next(folder.glob(name))
    tensors = {key: value.clone() for key, value in load_file(file).items()}
    key = max((k for k in tensors if tensors[k].is_floating_point()), key=lambda k: tensors[k].numel())
    tensors[key].mul_(1.01)
    save_file(tensors, file, {"format": "pt"})


@pytest.fixture()
def copied(tmp_path):
    def copy(folder, name):
        return shutil.copytree(folder, tmp_path / name)

    return copy


@pytest.fixture()
def reused(ctxedit, clip, tmp_path):
    """Which stages a run with these options would reuse."""

    def ask(*options):
        asked = ("run", clip, "--target", TARGET, "--runs", tmp_path / "runs", *SHORT, *options)
        answer = ctxedit(*asked, "--dry-run", "--json")
        assert answer.code == 0, answer.err
        return {stage["name"].split()[0]: stage["reused"] for stage in answer.table["plan"]["stages"]}

    return ask


@pytest.fixture()
def run(ctxedit, clip, tmp_path):
    def make(*options):
        answer = ctxedit(
            "run", clip, "--target", TARGET, "--runs", tmp_path / "runs", *SHORT, *options, "--json"
        )
        assert answer.code == 0, answer.err
        return answer.table

    return make


def test_a_model_folder(run, reused, copied, stable_diffusion):
    folder = copied(stable_diffusion, "mine")
    options = (*PLAIN, "--model")
    run(*options, folder)
    (folder / "unet" / "README.md").unlink(missing_ok=True)
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"a pickle, which is never read")
    (folder / "safety_checker").mkdir()
    moved = folder.rename(folder.with_name("moved"))
    assert all(v for k, v in reused(*options, moved).items() if k != "evaluate")
    trained_again(moved / "unet")
    found = reused(*options, moved)
    assert not found["invert"] and not found["edit"]


def test_a_checkpoint_of_a_training_and_the_pipeline_around_it(run, reused, copied, stable_diffusion):
    folder = copied(stable_diffusion, "trained")
    inside = folder / "checkpoint-5"
    shutil.copytree(folder / "unet", inside / "unet")
    trained_again(inside / "unet")
    options = (*PLAIN, "--model")
    run(*options, inside)
    trained_again(folder / "unet")
    assert reused(*options, inside)["invert"], "the pipeline's own UNet is not used"
    trained_again(folder / "vae")
    assert not reused(*options, inside)["invert"], "its autoencoder is"


def test_a_captioner_folder(ctxedit, clip, copied, stable_diffusion, monkeypatch, tmp_path):
    folder = copied(BUILTIN_FOLDER / "captioner", "blip")
    asked = []
    monkeypatch.setattr(captioning, "caption", lambda *args: asked.append(1) or PROMPT)
    asking = (
        "tune",
        clip,
        "--model",
        stable_diffusion,
        "--captioner",
        folder,
        "--runs",
        tmp_path / "runs",
        *SHORT,
    )
    for count in (1, 1):
        assert ctxedit(*asking).code == 0 and len(asked) == count
    trained_again(folder)
    assert ctxedit(*asking).code == 0 and len(asked) == 2, "captioned again"


def test_a_clip_folder_whose_image_tokens_the_adapter_reads(run, reused, copied, stable_diffusion):
    folder = copied(BUILTIN_FOLDER / "clip", "clip")
    options = (
        "--model", stable_diffusion, "--prompt", PROMPT, *ADAPTER, "--clip-model", folder
    )  # fmt: skip
    run(*options)
    assert reused(*options)["tune"]
    trained_again(folder)
    assert not reused(*options)["tune"]


def test_figures_of_two_clips_of_one_name_are_not_mixed(ctxedit, run, copied, stable_diffusion):
    folder = copied(BUILTIN_FOLDER / "clip", "clip")
    table = run("--preset", "ddim", "--model", stable_diffusion, "--prompt", PROMPT, "--clip-model", folder)
    asking = ("eval", "--run", table["run"], "--clip-model", folder, "--metrics", "psnr", "--json")
    assert "clip_text" in _metrics(table["run"])
    assert ctxedit(*asking).code == 0
    assert "clip_text" in _metrics(table["run"]), "of the same CLIP: kept"
    trained_again(folder)
    assert ctxedit(*asking).code == 0
    assert "clip_text" not in _metrics(table["run"]), "of another one"


def _metrics(run):
    import json
    from pathlib import Path

    return json.loads((Path(run) / "metrics.json").read_text())[0]


def test_a_controlnet_folder(run, reused, copied, stable_diffusion, controlnet):
    folder = copied(controlnet, "net")
    options = (
        "--preset", "controlvideo", "--model", stable_diffusion, "--set", f"control.model={folder}",
        "--prompt", PROMPT, "--set", "clip_model=builtin",
    )  # fmt: skip
    run(*options)
    assert reused(*options)["edit"]
    trained_again(folder)
    assert not reused(*options)["tune"]


def test_a_bench_knows_an_edit_by_what_its_checkpoints_hold(
    copied, tmp_path, clip, stable_diffusion, controlnet
):
    model, net = copied(stable_diffusion, "mine"), copied(controlnet, "net")
    scorer, captioner = (copied(BUILTIN_FOLDER / part, part) for part in ("clip", "captioner"))
    flags = {
        "model": str(model), "clip_model": str(scorer), "captioner": str(captioner),
        "control": {"kind": "canny", "model": str(net)},
    }  # fmt: skip
    target = Target(TARGET)
    method = Method("mine", "ddim", config.load("ddim", flags=flags, environ={}))
    clips = (Clip("tiger", clip, "", (target,)),)
    bench = Bench(tmp_path / "bench", clips, (method,))

    def key():
        return bench.key(clips[0], target, method.label, method.config)

    keys = [key()]
    assert key() == keys[0]
    for folder in (model / "unet", net, scorer, captioner):
        trained_again(folder)
        keys.append(key())
    assert len(set(keys)) == 5
