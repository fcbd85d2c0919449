"""What a person looks at: the edited clip, a side-by-side with the source, a contact sheet."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ctxedit.errors import ConfigError
from ctxedit.media.geometry import resize
from ctxedit.media.montage import MAX_TILE
from ctxedit.media.temporary import check_writable
from ctxedit.media.write import (
    IMAGE_SUFFIXES,
    contact_sheet,
    holds_audio,
    paired,
    side_by_side,
    write_clip,
    write_image,
)
from ctxedit.stages.prepare import Prepared


@dataclass(frozen=True)
class OutputFiles:
    """Paths of an edit's results."""

    video: Path
    side_by_side: Path
    sheet: Path

    def names(self) -> list[str]:
        """The three paths as text."""
        return [str(self.video), str(self.side_by_side), str(self.sheet)]


def is_image(output: Path) -> bool:
    """Whether an output of this name is a single image."""
    return output.suffix.lower() in IMAGE_SUFFIXES and not output.is_dir()


def check_image(path: Path, overwrite: bool) -> None:
    """Raises ConfigError for a suffix that is no image's, OutputError for a place that cannot be written."""
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise ConfigError(f"images are not written as {path.suffix or path.name}", "use .png, .jpg or .webp")
    check_writable(path, overwrite)


def files_for(video: Path) -> OutputFiles:
    """The side-by-side (an image for an image) and the sheet are next to the video, under its name."""
    stem = video.with_suffix("") if video.suffix else video.parent / video.name
    return OutputFiles(
        video,
        stem.with_name(f"{stem.name}-side-by-side{'.png' if is_image(video) else '.mp4'}"),
        stem.with_name(f"{stem.name}-sheet.png"),
    )


@dataclass(frozen=True)
class HeatmapFiles:
    """Where heat maps are: an image with a row for each word, and a video with the words in a row."""

    sheet: Path
    video: Path


def heatmap_files(video: Path) -> HeatmapFiles:
    """Heat maps are next to the edited video, under its name."""
    stem = video.with_suffix("") if video.suffix else video
    return HeatmapFiles(
        stem.with_name(f"{stem.name}-heatmaps.png"), stem.with_name(f"{stem.name}-heatmaps.mp4")
    )


def write(
    prepared: Prepared,
    edited: NDArray[np.uint8],
    target: str,
    source_prompt: str,
    files: OutputFiles,
    *,
    source_size: bool,
    full: NDArray[np.uint8] | None = None,
    audio: bool,
    overwrite: bool,
    chroma: str = "420",
    about: str | None = None,
    warn: Callable[[str], None] = lambda text: None,
) -> None:
    """Write all three, as long as the span of the clip that they were made of.

    Args:
        prepared: the source clip.
        edited: RGB uint8 (F, h, w, 3) at working size.
        target, source_prompt: labels of the sheet.
        files: where to.
        source_size: scale the video to the source's size.
        full: the edit at the source's size, where it is more than ``edited`` scaled; else None.
        audio: copy the span's sound.
        overwrite: an existing file may be replaced.
        chroma: of the video, as for ``write_clip``.
        about: text to embed in all three; None embeds nothing.
        warn: called with what a file format could not hold: sound, an odd size.
    """
    shown = edited if full is None else full
    # FFmpeg encodes in processes of its own; meanwhile the sheet is drawn and compressed.
    with ThreadPoolExecutor(1) as pool:
        sheet = pool.submit(
            _write_sheet, files.sheet, prepared, edited, target, source_prompt, overwrite, about
        )
        if is_image(files.video):
            _write_images(prepared, edited, shown, files, source_size, overwrite, about)
        else:
            sound = audio and prepared.clip.info.has_audio
            if audio and holds_audio(files.video) and prepared.clip.info.sound_note is not None:
                warn(prepared.clip.info.sound_note)
            _write_videos(prepared, edited, shown, files, source_size, sound, overwrite, chroma, about, warn)
        sheet.result()


def _write_images(
    prepared: Prepared, edited: NDArray[np.uint8], shown: NDArray[np.uint8], files: OutputFiles,
    source_size: bool, overwrite: bool, about: str | None,
) -> None:  # fmt: skip
    fit = prepared.fit
    picture = resize(shown, fit.source_width, fit.source_height) if source_size else shown
    write_image(files.video, picture[0], overwrite=overwrite, about=about)
    pair = side_by_side(prepared.frames, edited)[0]
    write_image(files.side_by_side, pair, overwrite=overwrite, about=about)


def _write_videos(
    prepared: Prepared, edited: NDArray[np.uint8], shown: NDArray[np.uint8], files: OutputFiles,
    source_size: bool, sound: bool, overwrite: bool, chroma: str, about: str | None,
    warn: Callable[[str], None],
) -> None:  # fmt: skip
    clip, fit = prepared.clip, prepared.fit
    write_clip(
        files.video,
        shown,
        clip.fps,
        durations=clip.durations,
        size=(fit.source_width, fit.source_height) if source_size else None,
        chroma=chroma,
        audio_from=clip.info.path if sound else None,
        audio_start=clip.start_seconds,
        audio_duration=clip.span_seconds,
        overwrite=overwrite,
        about=about,
        warn=warn,
    )
    write_clip(
        files.side_by_side,
        paired(prepared.frames, edited),
        clip.fps,
        durations=clip.durations,
        overwrite=overwrite,
        about=about,
    )


def _write_sheet(
    path: Path, prepared: Prepared, edited: NDArray[np.uint8], target: str, source_prompt: str,
    overwrite: bool, about: str | None,
) -> None:  # fmt: skip
    rows = [(f"source: {source_prompt}", prepared.frames), (f"edit: {target}", edited)]
    if edited.shape != prepared.frames.shape:  # upscaled: tiles are as large as the edit's frames
        sheet = contact_sheet(rows, min_tile=min(MAX_TILE, max(edited.shape[1:3])))
    else:
        sheet = contact_sheet(rows)
    write_image(path, sheet, overwrite=overwrite, about=about)
