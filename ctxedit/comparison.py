"""Edits beside each other: gathered from files and run folders, labelled by what tells them apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ctxedit.config import ClipConfig, load
from ctxedit.contents import fingerprint
from ctxedit.errors import ConfigError, CtxeditError, InputError, counted
from ctxedit.media.embed import embedded
from ctxedit.media.geometry import plan_fit
from ctxedit.media.montage import contact_sheet, playing_grid
from ctxedit.media.probe import probe
from ctxedit.media.read import Clip, Store
from ctxedit.media.scratch import scratch
from ctxedit.media.sources import check_exists
from ctxedit.media.write import IMAGE_SUFFIXES, write_clip, write_image
from ctxedit.provenance import distinct_labels, flat, from_text, to_text
from ctxedit.runs import Run
from ctxedit.stages.prepare import read_working
from ctxedit.tables import merge_into, nested

#: Longest side of a tile, in pixels; larger frames are reduced as they are read.
_TILE = 320
#: Clips of more frames are read to the disk.
_IN_MEMORY = 64


@dataclass(frozen=True)
class Part:
    """One clip of a comparison.

    Attributes:
        path: its file or folder of frames.
        label: shown above it.
        facts: how it was made, as :mod:`ctxedit.provenance` has it; empty where that is not known.
        span: which of its frames.
    """

    path: Path
    label: str
    facts: Mapping[str, Any]
    span: ClipConfig


def gather(paths: Sequence[Path], labels: Sequence[str] = (), frames: int | None = None) -> list[Part]:
    """The parts that files, folders of frames and run folders stand for; a run gives its source and edits.

    Args:
        paths: at least one.
        labels: one for each part; none are made from what the files say of themselves.
        frames: how many frames of each part; None takes all.

    Raises:
        InputError: a path cannot be read, a run has no edits, or the parts have different numbers of frames.
        ConfigError: not as many labels as parts.
    """
    parts: list[Part] = []
    for path in map(check_exists, paths):
        parts += of_run(Run(path)) if (path / "run.toml").is_file() else [_of_file(path)]
    if labels and len(labels) != len(parts):
        raise ConfigError(
            f"{counted(len(labels), 'label')} for {counted(len(parts), 'clip')}", "give one --label to each"
        )
    parts = sources_as_edited(parts)
    parts = [replace(p, label=text) for p, text in zip(parts, labels or labels_for(parts), strict=True)]
    return equally_long(parts, frames)


def of_run(run: Run) -> list[Part]:
    """A run's source, and its edits in the order they were made.

    Raises:
        InputError: it has no edits.
    """
    edits = [run.facts(name) for name in run.edits()]
    if not edits:
        raise InputError(f"{run.folder} has no edits to compare", 'make one: ctxedit edit "TEXT" --run RUN')
    config = run.config.clip
    return [Part(run.clip, "source", {}, config), *(_of_file(check_exists(e["video"])) for e in edits)]


def _of_file(path: Path) -> Part:
    count = probe(path).frames
    facts = from_text(embedded(path)) or {}
    shown = [facts["target"]] if "target" in facts else [*facts.get("labels", []), facts.get("text")]
    return Part(
        path, ", ".join(str(one) for one in shown if one) or path.name, facts, ClipConfig(count, 0, 1)
    )


def sources_as_edited(parts: Sequence[Part]) -> list[Part]:
    """The parts; a source beside an edit of it shows the frames that the edit was made of.

    An edit says which file that is by its hash, and which frames by its preset and settings.
    """
    edits = [part for part in parts if isinstance(part.facts.get("source"), dict)]
    by_hash = {str(part.facts["source"].get("blake2b")): part for part in edits}
    found = []
    for part in parts:
        edit = by_hash.get(fingerprint(part.path)) if edits and not part.facts else None
        span = None if edit is None else _span_of(edit)
        found.append(part if span is None else replace(part, span=span))
    return found


def _span_of(edit: Part) -> ClipConfig | None:
    """Which frames of its source an edit was made of; None where its preset is not here."""
    flags: dict[str, Any] = {"model": edit.facts.get("model")}
    try:
        for key, value in edit.facts.get("settings", {}).items():
            merge_into(flags, nested(key, value))
        return replace(
            load(str(edit.facts.get("preset")), flags=flags, environ={}).clip, frames=edit.span.frames
        )
    except (CtxeditError, AttributeError):  # facts may have been written by anybody
        return None


def labels_for(parts: Sequence[Part]) -> list[str]:
    """Labels that tell the parts apart: the target, and where it is the same, what else differs."""
    return distinct_labels([part.label for part in parts], [flat(part.facts) for part in parts])


def equally_long(parts: Sequence[Part], frames: int | None = None) -> list[Part]:
    """Parts of one number of frames; a single image is repeated next to clips."""
    counts = [part.span.frames for part in parts]
    longest = max(counts)
    moving = sorted({count for count in counts if count > 1})
    if frames is not None:
        if frames < 1:
            raise ConfigError(f"--frames must be at least 1, not {frames}", "--frames 8 takes the first 8")
        short = next((p for p in parts if 1 < p.span.frames < frames), None)
        if short is not None or longest < frames:
            short = short or parts[0]
            raise InputError(
                f"{short.path} has {counted(short.span.frames, 'frame')}, not {frames}",
                f"--frames {min(moving or [1])} fits all",
            )
    elif len(moving) > 1:
        a, b = (next(p for p in parts if p.span.frames == n) for n in (moving[0], moving[-1]))
        raise InputError(
            f"{a.path} has {counted(a.span.frames, 'frame')}, {b.path} has {b.span.frames}",
            f"--frames {moving[0]} compares the first {moving[0]} of each",
        )
    count = frames or longest
    return [replace(p, span=replace(p.span, frames=min(count, p.span.frames))) for p in parts]


def compose(
    parts: Sequence[Part],
    output: Path,
    *,
    columns: int = 4,
    overwrite: bool = False,
    about: str | None = None,
    warn: Callable[[str], None] = lambda text: None,
    complete: Callable[[Path], None] = lambda file: None,
) -> Path:
    """Write the comparison: a labelled grid that plays, or, as an image, a labelled row of frames for each.

    Videos play at the first moving part's times; ``warn`` is called for parts made for other times.
    ``complete`` is called with the complete file before it gets its name.

    Raises:
        InputError, OutputError, ConfigError: as for reading and writing clips.
    """
    side = _side(parts)
    clips = [_read(part, side, output.absolute().parent) for part in parts]
    count = max(len(clip.frames) for clip in clips)
    frames = [
        np.broadcast_to(c.frames, (count, *c.frames.shape[1:])) if len(c.frames) == 1 else c.frames
        for c in clips
    ]
    rows = [(part.label, picture) for part, picture in zip(parts, frames, strict=True)]
    if output.suffix.lower() in IMAGE_SUFFIXES:
        return write_image(output, contact_sheet(rows), overwrite=overwrite, about=about, complete=complete)
    lead = next((clip for clip in clips if len(clip.frames) > 1), clips[0])
    for part, clip in zip(parts, clips, strict=True):
        if len(clip.frames) > 1 and _differ(clip.fps, lead.fps):
            warn(f"{part.path} was made for {float(clip.fps):g} frames a second, not {float(lead.fps):g}")
    grid = playing_grid(rows, columns)
    fps = min(lead.fps, Fraction(50)) if output.suffix.lower() == ".gif" else lead.fps
    return write_clip(
        output, grid, fps, durations=lead.durations, overwrite=overwrite, about=about, warn=warn,
        complete=complete,
    )  # fmt: skip


def about(parts: Sequence[Part], version: str) -> str:
    """What a comparison says of itself: its parts' labels and how each was made."""
    of = [{"label": part.label, **part.facts} for part in parts]
    return to_text({"ctxedit": version, "kind": "comparison", "of": of})


def _side(parts: Sequence[Part]) -> int:
    """The long side of every tile: the largest part's, so that a small source is seen beside its edit."""
    infos = [probe(part.path) for part in parts]
    return min(_TILE, max(max(info.width, info.height) for info in infos))


def _read(part: Part, side: int, folder: Path) -> Clip:
    info = probe(part.path)
    store: Store = np.empty if part.span.frames <= _IN_MEMORY else partial(scratch, folder)
    return read_working(part.path, part.span, plan_fit(info.width, info.height, side, 1), store)


def _differ(a: Fraction, b: Fraction) -> bool:
    return abs(a / b - 1) > Fraction(1, 100)
