"""What a stage is: what its key depends on, how it is made and read, what it costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ctxedit.config import Config
from ctxedit.editing.costs import Costs
from ctxedit.editing.keys import Keys, artifact_name
from ctxedit.editing.parts import Parts
from ctxedit.editing.request import Request
from ctxedit.stages.passes import Kept


@dataclass(frozen=True)
class StageJob:
    """What a stage works on.

    Attributes:
        parts: networks, frames, masks.
        name: the stage's name in the run folder.
        key: the stage's key.
        folder: the run folder; artefacts are written to it.
        prompt: the source prompt.
        target: of an edit; else empty.
        edit_name: of a stage that is done for each target, the name of what it makes, without suffix.
        frames_name: of an edit, the name of its frames' file, without suffix.
        needed: values of the stages that this one needs, by name.
        probe: asked after every tuning step; see :func:`ctxedit.stages.tune.tune`.
    """

    parts: Parts
    name: str = ""
    key: str = ""
    folder: Path = Path()
    prompt: str = ""
    target: str = ""
    edit_name: str = ""
    frames_name: str = ""
    needed: Mapping[str, Any] = field(default_factory=dict)
    probe: Callable[[int], float | None] = lambda step: None

    @property
    def request(self) -> Request:
        """The request."""
        return self.parts.request

    @property
    def config(self) -> Config:
        """The settings."""
        return self.parts.config

    @property
    def frames_file(self) -> str:
        """Where an edit's frames are kept, relative to the run folder."""
        return f"edits/{self.frames_name}.safetensors"

    @property
    def upscaled_file(self) -> str:
        """Where the same frames are kept at the upscaled size, relative to the run folder."""
        return f"edits/{self.edit_name}-upscaled.safetensors"


@dataclass(frozen=True)
class Made:
    """What a stage made.

    Attributes:
        value: what later stages take.
        files: artefacts, relative to the run folder.
        facts: noted in ``run.toml``.
        outputs: files for the user, made by ``write`` at the paths that it is given, in the same order.
        write: see ``outputs``.
    """

    value: Any = None
    files: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    outputs: tuple[Path, ...] = ()
    write: Callable[[list[Path]], None] = lambda staged: None


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: of the stage; each target's is ``name/target-key`` in the run folder.
        key: of (keys, prompt, target); needs neither weights nor a caption.
        make: does the work.
        read: the value of a stage that is done.
        needs: stages whose values it takes.
        again: what is said to be done again where its files are damaged.
        applies: whether the settings have it at all; where not, ``absent`` gives the value.
        absent: see ``applies``.
        each_target: whether it is done for each target.
        keeps: whether it leaves artefacts, and is reused.
        listed: whether the plan has a row for it.
        shows: stages without a row whose passes its row shows.
        optional: whether the row is left out where the stage does not apply.
        passes: of the network over the clip, of (config, prompt or None, target, whether the source's branch
            is kept).
        keeps_source: whether it leaves the source's branch kept, of (config, prompt or None, target).
        peak: bytes of memory, of (costs, reused).
        disk: bytes that it leaves.
    """

    name: str
    key: Callable[[Keys, str, str], str]
    make: Callable[[StageJob], Made]
    read: Callable[[StageJob], Any]
    needs: tuple[str, ...] = ()
    again: str = ""
    applies: Callable[[Config], bool] = lambda config: True
    absent: Callable[[StageJob], Any] = lambda job: None
    each_target: bool = False
    keeps: bool = True
    listed: bool = True
    shows: tuple[str, ...] = ()
    optional: bool = False
    passes: Callable[[Config, str | None, str, Kept], int] = lambda config, prompt, target, kept: 0
    keeps_source: Callable[[Config, str | None, str], bool] = lambda config, prompt, target: False
    peak: Callable[[Costs, bool], int] = lambda costs, reused: 0
    disk: Callable[[Costs], int] = lambda costs: 0

    def name_of(self, keys: Keys, prompt: str, target: str = "") -> str:
        """The stage's name in the run folder."""
        if not self.each_target:
            return self.name
        return f"{self.name}/{artifact_name(target, self.key(keys, prompt, target))}"

    def rows(self, targets: Sequence[str]) -> list[tuple[str, str]]:
        """The plan's rows, as (label, target)."""
        if self.each_target and self.keeps:
            return [(f"{self.name} “{target}”", target) for target in targets]
        return [(self.name, "")]
