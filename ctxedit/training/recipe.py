"""Recipes: TOML files with a task's settings, its data and its schedule."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import tomli_w

from ctxedit.config import convert, merge
from ctxedit.errors import ConfigError, did_you_mean
from ctxedit.files import TEXT_LIMIT, expanded, read_text
from ctxedit.tables import parse as parse_toml
from ctxedit.training.data import DataConfig
from ctxedit.training.schedule import Schedule
from ctxedit.training.tasks import base as tasks
from ctxedit.training.tasks.base import Task

_Table = Mapping[str, Any]
#: What a recipe has at its top level.
_KEYS: Mapping[str, Any] = {
    "part": str, "about": str, "licence": str, "warm": bool, "task": _Table, "data": _Table,
    "schedule": _Table,
}  # fmt: skip
#: Settings of the schedule that may change when a training is resumed.
_RESUMABLE = ("steps", "save_seconds", "workers", "precision", "batch", "accumulate", "snapshots")


@dataclass(frozen=True)
class Recipe:
    """How to train one model.

    Attributes:
        part: name of the task.
        task: the task's settings.
        schedule: of the training loop.
        data: what to train on.
        name: of the recipe: its file's name without suffix.
        about: what is trained, in one line.
        licence: of the resulting weights; may be empty.
        text: the recipe as TOML, changes included.
        warm: start from existing weights, or else from the built-in ones, as with ``--warm``.
    """

    part: str
    task: dict[str, Any]
    schedule: Schedule
    data: DataConfig = field(default_factory=DataConfig)
    name: str = ""
    about: str = ""
    licence: str = ""
    text: str = ""
    warm: bool = False

    @property
    def sha256(self) -> str:
        """Hash of ``text``."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def task_type(self) -> type[Task]:
        """The task's class."""
        return tasks.get(self.part)

    @property
    def folder(self) -> str:
        """Folder of the weights inside a folder of models."""
        return self.task_type.folder

    @property
    def resume_settings(self) -> dict[str, Any]:
        """The settings that must be the same when a training is resumed."""
        schedule = {k: v for k, v in asdict(self.schedule).items() if k not in _RESUMABLE}
        schedule["images"] = self.schedule.images  # in any number of passes
        if self.task_type.whole_batch:
            schedule["batch"] = self.schedule.batch
        data = {k: v for k, v in asdict(self.data).items() if k != "on_error"}
        if not self.data.compositions:
            del data["compositions"]  # states from before there was this setting can be resumed
        return {"part": self.part, "task": self.task, "data": data, "schedule": schedule}

    def in_passes(self, passes: int) -> Recipe:
        """The same training with each step split into several forward passes: less memory, more time.

        A task whose samples depend on each other is returned unchanged.

        Raises:
            ConfigError: the step's samples cannot be split evenly.
        """
        if passes == 1 or self.task_type.whole_batch:
            return self
        batch, rest = divmod(self.schedule.images, passes)
        if rest:
            raise ConfigError(
                f"{self.name}: {self.schedule.images} samples per step cannot be split into {passes} passes",
                "choose a divisor",
            )
        return self.changed({"batch": batch, "accumulate": passes}, {})

    def changed(self, schedule: Mapping[str, Any], data: Mapping[str, Any]) -> Recipe:
        """A copy with other settings; raises ConfigError for values out of their range."""
        if not schedule and not data:
            return self
        changed, source = merge(self.schedule, schedule, "schedule."), merge(self.data, data, "data.")
        new = replace(self, schedule=changed, data=source)
        table = {
            "part": new.part, "about": new.about, "licence": new.licence, "warm": new.warm, "task": new.task,
            "data": asdict(new.data),
            "schedule": {key: value for key, value in asdict(new.schedule).items() if value is not None},
        }  # fmt: skip
        return replace(new, text=tomli_w.dumps(table))


def names() -> list[str]:
    """The built-in recipes: of each task the one of its name, in the order in which they build on each
    other; then those that train a task's weights in another way."""
    own = [name for name in tasks.names() if tasks.get(name).recipe_text()]
    return own + sorted(file.stem for file in tasks.RECIPES.glob("*.toml") if file.stem not in own)


def resolve(name: str) -> Recipe:
    """A built-in recipe by name, or any recipe by the path of its TOML file."""
    path = Path(name)
    if path.suffix == ".toml":
        return load(path)
    if name not in names():
        guess = did_you_mean(name, names())
        raise ConfigError(f"no recipe {name!r}", f"{guess}the built-in recipes are: {', '.join(names())}")
    if name in tasks.names():
        return parse(tasks.get(name).recipe_text(), name)
    return parse((tasks.RECIPES / f"{name}.toml").read_text(encoding="utf-8"), name)


def load(path: Path) -> Recipe:
    """Read a recipe from a file; raises ConfigError as :func:`parse`, or if there is no such file."""
    return parse(read_text(path, "recipe", TEXT_LIMIT, ConfigError), path.stem, path)


def parse(text: str, name: str, file: Path | None = None) -> Recipe:
    """Read a recipe from TOML.

    Args:
        text: the TOML.
        name: of the recipe.
        file: where it was read from; relative paths in it are relative to its folder.

    Raises:
        ConfigError: the recipe is not valid.
    """
    label = f"recipe {file or name}"
    try:
        return _parse(parse_toml(text), text, name, file)
    except ValueError as error:
        raise ConfigError(f"{label}: {error}", "a recipe is TOML; see `ctxedit train --list`") from error
    except ConfigError as error:
        raise ConfigError(f"{label}: {error.message}", error.hint) from error


def _parse(blob: dict[str, Any], text: str, name: str, file: Path | None) -> Recipe:
    if unknown := sorted(set(blob) - set(_KEYS)):
        raise ConfigError(f"unknown key {unknown[0]}", f"known here: {', '.join(sorted(_KEYS))}")
    if missing := [key for key in ("part", "task", "schedule") if key not in blob]:
        raise ConfigError(f"no {missing[0]}", "a recipe has part, [task] and [schedule]")
    top = {key: convert(value, _KEYS[key], key) for key, value in blob.items()}
    tasks.get(top["part"])
    data = merge(DataConfig(), top.get("data", {}), "data.")
    if data.path and data.source == "scenes":
        raise ConfigError(
            f"data.path = {data.path!r} with drawn scenes",
            'set data.source = "folder", or leave out data.path',
        )
    if data.path and not expanded(data.path).is_absolute():
        data = replace(data, path=str((file.parent if file else Path()) / data.path))
    schedule = merge(Schedule(steps=1, batch=1, lr=0.0), top["schedule"], "schedule.")
    if missing := [key for key in ("steps", "batch", "lr") if key not in top["schedule"]]:
        raise ConfigError(f"no schedule.{missing[0]}", "steps, batch and lr have no default")
    return Recipe(
        top["part"], dict(top["task"]), schedule, data,
        name, top.get("about", ""), top.get("licence", ""), text, top.get("warm", False),
    )  # fmt: skip
