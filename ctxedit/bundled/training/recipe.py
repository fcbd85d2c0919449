"""Recipes: TOML files that name a part, its task's settings and its schedule."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import nn

from ctxedit.bundled.training.loop import Schedule, Task, train
from ctxedit.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RECIPES = Path(__file__).parent / "recipes"
#: The order in which each part finds what it needs of the others.
ORDER = ("autoencoder", "clip", "captioner", "denoiser", "judge")
#: Folders in diffusers' layout.
FOLDERS = {
    "autoencoder": "vae",
    "clip": "clip",
    "captioner": "captioner",
    "denoiser": "unet",
    "judge": "judge",
}


@dataclass(frozen=True)
class Recipe:
    """One part's training: ``part`` names the task, ``task`` its settings, ``schedule`` the loop's."""

    part: str
    task: dict[str, Any]
    schedule: Schedule


def load(path: Path) -> Recipe:
    """Read a recipe; raises :class:`ConfigError` for what does not fit."""
    try:
        blob = tomllib.loads(path.read_text())
        return Recipe(blob["part"], blob["task"], Schedule(**blob["schedule"]))
    except FileNotFoundError as error:
        raise ConfigError(f"no recipe {path}", f"the built-in ones are: {', '.join(ORDER)}") from error
    except (tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise ConfigError(f"recipe {path}: {error}") from error


def make_task(recipe: Recipe, weights: Path) -> Task:
    """Build the part's task; ``weights`` is the folder of the parts that were trained before it."""
    if recipe.part == "autoencoder":
        from ctxedit.bundled.training.autoencoder import AutoencoderTask

        return AutoencoderTask(**recipe.task)
    if recipe.part == "clip":
        from ctxedit.bundled.training import tokenizer
        from ctxedit.bundled.training.clip import ClipTask

        tokenizer.build(weights / "clip")
        return ClipTask(weights / "clip", **recipe.task)
    if recipe.part == "captioner":
        from ctxedit.bundled.training.captioner import CaptionerTask

        return CaptionerTask(weights / "clip", **recipe.task)
    if recipe.part == "denoiser":
        from ctxedit.bundled.training.denoiser import DenoiserTask, freeze_text_encoder

        freeze_text_encoder(weights / "clip", weights)
        return DenoiserTask(weights / "vae", weights / "text_encoder", weights / "tokenizer", **recipe.task)
    if recipe.part == "judge":
        from ctxedit.bundled.training.judge import JudgeTask

        return JudgeTask(**recipe.task)
    raise ConfigError(f"recipe: no part named {recipe.part!r}", f"parts are: {', '.join(ORDER)}")


def warm_start(model: nn.Module, folder: Path) -> None:
    """Put trained weights into a fresh model; raises ConfigError when they are not of its shape."""
    tensors = {
        k: v.float() for file in sorted(folder.glob("*.safetensors")) for k, v in load_file(file).items()
    }
    try:
        missing, unknown = model.load_state_dict(tensors, strict=False)
    except RuntimeError as error:
        raise ConfigError(f"{folder} does not fit the recipe", "train anew, without --warm") from error
    # Weights that are tied are saved once: what is missing must be another name of what is there.
    known = {p.data_ptr() for name, p in model.named_parameters() if name in tensors}
    if unknown or any(
        p.data_ptr() not in known for n, p in model.named_parameters(remove_duplicate=False) if n in missing
    ):
        raise ConfigError(f"{folder} does not fit the recipe", "train anew, without --warm")


def run(
    recipe: Recipe,
    state: Path,
    weights: Path,
    report: Callable[[dict[str, float]], None],
    warm: bool = False,
) -> None:
    """Train one part into ``weights/<part>``, resumable from ``state/<part>``.

    The task is built from the recipe's seed, so that its first weights are part of the recipe; with ``warm``,
    and no state to resume, it starts from what lies in ``weights`` already.
    """
    import torch

    torch.manual_seed(recipe.schedule.seed)
    task = make_task(recipe, weights)
    if warm and not (state / recipe.part / "state.pt").exists():
        warm_start(task.model, weights / FOLDERS[recipe.part])
    train(task, recipe.schedule, state / recipe.part, weights / FOLDERS[recipe.part], report=report)
