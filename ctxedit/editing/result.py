"""What an edit gives back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file

from ctxedit.display import media_html
from ctxedit.metrics.evaluate import Figures
from ctxedit.stages.report import OutputFiles


@dataclass(frozen=True)
class EditResult:
    """One edit. In a notebook it shows its video.

    Attributes:
        target: the target prompt.
        files: ``files.video``, ``files.side_by_side``, ``files.sheet``.
        reused: whether it was there already.
        frames_file: the file in the run folder that holds the frames without loss.
        figures: its scores, where it was evaluated.
    """

    target: str
    files: OutputFiles
    reused: bool
    frames_file: Path
    figures: Figures | None = None

    @property
    def frames(self) -> NDArray[np.uint8]:
        """The edited frames, RGB uint8 (F, h, w, 3) at working size, as they were before encoding."""
        frames: NDArray[np.uint8] = load_file(self.frames_file)["frames"]
        return frames

    @property
    def images(self) -> list[Image.Image]:
        """The edited frames as PIL images."""
        return [Image.fromarray(frame) for frame in self.frames]

    def _repr_html_(self) -> str:
        return media_html(self.files.video, self.target)
