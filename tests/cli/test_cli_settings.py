"""Where settings come from, presets, models, env."""

import json
from pathlib import Path

import pytest

from ctxedit import config, tables
from ctxedit.cli import arguments
from ctxedit.errors import ConfigError


def plan(ctxedit, clip, runs, *more):
    answer = ctxedit("run", clip, "--target", "a cat", "--runs", runs, "--dry-run", "--json", "-q", *more)
    assert answer.code == 0, answer.err
    return answer.table["plan"]


def test_flag_over_variable_over_file_over_preset(ctxedit, clip, tmp_path, monkeypatch):
    file = tmp_path / "mine.toml"
    file.write_text("seed = 3\n[clip]\nframes = 3\nstride = 1\n")
    base = ("--set", "clip.stride=1", "--set", "clip.frames=8")
    assert plan(ctxedit, clip, tmp_path, *base)["seed"] == 0
    assert plan(ctxedit, clip, tmp_path, "--config", file)["frames"] == 3
    monkeypatch.setenv("CTXEDIT_CLIP_FRAMES", "5")
    found = plan(ctxedit, clip, tmp_path, "--config", file)
    assert (found["frames"], found["seed"]) == (5, 3)
    assert plan(ctxedit, clip, tmp_path, "--config", file, "--frames", 6)["frames"] == 6


def test_the_preset_may_come_from_a_variable_and_a_flag_is_stronger(ctxedit, clip, tmp_path, monkeypatch):
    def tuned(*more):
        stages = plan(ctxedit, clip, tmp_path, "--frames", 4, "--stride", 1, *more)["stages"]
        return next(s["evaluations"] for s in stages if s["name"] == "tune")

    monkeypatch.setenv("CTXEDIT_PRESET", "fatezero")
    assert tuned() == 0
    assert tuned("--preset", "contextdiff") == config.load("contextdiff", environ={}).tune.steps


def test_steps_sets_inversion_and_sampling(ctxedit, clip, tmp_path):
    found = plan(ctxedit, clip, tmp_path, "--frames", 4, "--stride", 1, "--steps", 6)
    counts = {s["name"].split()[0]: s["evaluations"] for s in found["stages"]}
    assert counts["invert"] == 6
    assert counts["edit"] == 6 * 2 + 3, "guidance twice, the source beside it in the first half"
    found = plan(
        ctxedit, clip, tmp_path, "--frames", 4, "--stride", 1, "--steps", 6, "--set", "fusion.blend=latent"
    )
    counts = {s["name"].split()[0]: s["evaluations"] for s in found["stages"]}
    assert counts["edit"] == 6 * 2 + 6, "guidance twice, the source beside it: it blends"
    answer = ctxedit("run", clip, "--target", "x", "--set", "edit.steps=7", "--dry-run", "--frames", 4)
    assert answer.code == 2 and "invert.steps" in answer.err


def test_a_misspelt_variable_is_said(ctxedit, clip, tmp_path, monkeypatch):
    monkeypatch.setenv("CTXEDIT_EDIT_GUIDENCE", "5")
    answer = ctxedit("run", clip, "--target", "a cat", "--frames", 4, "--stride", 1, "--dry-run")
    assert "CTXEDIT_EDIT_GUIDENCE is not a setting; did you mean CTXEDIT_EDIT_GUIDANCE?" in answer.err


@pytest.mark.parametrize(
    ("text", "table"),
    [
        ("seed=3", {"seed": 3}),
        ("edit.guidance = 5.5", {"edit": {"guidance": 5.5}}),
        ("edit.start=noise", {"edit": {"start": "noise"}}),
        ("fusion.word_weights.watercolor=10", {"fusion": {"word_weights": {"watercolor": 10}}}),
        ('fusion.word_weights."pixel art"=2.0', {"fusion": {"word_weights": {"pixel art": 2.0}}}),
        (
            'tune.trainable_modules=["attn1", "adapter"]',
            {"tune": {"trainable_modules": ["attn1", "adapter"]}},
        ),
        ("edit.negative_prompt=a=b", {"edit": {"negative_prompt": "a=b"}}),
        ("model=C:\\models\\sd", {"model": "C:\\models\\sd"}),
    ],
)
def test_set_takes_toml_values_and_bare_words(text, table):
    assert arguments.assignment(text) == table


@pytest.mark.parametrize("text", ["seed", "=3", "a b=3"])
def test_set_refuses_what_is_no_assignment(text):
    with pytest.raises(ConfigError, match="--set"):
        arguments.assignment(text)


def test_presets_ls_names_all_and_says_what_they_are(ctxedit):
    answer = ctxedit("presets", "ls")
    assert answer.code == 0 and answer.err == ""
    assert [line.split()[0] for line in answer.out.splitlines()] == config.preset_names()
    rows = ctxedit("presets", "ls", "--json").table["presets"]
    assert [row["name"] for row in rows] == config.preset_names() and all(row["about"] for row in rows)


def test_presets_show_prints_the_file(ctxedit):
    answer = ctxedit("presets", "show", "contextdiff")
    assert tables.parse(answer.out) == tables.read_table(config.preset_path("contextdiff"))
    assert ctxedit("presets", "show", "contextdiff", "--json").table["table"]["edit"]["guidance"] == 7.5


def test_presets_cp_copies_and_does_not_overwrite(ctxedit, tmp_path, monkeypatch, clip):
    monkeypatch.chdir(tmp_path)
    answer = ctxedit("presets", "cp", "fatezero")
    copy = tmp_path / "fatezero.toml"
    assert answer.out == "fatezero.toml\n"
    assert copy.read_bytes() == config.preset_path("fatezero").read_bytes()
    copy.write_text(copy.read_text() + "\n[builtin.tune]\nsteps = 1\n")
    answer = ctxedit("presets", "cp", "fatezero")
    assert answer.code == 6 and "steps = 1" in copy.read_text()
    found = plan(ctxedit, clip, tmp_path, "--preset", copy, "--frames", 4, "--stride", 1)
    assert next(s for s in found["stages"] if s["name"] == "tune")["evaluations"] == 1
    assert ctxedit("presets", "cp", "fatezero", "-y").code == 0 and "steps = 1" not in copy.read_text()
    (tmp_path / "folder").mkdir()
    assert ctxedit("presets", "cp", "fatezero", "folder").out == "folder/fatezero.toml\n"


def test_models_ls_says_parts_and_words(ctxedit):
    import torch

    from ctxedit.models.backbones import load_backbone

    answer = ctxedit("models", "ls", "--json")
    parts = {p["part"]: p for p in answer.table["builtin"]}
    backbone = load_backbone("builtin", torch.device("cpu"), torch.float32)
    assert parts["unet"]["parameters"] == sum(p.numel() for p in backbone.unet.parameters())
    assert parts["vae"]["parameters"] == sum(p.numel() for p in backbone.vae.parameters())
    assert parts["unet"]["licence"] == "Apache-2.0" and parts["clip"]["bytes"] > 1e6
    assert "panda" in answer.table["knows"]["objects"] and "snow" in answer.table["knows"]["backgrounds"]
    text = ctxedit("models", "ls").out
    assert "watercolor" in text and "purple" in text and "stable-diffusion-v1-5" in text


def test_models_ls_lists_the_cache(ctxedit, tmp_path, monkeypatch):
    from huggingface_hub import constants

    snapshot = tmp_path / "models--some--thing" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "model_index.json").write_text("{}")
    monkeypatch.setattr("huggingface_hub.utils._cache_manager.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert [c["id"] for c in ctxedit("models", "ls", "--json").table["cached"]] == ["some/thing"]


def test_env_has_what_a_bug_report_needs(ctxedit, monkeypatch):
    monkeypatch.setenv("CTXEDIT_SEED", "7")
    table = ctxedit("env", "--json").table
    assert {"python", "torch", "diffusers", "transformers", "ctxedit"} <= set(table["versions"])
    assert table["memory"]["total"] > 0 and table["variables"]["CTXEDIT_SEED"] == "7"
    assert {"decord", "av", "xformers", "lavis", "torch_fidelity", "lpips"} == set(table["present"])
    assert "ffmpeg" in table["ffmpeg"] and table["devices"][-1]["device"] == "cpu"
    text = ctxedit("env").out
    assert "variables.CTXEDIT_SEED: 7" in text and "versions.torch: " in text


def test_json_never_holds_infinity():
    from ctxedit.cli.output import to_json

    text = to_json({"psnr": float("inf"), "none": None, "nan": float("nan"), "path": [Path("a")]})
    assert json.loads(text) == {"psnr": "inf", "none": None, "nan": None, "path": ["a"]}
