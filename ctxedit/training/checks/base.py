"""What a check is, and its result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ctxedit.config import BUILTIN
from ctxedit.editing.reporter import Reporter
from ctxedit.errors import WeightsError
from ctxedit.models.backbones import Backbone, load_backbone
from ctxedit.models.weights import BUILTIN_FOLDER
from ctxedit.synthetic import scenes
from ctxedit.training.components import find_component


@dataclass(frozen=True)
class CheckRow:
    """One measured figure of a part, over ``count`` samples; the goal is reached at ``wanted`` or above.

    With ``lower`` it is reached at ``wanted`` or below. ``interval``: of the value, at 95 %, where known.
    """

    part: str
    figure: str
    value: float
    wanted: float
    count: int
    interval: tuple[float, float] | None = None
    lower: bool = False

    @property
    def reached(self) -> bool:
        """Whether the goal is reached."""
        return self.value <= self.wanted if self.lower else self.value >= self.wanted


@dataclass(frozen=True)
class CheckConfig:
    """What to check, and on how many samples.

    Attributes:
        weights: folder of models; built-in models stand in for what it lacks.
        count: held-out scenes per part.
        pairs: clips to edit, each towards three targets.
        seed: of scenes and noise.
        work: folder for clips and runs of the edits; an interrupted check resumes from it.
        settings: overrides of the preset's settings for edits and images, e.g. fewer frames and steps.
    """

    weights: Path = BUILTIN_FOLDER
    count: int = 100
    pairs: int = 20
    seed: int = 7
    work: Path = Path("check")
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def model(self) -> str:
        """The value of the setting ``model``."""
        return BUILTIN if self.weights.resolve() == BUILTIN_FOLDER.resolve() else str(self.weights)

    def find(self, component: str) -> Path:
        """The folder of a component."""
        return find_component(self.weights, component)

    def has(self, component: str) -> bool:
        """Whether there are weights of a component."""
        try:
            self.find(component)
        except WeightsError:
            return False
        return True

    def backbone(self) -> Backbone:
        """The denoiser's pipeline on the CPU."""
        return load_backbone(self.model, torch.device("cpu"), torch.float32)

    def held_out(self, pairs: float = 0.0) -> list[scenes.Scene]:
        """``count`` held-out scenes, of which a share of ``pairs`` has two objects."""
        rng = np.random.default_rng(self.seed)
        return [scenes.draw_scene(rng, test=True, pairs=pairs) for _ in range(self.count)]


@dataclass(frozen=True)
class Check:
    """The measurement of one part.

    Attributes:
        name: of the part, as in ``--part``.
        components: folders of the weights that the figures depend on, in ``models``.
        measure: yields the rows.
    """

    name: str
    components: tuple[str, ...]
    measure: Callable[[CheckConfig, Reporter], Iterator[CheckRow]]
