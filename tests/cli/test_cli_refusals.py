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
    "image prompts": ({UNET: {"encoder_hid_dim_type": "ip_image_proj"}}, "encoder_hid_dim_type"),
    "a video network": ({UNET: {"_class_name": "UNet3DConditionModel"}}, "UNet3DConditionModel"),
    "a variance as well": ({UNET: {"out_channels": 8}}, "the UNet gives 8 channels"),
    "one noise level": ({SCHEDULER: {"num_train_timesteps": 1}}, "has 1 noise levels"),
    "noise levels in words": ({SCHEDULER: {"num_train_timesteps": "many"}}, "has 'many' noise levels"),
    "few betas": ({SCHEDULER: {"trained_betas": [0.1, 0.2]}}, "2 trained_betas for 1000"),
    "a beta above 1": ({SCHEDULER: {"beta_end": 1.5}}, "betas are not numbers between 0 and 1"),
    "a negative beta": ({SCHEDULER: {"beta_start": -0.1}}, "betas are not numbers between 0 and 1"),
    "betas in words": ({SCHEDULER: {"beta_end": "x"}}, "betas are not numbers between 0 and 1"),
    "an offset in words": ({SCHEDULER: {"steps_offset": "x"}}, "steps_offset is 'x'"),
    "an offset beyond the end": ({SCHEDULER: {"steps_offset": 5000}}, "steps_offset is 5000"),
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


@pytest.mark.parametrize(
    "config",
    [
        {"_class_name": "SASolverScheduler"},
        {"num_train_timesteps": 500},
        {"trained_betas": [0.01] * 1000},
        {"prediction_type": "sample", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
    ],
)
def test_schedulers_that_are_not_refused(stable_diffusion, tmp_path, config):
    model = copy_with(stable_diffusion, tmp_path, {SCHEDULER: config})
    answer = call(
        "t2i", "a cat", "--model", model, "--steps", 2, "--size", 32, "--device", "cpu", "-o",
        tmp_path / "x.png",
    )  # fmt: skip
    assert answer.code == 0, answer.err
