"""Which recipes a name stands for, and what a new training may discard or replace."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctxedit.errors import ConfigError, InputError, OutputError
from ctxedit.training import recipe as recipes
from ctxedit.training import record
from ctxedit.training.job import Training
from ctxedit.training.recipe import Recipe
from ctxedit.training.tasks.base import Task

#: Stands for all built-in recipes, each after those that it depends on.
ALL = "all"


@dataclass(frozen=True)
class Request:
    """What the user wants to train.

    Attributes:
        name: a recipe's name or path, or ``all``.
        data: folder of images or tar shards, instead of the recipe's data.
        steps, precision: instead of the recipe's.
        passes: forward passes per step.
    """

    name: str
    data: Path | None = None
    steps: int | None = None
    precision: str | None = None
    passes: int = 1

    def recipes(self) -> list[Recipe]:
        """The recipes with these changes; tasks that need drawn scenes are left out of ``all`` with data.

        Raises:
            ConfigError: no such recipe, or several precisions on several processes.
            InputError: no such data.
        """
        chosen = [self.name]
        if self.name == ALL:
            chosen = [n for n in recipes.names() if recipes.resolve(n).part == n]
            if self.data is not None:
                chosen = [n for n in chosen if _trains_on(recipes.resolve(n).task_type, self.data)]
        changes = {"steps": self.steps, "precision": self.precision}
        schedule = {key: value for key, value in changes.items() if value is not None}
        found = []
        for recipe in map(recipes.resolve, chosen):
            data = _data_table(self.data, recipe.task_type)
            if data:  # only drawn scenes have them
                data["compositions"] = 0.0
            found.append(recipe.changed(schedule, data).in_passes(self.passes))
        if only := [r for r in found if r.task_type.drawn_only and r.data.source != "scenes"]:
            raise ConfigError(
                f"the {only[0].part} can only be trained on drawn scenes", "leave out --data for it"
            )
        if os.environ.get("WORLD_SIZE", "1") != "1" and len({r.schedule.precision for r in found}) > 1:
            # Accelerate keeps one precision for the lifetime of its processes.
            raise ConfigError(
                "the recipes use different precisions, which several processes cannot switch between",
                "set one with --precision",
            )
        return found


def _data_table(path: Path | None, task: type[Task]) -> dict[str, Any]:
    """The ``[data]`` table for a path given by the user, as the task reads it."""
    if path is None:
        return {}
    if path.suffix == ".json" and "coco" in task.reads:
        return {"source": "coco", "path": str(path)}
    shards = path.suffix == ".tar" or (path.is_dir() and any(path.glob("*.tar")))
    archive = path.is_file() and path.name.endswith((".tar.gz", ".tgz"))  # CIFAR-10's
    if not shards and not archive and not path.is_dir():
        raise InputError(f"no folder {path}", "--data takes a folder of images with captions, or tar shards")
    folder = "classes" if "classes" in task.reads else "folder"
    return {"source": "webdataset" if shards else folder, "path": str(path)}


def _trains_on(task: type[Task], path: Path) -> bool:
    return not task.drawn_only and _data_table(path, task)["source"] in task.reads


def restarts(training: Training, yes: bool, together: Sequence[Recipe]) -> bool:
    """Whether a training's state is to be discarded.

    With ``yes`` it is if it cannot be resumed. Without, only if the weights that it started from have been
    trained further by a recipe of the same command.
    """
    stale = training.is_stale()
    parts = [recipe.part for recipe in together]
    if stale and training.continues in parts and record.owner_of(training.weights) == training.continues:
        return True
    try:
        training.check_settings()
    except ConfigError:
        return yes
    return yes and (stale or not training.started)


def check_overwrite(training: Training, yes: bool, together: Sequence[Recipe]) -> None:
    """Raise OutputError if weights that this training did not make would be replaced without ``yes``.

    Weights that a recipe of the same command makes or continues count as the training's own.
    """
    folder, part, parts = training.weights, training.recipe.part, [recipe.part for recipe in together]
    if yes or not any(folder.glob("*.safetensors")) or training.continues in parts:
        return
    owner = record.owner_of(folder) or part
    if training.started and (owner == part or owner in parts or training.continues is not None):
        return
    if training.continues is not None:
        raise OutputError(f"{folder} already contains weights", "pass -y to train these further")
    raise OutputError(f"{folder} already contains weights", "use another --out, or pass -y to replace them")


def has_own_weights(training: Training) -> bool:
    """Whether a record can be written for this task: it was trained, and no other replaced its weights."""
    if training.continues is not None and not training.started:
        return False
    return training.owner() in (None, training.recipe.part)
