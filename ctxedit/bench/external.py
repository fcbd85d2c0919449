"""Another method's videos for the same list, found in a folder and matched to the comparison's frames."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ctxedit.bench.formats import SUFFIXES
from ctxedit.bench.listing import Clip, Target
from ctxedit.config import ClipConfig
from ctxedit.errors import ConfigError, InputError
from ctxedit.files import expanded, neighbour
from ctxedit.media import stills
from ctxedit.media.probe import probe
from ctxedit.runs import slug
from ctxedit.stages.prepare import Prepared, read_working


@dataclass(frozen=True)
class External:
    """A method that is not run by ctxedit: its name in the tables, and the folder of its videos.

    The video of a clip's target is, with any suffix of a video or as a folder of images, in the folder itself
    or in one of its subfolders: ``CLIP/N`` (the target's number, from 0; V2VBench), ``CLIP/KIND``
    (LOVEU-TGVE), ``CLIP/target-in-words``, ``clip-target-in-words``, or ``CLIP`` if it has only one target.
    """

    label: str
    folder: Path

    def find(self, clip: Clip, target: Target) -> Path | None:
        """The video of a target; None if there is none."""
        places = [self.folder, *sorted(one for one in self.folder.iterdir() if one.is_dir())]
        for stem in _stems(clip, target):
            for place in places:
                if found := _with_suffix(place / stem):
                    return found
        return None


def parse(text: str) -> External:
    """``NAME=FOLDER`` as an external method.

    Raises:
        ConfigError: not of this form.
        InputError: no such folder.
    """
    label, equals, folder = (part.strip() for part in text.partition("="))
    if not (label and equals and folder):
        raise ConfigError(f"--external {text}", "it takes a name and a folder: --external tokenflow=videos/")
    path = expanded(folder)
    if not path.is_dir():
        raise InputError(
            f"--external {text}: {path} is not a folder",
            f"{neighbour(path)}name the folder that holds its videos",
        )
    return External(label, path)


def read(path: Path, span: ClipConfig, prepared: Prepared) -> NDArray[np.uint8]:
    """An external video as RGB uint8 (F, h, w, 3), as the comparison reads the source.

    A video with exactly the comparison's number of frames is used as it is; from a longer one, the same
    frames are selected as from the source.

    Raises:
        InputError: it cannot be read, or has too few frames.
    """
    whole = probe(path).frames == span.frames
    fitting = ClipConfig(span.frames, 0, 1, span.size) if whole else span
    return read_working(path, fitting, prepared.fit).frames


def _stems(clip: Clip, target: Target) -> Iterator[str]:
    kinds = [one.kind for one in clip.targets]
    yield f"{clip.name}/{clip.targets.index(target)}"
    if kinds.count(target.kind) == 1:
        yield f"{clip.name}/{'multiple' if target.kind == 'other' else target.kind}"
    yield f"{clip.name}/{slug(target.prompt)}"
    yield f"{slug(clip.name)}-{slug(target.prompt)}"
    if len(clip.targets) == 1:
        yield clip.name


def _with_suffix(path: Path) -> Path | None:
    for suffix in SUFFIXES:
        if (file := path.with_name(path.name + suffix)).is_file():
            return file
    if path.is_dir() and any(one.suffix.lower() in stills.SUFFIXES for one in path.iterdir()):
        return path
    return None
