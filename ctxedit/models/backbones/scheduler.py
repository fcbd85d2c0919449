"""The noise levels of a checkpoint's discrete diffusion scheduler, and which schedulers are known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ctxedit.diffusion import schedule
from ctxedit.errors import WeightsError
from ctxedit.models.sizes import read_json
from ctxedit.models.weights import Checkpoint

#: diffusers' names of beta schedules, and ours.
_BETAS = {"scaled_linear": "scaled_linear", "linear": "linear", "squaredcos_cap_v2": "cosine"}
#: diffusers' own, of what a config leaves out.
_DEFAULTS = {
    "num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear",
    "trained_betas": None, "rescale_betas_zero_snr": False,
}  # fmt: skip
_MOST_LEVELS = 100_000
_PREDICTIONS = ("epsilon", "v_prediction", "sample")
#: Schedulers of the discrete, variance-preserving diffusion: their configs hold the levels it was trained at.
_SCHEDULERS = (
    "DDIMParallelScheduler", "DDIMScheduler", "DDPMParallelScheduler", "DDPMScheduler",
    "DEISMultistepScheduler", "DPMSolverMultistepScheduler", "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler", "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler",
    "HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler", "PNDMScheduler", "SASolverScheduler", "UniPCMultistepScheduler",
)  # fmt: skip


def check_scheduler(checkpoint: Checkpoint) -> None:
    """Raise WeightsError for a scheduler whose noise levels or predictions are not known here."""
    config = read_json(checkpoint.settings / "scheduler" / "scheduler_config.json")
    named, kind = str(config.get("_class_name")), config.get("prediction_type", "epsilon")
    refused = None
    if named.startswith("FlowMatch") or kind == "flow_prediction" or config.get("use_flow_sigmas"):
        refused = f"its scheduler, {named}, is for flow matching, which this family does not use"
    elif named not in _SCHEDULERS:
        refused = f"its scheduler, {named}, is not one whose noise levels are known"
    elif kind not in _PREDICTIONS:
        refused = f"its network predicts {kind!r}, which is not one of {', '.join(_PREDICTIONS)}"
    elif config.get("beta_schedule", "linear") not in _BETAS and config.get("trained_betas") is None:
        refused = f"its beta schedule {config.get('beta_schedule')!r} is not one of {', '.join(_BETAS)}"
    elif config.get("timestep_spacing", "leading") not in ("leading", "trailing", "linspace"):
        refused = f"its timestep spacing {config.get('timestep_spacing')!r} is not known"
    elif (
        kind == "epsilon"
        and config.get("rescale_betas_zero_snr")
        and config.get("timestep_spacing", "leading") != "leading"
    ):
        # At zero signal the noise does not determine x_0; such a model needs a velocity or sample head.
        refused = "it predicts noise but starts at zero signal, where noise determines no image"
    else:
        refused = _broken_levels(config)
    if refused:
        where = (
            f"see {checkpoint.path}/scheduler/scheduler_config.json"
            if checkpoint.form == "folder"
            else f"if it predicts a velocity, put {checkpoint.path.with_suffix('.yaml').name} with the line "
            "`parameterization: v` beside it"
        )
        raise WeightsError(f"{checkpoint.name}: {refused}", where)


def _broken_levels(config: Mapping[str, Any]) -> str | None:
    """What is wrong with the numbers of a scheduler's config; None for nothing."""
    steps, offset = config.get("num_train_timesteps", 1000), config.get("steps_offset", 0)
    if not isinstance(steps, int) or not 2 <= steps <= _MOST_LEVELS:
        return f"its scheduler has {steps!r} noise levels (num_train_timesteps)"
    if not isinstance(offset, int) or not 0 <= offset < steps:
        return f"its scheduler's steps_offset is {offset!r}"
    try:
        levels = alphas_cumprod({**_DEFAULTS, **config})
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return "its scheduler's betas are not numbers between 0 and 1"
    if levels.shape != (steps,):
        return f"its scheduler has {len(levels)} trained_betas for {steps} noise levels"
    falling = bool(torch.isfinite(levels).all()) and bool((levels.diff() <= 0).all())
    if not falling or not 0 <= float(levels[-1]) < float(levels[0]) <= 1:
        return "its scheduler's betas are not numbers between 0 and 1"
    return None


def alphas_cumprod(config: Mapping[str, Any]) -> Tensor:
    """(T,) float64 of a diffusers scheduler's config."""
    if config.get("trained_betas") is not None:
        return torch.cumprod(1 - torch.tensor(config["trained_betas"], dtype=torch.float64), 0)
    if config["beta_schedule"] not in _BETAS:
        raise WeightsError(f"unknown beta schedule {config['beta_schedule']!r}")
    return schedule.alphas_cumprod(
        config["num_train_timesteps"],
        config["beta_start"],
        config["beta_end"],
        _BETAS[config["beta_schedule"]],  # type: ignore[arg-type]
        bool(config["rescale_betas_zero_snr"]),
    )
