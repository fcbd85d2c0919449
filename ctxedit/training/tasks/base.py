"""What a training task is, and the registry in which it is found by name."""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ctxedit.errors import ConfigError
from ctxedit.training.components import Components, read_weights
from ctxedit.training.settings import typed_settings

if TYPE_CHECKING:
    from ctxedit.training.checks.base import Check
    from ctxedit.training.data import Data, DataConfig

#: Recipes of the built-in tasks.
RECIPES = Path(__file__).parents[1] / "recipes"
_TASKS: dict[str, type[Task]] = {}
_T = TypeVar("_T", bound="Task")


class Task(ABC):
    """One model to train. A subclass is registered under the name that recipes give as ``part``.

    Its constructor takes the components to build on, the recipe's ``[data]`` and, as keyword arguments, the
    recipe's ``[task]`` table, checked against their annotations (:mod:`ctxedit.training.settings`). It must
    create ``model`` and ``data``.

    Attributes:
        name: set by :func:`register`.
        folder: folder of the trained weights inside a folder of models, in diffusers' layout.
        provides: further components that are derived from that folder.
        requires: components that the model is trained on; their weights' hashes are recorded.
        continues: the task whose weights, in the same folder, this one starts from and replaces.
        whole_batch: the samples of a step depend on each other, so that a step cannot be split into passes.
        drawn_only: can only be trained on drawn scenes.
        reads: sources of data other than drawn scenes.
        recipe: the default recipe as TOML; empty for ``recipes/<name>.toml``.
        model: the network; its parameters that require a gradient are trained.
        data: the samples.
    """

    name: ClassVar[str] = ""
    folder: ClassVar[str]
    provides: ClassVar[tuple[str, ...]] = ()
    requires: ClassVar[tuple[str, ...]] = ()
    continues: ClassVar[str | None] = None
    whole_batch: ClassVar[bool] = False
    drawn_only: ClassVar[bool] = False
    reads: ClassVar[tuple[str, ...]] = ("folder", "webdataset")
    recipe: ClassVar[str] = ""

    model: Any
    data: Data

    @abstractmethod
    def __init__(self, components: Components, data: DataConfig, **settings: Any) -> None: ...

    def dataset(self, seed: int) -> Dataset[Any]:
        """An endless data set in which sample ``i`` is a function of the seed and ``i``."""
        return self.data.dataset(seed)

    @abstractmethod
    def loss(self, model: Any, batch: Any, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """The loss of one batch and the figures to log. All randomness comes from ``generator``."""

    @abstractmethod
    def export(self, model: Any, folder: Path) -> None:
        """Save a trained ``model`` into ``folder``; files next to it may be written too."""

    def load_weights(self, folder: Path) -> None:
        """Initialise the model with exported weights; raises ConfigError if they do not fit it."""
        load_weights(self.model, folder)

    @classmethod
    def checks(cls) -> tuple[Check, ...]:
        """How the trained model is measured by ``ctxedit models check``."""
        return ()

    @classmethod
    def recipe_text(cls) -> str:
        """The default recipe as TOML; empty if there is none."""
        file = RECIPES / f"{cls.name}.toml"
        return cls.recipe or (file.read_text(encoding="utf-8") if file.is_file() else "")

    @classmethod
    def build(cls: type[_T], components: Components, data: DataConfig, settings: Mapping[str, Any]) -> _T:
        """Construct the task.

        Raises:
            ConfigError: settings that the task does not take, that are missing, or that do not fit.
            ResourceError: a network that does not fit into memory.
        """
        return cls(components, data, **typed_settings(cls, settings, cls.name))


def register(name: str) -> Callable[[type[_T]], type[_T]]:
    """Class decorator: make a task known under ``name``.

    A module in this package is imported when tasks are looked up; one elsewhere registers when imported.
    """

    def add(task: type[_T]) -> type[_T]:
        if name in _TASKS and _TASKS[name].__module__ != task.__module__:
            raise ValueError(f"there is already a task named {name!r}, in {_TASKS[name].__module__}")
        task.name = name
        _TASKS[name] = task
        return task

    return add


def get(name: str) -> type[Task]:
    """The task registered under a name; raises ConfigError if there is none."""
    _import_all()
    if name not in _TASKS:
        raise ConfigError(f"no part named {name!r}", f"parts are: {', '.join(names())}")
    return _TASKS[name]


def names() -> list[str]:
    """All tasks, each after those that it builds on."""
    _import_all()
    order: list[str] = []
    visited: set[str] = set()

    def visit(name: str) -> None:
        if name in visited:
            return
        visited.add(name)
        for needed in sorted(_prerequisites(_TASKS[name])):
            visit(needed)
        order.append(name)

    for name in sorted(_TASKS):
        visit(name)
    return order


def all_checks() -> dict[str, Check]:
    """The checks of all tasks by name, in the tasks' order; those of several components last."""
    found = [check for name in names() for check in get(name).checks()]
    return {check.name: check for check in sorted(found, key=lambda check: len(check.components))}


def _prerequisites(task: type[Task]) -> Iterator[str]:
    """Tasks whose weights ``task`` starts from or is trained on."""
    if task.continues is not None:
        yield task.continues
    for name, other in _TASKS.items():
        if set(task.requires) & {other.folder, *other.provides}:
            yield name


def require_drawn(data: DataConfig, what: str, side: int) -> None:
    """Raise ConfigError for data other than drawn scenes of this side: only those have labels."""
    if data.source != "scenes" or data.size != side:
        raise ConfigError(
            f"the {what} can only be trained on drawn scenes of {side} pixels: other images have no labels",
            'leave [data] out of the recipe, or set data.source = "scenes"',
        )


def _import_all() -> None:
    package = importlib.import_module("ctxedit.training.tasks")
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)


def load_weights(model: nn.Module, folder: Path) -> None:
    """Load exported weights into a model; raises ConfigError when names or shapes do not match."""
    load_tensors(model, read_tensors(folder), folder)


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of the weight files in a folder, in float32; raises WeightsError for a damaged file."""
    files = sorted(folder.glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in read_weights(file).items()}


def load_tensors(model: nn.Module, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Load tensors, which came from ``folder``; raises ConfigError when names or shapes do not match."""
    error = ConfigError(f"{folder} does not fit the recipe", "train from scratch, without --warm")
    try:
        missing, unknown = model.load_state_dict(tensors, strict=False)
    except RuntimeError as cause:
        raise error from cause
    # Tied weights are saved once: a missing name must share its storage with a loaded one.
    known = {p.data_ptr() for name, p in model.named_parameters() if name in tensors}
    if unknown or any(
        p.data_ptr() not in known for n, p in model.named_parameters(remove_duplicate=False) if n in missing
    ):
        raise error
