"""Every command that fetches, on a served hub: what it needs, what goes wrong, and later use offline."""

import errno
import shutil

import pytest
from asking import call
from hub_server import files_of
from listings import CLIP, SD14, needed

from ctxedit.models import transfer

SMALL = ("--dtype", "float32", "--device", "cpu")
MODEL = ("--model", "sd14", *SMALL)
COMMANDS = ["run", "tune", "caption", "t2i", "eval", "batch", "bench", "lora", "embedding", "controlnet"]


@pytest.fixture()
def served(hub, sd14_files, clip_files, controlnet, monkeypatch):
    from ctxedit.models.hub import SAFE_REVISIONS
    from ctxedit.stages.caption import BLIP2

    hub.add(SD14, sd14_files)
    monkeypatch.setitem(SAFE_REVISIONS, CLIP, hub.add(CLIP, clip_files).commit)
    hub.add(BLIP2, clip_files)
    hub.add("artist/style", {"pytorch_lora_weights.safetensors": b"x" * 5000})
    hub.add("artist/canny", files_of(controlnet))
    hub.add("artist/word", {"learned_embeds.safetensors": b"x" * 5000})
    return hub


@pytest.fixture()
def ask(clip, tmp_path):
    """A command, what it fetches first, and the weights file of that."""
    from ctxedit.stages.caption import BLIP2

    (tmp_path / "list.toml").write_text(
        f'[[clips]]\nname = "one"\npath = "{clip}"\nprompt = "a dog"\n[[clips.targets]]\nprompt = "a cat"\n'
    )
    few = ("clip.frames=2", "clip.stride=1", "clip.size=32", "invert.steps=1", "edit.steps=1")
    settings = [word for one in (*few, "clip_model=builtin") for word in ("--set", one)]
    edits = ("--prompt", "a dog", *MODEL, *settings, "--runs", tmp_path / "runs")
    image = ("t2i", "a cat", *MODEL, "--steps", 1, "--size", 32, "-o", tmp_path / "cat.png")
    control = ("--set", "control.kind=canny", "--set", "control.model=artist/canny")
    many = (tmp_path / "list.toml", *MODEL, *settings, "-o", tmp_path / "out")
    asked = {
        "run": ("run", clip, "a cat", "--preset", "ddim", *edits),
        "tune": ("tune", clip, "--preset", "ddim", *edits),
        "edit": ("edit", "a cat", "--runs", tmp_path / "runs"),
        "caption": ("caption", clip, "--captioner", BLIP2, "--frames", 2, "--stride", 1),
        "t2i": image,
        "eval": ("eval", "--video", clip, "--prompt", "a cat", "--clip-model", CLIP),
        "batch": ("batch", *many, "--preset", "ddim"),
        "bench": ("bench", *many, "--presets", "ddim"),
        "lora": (*image, "--lora", "artist/style"),
        "controlnet": ("run", clip, "a cat", "--preset", "ddim", *edits, *control),
        "embedding": (*image, "--embedding", "artist/word"),
    }
    big = {"caption": (BLIP2, "model.safetensors"), "eval": (CLIP, "model.safetensors")}
    big["lora"] = ("artist/style", "pytorch_lora_weights.safetensors")
    big["controlnet"] = ("artist/canny", "diffusion_pytorch_model.safetensors")
    big["embedding"] = ("artist/word", "learned_embeds.safetensors")
    unet = (SD14, "unet/diffusion_pytorch_model.safetensors")

    def run(name, *more):
        return call(*asked[name], *more)

    run.fetches = lambda name: big.get(name, unet)
    return run


def refused(answer, code, text):
    lines = [line for line in answer.err.splitlines() if line.startswith(("error: ", "hint: "))]
    assert answer.code == code and len(lines) == 2 and text in lines[0], answer.err


@pytest.mark.parametrize("name", COMMANDS)
def test_whatever_fails_is_one_error_and_no_output(served, ask, name, monkeypatch, tmp_path):
    """Each failure in turn, with what the one before it left; nothing but the cache is written."""
    hub_id, file = ask.fetches(name)
    repository = served.repositories.pop(hub_id)
    refused(ask(name), 4, f"there is no {hub_id}")
    served.repositories[hub_id] = repository
    repository.gated = True
    refused(ask(name), 4, "is gated")
    repository.gated = False
    served.break_after[file] = [1000] + [0] * 20
    refused(ask(name), 4, "connection broke")
    served.break_after.clear()

    def full(*args):
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(transfer, "_request", full)
        refused(ask(name), 6, "disk is full")
    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        refused(ask(name), 4, "not wholly in the cache, and ctxedit is offline")
    repository.spoiled.add(file)
    refused(ask(name), 4, "its hash is not the hub's")
    assert not (tmp_path / "cat.png").exists() and not list(tmp_path.glob("runs/*/*.mp4"))


@pytest.mark.parametrize("name", ["edit", "eval", "batch", "bench"])
def test_first_use_fetches_what_is_needed_and_the_second_nothing(
    served, ask, name, sd14_files, clip_files, tmp_path
):
    if name == "edit":  # of a run whose model is no longer in the cache
        assert (tuned := ask("tune")).code == 0, tuned.err
        shutil.rmtree(tmp_path / "cache")
        served.sent.clear()
    assert (first := ask(name)).code == 0, first.err
    wanted = {f"{SD14}/{file}" for file in needed(sd14_files)}
    if name == "eval":
        wanted = {f"{CLIP}/{n}" for n in clip_files if not n.endswith((".bin", ".msgpack", ".h5"))}
    assert set(served.sent) == wanted
    served.requests.clear()
    assert (second := ask(name, "--offline")).code == 0, second.err
    assert not served.requests
