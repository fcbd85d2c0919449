"""Models that cannot be edited with are refused by the dry run: one sentence, exit 4, nothing loaded."""

import json

import pytest
from asking import TARGET, call


def copy_with(folder, place, changes):
    """The checkpoint with other values in some of its configs; the rest is linked."""
    for file in folder.rglob("*"):
        if file.is_dir():
            continue
        part = str(file.relative_to(folder))
        new = place / "model" / part
        new.parent.mkdir(parents=True, exist_ok=True)
        if part in changes:
            new.write_text(json.dumps(json.loads(file.read_text()) | changes[part]))
        else:
            new.symlink_to(file)
    return place / "model"


INDEX, UNET, SCHEDULER = "model_index.json", "unet/config.json", "scheduler/scheduler_config.json"
REFUSED = {
    "inpainting": ({UNET: {"in_channels": 9}}, "takes 9 channels"),
    "inpainting pipeline": ({INDEX: {"_class_name": "StableDiffusionInpaintPipeline"}}, "masked image"),
    "upscaler": ({INDEX: {"_class_name": "StableDiffusionUpscalePipeline"}}, "low-resolution image"),
    "upscaler by its UNet": ({UNET: {"class_embed_type": "timestep"}}, "class_embed_type"),
    "refiner": ({INDEX: {"_class_name": "StableDiffusionXLImg2ImgPipeline"}}, "refiner"),
    "flow transformer": ({INDEX: {"_class_name": "FluxPipeline"}}, "flow transformers"),
    "unknown pipeline": ({INDEX: {"_class_name": "NobodysPipeline"}}, "NobodysPipeline"),
    "unnamed pipeline": ({INDEX: {"_class_name": None}}, "None"),
    "flow scheduler": ({SCHEDULER: {"_class_name": "FlowMatchEulerDiscreteScheduler"}}, "flow matching"),
    "unknown scheduler": ({SCHEDULER: {"_class_name": "EDMEulerScheduler"}}, "EDMEulerScheduler"),
    "unknown prediction": ({SCHEDULER: {"prediction_type": "score"}}, "'score'"),
    "unknown betas": ({SCHEDULER: {"beta_schedule": "sigmoid"}}, "'sigmoid'"),
    "noise head at zero signal": (
        {SCHEDULER: {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}},
        "zero signal",
    ),
    "distilled": ({UNET: {"time_cond_proj_dim": 256}}, "time_cond_proj_dim"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_at_the_dry_run(case, stable_diffusion, clip, tmp_path, no_weights):
    changes, said = REFUSED[case]
    model = copy_with(stable_diffusion, tmp_path, changes)
    answer = call(
        "run", clip, "--model", model, "--preset", "ddim", "--prompt", "a cat", "--target", TARGET,
        "--frames", 2, "--stride", 1, "--runs", tmp_path / "runs", "--dry-run",
    )  # fmt: skip
    assert answer.code == 4, answer.err
    lines = answer.err.strip().splitlines()
    assert lines[0].startswith("error: ") and said in lines[0]
    assert len(lines) == 2 and lines[1].startswith("hint: ")
    assert not (tmp_path / "runs").exists()


def test_what_is_not_refused(stable_diffusion, clip, tmp_path, no_weights):
    """The copy alone is not why."""
    model = copy_with(stable_diffusion, tmp_path, {SCHEDULER: {"_class_name": "EulerDiscreteScheduler"}})
    answer = call(
        "run", clip, "--model", model, "--preset", "ddim", "--prompt", "a cat", "--target", TARGET,
        "--frames", 2, "--stride", 1, "--runs", tmp_path / "runs", "--dry-run",
        "--set", "clip_model=builtin",
    )  # fmt: skip
    assert answer.code == 0, answer.err
