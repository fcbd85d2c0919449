"""The request: one description of a job, made by the command line, the API and the bench."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctxedit.config import Config
from ctxedit.runs import DEFAULT_ROOT, Run
from ctxedit.tables import DEFAULT_PRESET


def _ignore(text: str) -> None:
    """Discards a warning."""


@dataclass(frozen=True)
class Request:
    """A clip, the settings to edit it with, and where the results go.

    Attributes:
        clip: the source.
        config: settings.
        preset: the preset's name, part of the run's identity.
        prompt: the source prompt; None captions the clip.
        targets: target prompts.
        mask: where change is allowed.
        output: the edited file; None is inside the run folder.
        source_size: write at the source's size.
        audio: copy the source's sound.
        chroma: of H.264 outputs: "420", or "444", which few players show.
        metadata: embed in the outputs how they were made.
        overwrite: replace existing outputs, redo finished edits.
        any_footage: tune the built-in models on footage that they do not know, with a warning.
        heatmaps: also draw where each word of the target attends.
        offline: touch no hub.
        runs: folder for runs.
        lavis_python: interpreter of the LAVIS worker.
        sources: files that the settings were read from; no output may replace them.
        run: the run to continue; None finds or makes the one of these inputs.
    """

    clip: Path
    config: Config
    preset: str = DEFAULT_PRESET
    prompt: str | None = None
    targets: tuple[str, ...] = ()
    mask: Path | None = None
    output: Path | None = None
    source_size: bool = False
    audio: bool = True
    chroma: str = "420"
    metadata: bool = True
    overwrite: bool = False
    any_footage: bool = True
    heatmaps: bool = False
    offline: bool = False
    runs: Path = DEFAULT_ROOT
    lavis_python: Path | None = None
    sources: tuple[Path, ...] = ()
    run: Run | None = None

    @classmethod
    def of_run(
        cls, run: Run, config: Config | None = None, warn: Callable[[str], None] = _ignore, **others: Any
    ) -> Request:
        """Continue a run.

        Args:
            run: the run.
            config: replaces the run's settings where they may still change (edit, fusion, invert, seed).
            warn: called with a message about a run that an older version made.
            others: further attributes.

        Raises:
            InputError: the run's clip is gone or has changed.
        """
        run.check_clip(warn)
        return cls(run.clip, config or run.config, run.preset, runs=run.folder.parent, run=run, **others)

    def output_options(self) -> dict[str, str | bool]:
        """Output options that differ from the defaults, by the command line's names; files by their names."""
        values = {
            "mask": self.mask and self.mask.name,
            "output_size": "source" if self.source_size else None,
            "no_audio": not self.audio,
            "chroma": self.chroma if self.chroma != "420" else None,
            "output": self.output and self.output.name,
        }
        return {name: value for name, value in values.items() if value}

    @property
    def tuning_seed(self) -> int:
        """The seed of the tuning: an edit of a run may draw other noise, its tuning stays what it is."""
        return self.config.seed if self.run is None else self.run.config.seed
