"""``--low-memory``: what it stands for, that it changes no edit, and that the plan knows it."""

import pytest
import torch
from asking import call
from safetensors.torch import load_file

PROMPT, TARGET = "a tiger walking on the beach", "a (panda:2) walking on the beach"
FEW = ("--frames", 2, "--stride", 1, "--size", 32, "--steps", 4, "--set", "clip_model=builtin")


@pytest.fixture(autouse=True)
def no_precision_is_named(plain_environment, monkeypatch):
    """The suite names one, which wins over what --low-memory would take."""
    monkeypatch.delenv("CTXEDIT_DTYPE")


@pytest.fixture()
def arguments(stable_diffusion, clip, tmp_path):
    return (clip, "--model", stable_diffusion, "--prompt", PROMPT, *FEW, "--runs", tmp_path / "runs")


def frames_of(answer, tmp_path):
    assert answer.code == 0, answer.err
    (file,) = (tmp_path / "runs").glob(f"{answer.table['run'].split('/')[-1]}/edits/*.safetensors")
    return load_file(file)["frames"].int()


@pytest.mark.parametrize("blend", ["none", "self", "latent"])
def test_the_edit_is_the_same_in_the_same_precision(arguments, tmp_path, monkeypatch, blend):
    from ctxedit.models.backbones import Backbone

    seen = []
    predict = Backbone.predict_x0

    def spy(self, x, timestep, condition, alpha, sigma, view):
        seen.append(view.branches)
        return predict(self, x, timestep, condition, alpha, sigma, view)

    monkeypatch.setattr(Backbone, "predict_x0", spy)
    more = ("--preset", "ddim", "--set", f"fusion.blend={blend}", "--set", "fusion.mask_resolution=0.5",
            "--set", "fusion.cross_replace_steps=0.5", "--dtype", "float32", "--json")  # fmt: skip
    plain = call("run", *arguments, TARGET, *more)
    assert max(seen) == 3
    seen.clear()
    low = call("run", *arguments, TARGET, *more, "--low-memory", "--runs", tmp_path / "low" / "runs")
    assert max(seen) == 2 and seen.count(1) >= 4, "the unconditional branch by itself"
    assert (frames_of(plain, tmp_path) - frames_of(low, tmp_path / "low")).abs().max() <= 1


def test_it_tunes_in_half_precision_with_checkpointing_and_offload(arguments, monkeypatch):
    import ctxedit.stages.tune as tuning

    seen = {}
    loss = tuning._loss

    def spy(backbone, *more):
        seen["dtypes"] = {p.dtype for p in backbone.unet.parameters()}
        seen["checkpointing"] = backbone.unet.is_gradient_checkpointing
        seen["at once"] = backbone.at_once
        seen["others wait"] = backbone.offload
        return loss(backbone, *more)

    monkeypatch.setattr(tuning, "_loss", spy)
    trained = ("--preset", "tune-a-video", "--tune-steps", 2, "--json")
    off = ("--set", "tune.gradient_checkpointing=false")
    low = call("run", *arguments, "a panda", *trained, *off, "--low-memory")
    assert low.code == 0, low.err
    assert seen == {"dtypes": {torch.bfloat16}, "checkpointing": True, "at once": 1, "others wait": True}
    again = call("edit", "a cat", "--run", low.table["run"], "--dry-run", "--json").table["plan"]
    assert again["dtype"] == "bfloat16" and again["stages"][0]["reused"]


def test_a_run_may_be_edited_with_less_memory_than_it_was_tuned_with(arguments):
    made = call("tune", *(a for a in arguments if a not in ("--steps", 4)), "--tune-steps", 1,
                "--preset", "tune-a-video", "--json")  # fmt: skip
    assert made.code == 0, made.err
    plan = call("edit", "a cat", "--run", made.table["run"], "--low-memory", "--dry-run", "--json").table[
        "plan"
    ]
    assert plan["stages"][0]["reused"] and plan["dtype"] == "float32"


def test_the_plan_says_what_it_saves(arguments, monkeypatch):
    def peaks(*more):
        answer = call("run", *arguments, "a panda", "--preset", "tune-a-video", "--dry-run", "--json", *more)
        assert answer.code == 0, answer.err
        return {s["name"].split()[0]: s["peak_bytes"] for s in answer.table["plan"]["stages"]}

    plain, low, explicit = peaks(), peaks("--low-memory"), peaks("--low-memory", "--dtype", "float32")
    assert all(low[stage] < plain[stage] for stage in ("tune", "invert", "edit"))
    assert low["edit"] < explicit["edit"] < plain["edit"]


@pytest.mark.parametrize("offload", [True, False])
def test_what_waits_in_main_memory_does_not_count_on_a_gpu(stable_diffusion, offload):
    from ctxedit import config
    from ctxedit.editing.costs import Costs
    from ctxedit.media.geometry import plan_fit
    from ctxedit.models.backbones import family_of
    from ctxedit.models.weights import locate

    checkpoint = locate(str(stable_diffusion))
    body = family_of(checkpoint).sizes(checkpoint)
    settings = config.load("ddim", flags={"offload": offload, "model": str(stable_diffusion)}, environ={})
    fit = plan_fit(64, 64, 64, body.multiple)
    on_cpu, on_gpu = (
        Costs(settings, True, None, body, fit, torch.float32, device=name).inverting(False)
        for name in ("cpu", "cuda")
    )
    waiting = (body.vae.parameters + body.text_encoder.parameters) * 4
    assert on_cpu - on_gpu == (waiting if offload else 0)
