"""The files that a command reads and those that it writes: no output may be an input, by any name or link.

Outputs are written to a temporary name and renamed, so a clip that is also the output would be read to its
end and then be gone: neither ``-y`` nor a symbolic or hard link makes that what a person meant.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ctxedit.config import Config
from ctxedit.errors import ConfigError, OutputError
from ctxedit.files import check_kind, check_name_fits, check_utf8, expanded, printable
from ctxedit.model_names import split_scale

if TYPE_CHECKING:
    from ctxedit.editing.request import Request

#: What is left of a URL's beginning in a path. Windows' drives have one letter.
_URL = re.compile(r"[a-z][a-z0-9+.-]+:/", re.I)
#: Room for the longest names inside a run folder.
_LONGEST = Path("r" * 96) / "heatmaps" / ("e" * 96)


@dataclass(frozen=True)
class Input:
    """A file or folder that is read. In a folder of ``pictures`` every file counts."""

    path: Path
    what: str
    pictures: bool = False


@dataclass(frozen=True)
class Paths:
    """What is read and written.

    Attributes:
        inputs: all that is read.
        written: files and folders that are replaced as a whole, by what each is called.
        places: folders that files are added to.
    """

    inputs: tuple[Input, ...]
    written: tuple[tuple[str, Path], ...]
    places: tuple[Path, ...] = ()

    def check(self) -> None:
        """Check names, and that no output is an input. Nothing is opened.

        Raises:
            ConfigError: an output is a URL, or ``-``.
            InputError: the path of an input is not UTF-8, or it is a device, a FIFO or a socket.
            OutputError: an output is an input, or its name does not fit.
        """
        for one in self.inputs:
            check_utf8(one.path, one.what)
            if one.pictures:  # all others have been read, or are the models' to refuse
                check_kind(one.path, one.what)
        for what, path in self.written:
            if str(path) == "-" or _URL.match(str(path)):
                raise ConfigError(f"the {what} {path} is not a file", "outputs are local files or folders")
            check_utf8(path, what, OutputError)
            check_name_fits(path, what)
        for place in self.places:
            check_utf8(place, "output", OutputError)
            check_name_fits(place / _LONGEST, "run folder")
        for one in self.inputs:
            self._check_apart(one)

    def _check_apart(self, one: Input) -> None:
        own = _id(one.path)
        if own is None:
            return
        within = _ids(one.path)
        members = set(_members(one.path)) if one.pictures and one.path.is_dir() else set()
        for what, path in self.written:
            found = _id(path)
            if found is not None and (found == own or found in members):
                raise _refused(f"the {what} {printable(path)} is the {one.what}", one)
            if found is not None and found in within:
                raise _refused(f"the {one.what} {printable(one.path)} is inside the {what}", one)
        if not one.pictures or not one.path.is_dir():
            return
        for what, path in (*self.written, *(("run folder", place) for place in self.places)):
            if own in _ids(path):
                raise _refused(f"the {what} {printable(path)} is inside the {one.what}", one)


def for_edit(request: Request) -> Paths:
    """What an edit or a tuning reads and writes."""
    inputs = [Input(request.clip, "clip", True), *_settings(request.config, request.sources)]
    if request.mask is not None:
        inputs.append(Input(request.mask, "mask", True))
    run = request.run
    if request.output is None or not request.targets:
        place = request.runs if run is None else run.folder
        return Paths(tuple(inputs), () if run is None else _kept(run.folder), (place,))
    return Paths(tuple(inputs), tuple(_edited(request.output, request.heatmaps)), (request.runs,))


def for_image(
    image: Path,
    config: Config,
    adapter: Path | None,
    sources: Sequence[Path],
    layout: Path | None = None,
) -> Paths:
    """What text to image reads and writes."""
    inputs = _settings(config, sources)
    inputs += [Input(path, what) for path, what in ((adapter, "adapter"), (layout, "layout")) if path]
    return Paths(tuple(inputs), (("image", image),))


def _settings(config: Config, sources: Sequence[Path]) -> list[Input]:
    """Files of settings, models that are named by a path, and the control map."""
    found = [Input(path, "settings file") for path in sources]
    models = (
        config.model, config.captioner, config.clip_model, config.control.model, config.upscale.model
    )  # fmt: skip
    found += [Input(expanded(name), "model") for name in models if os.path.isabs(name)]
    loras = (split_scale(setting)[0] for setting in config.lora)
    found += [Input(Path(name), "LoRA") for name in loras if os.path.isabs(name)]
    found += [Input(Path(name), "embedding") for name in config.embedding if os.path.isabs(name)]
    if config.control.map:
        found.append(Input(Path(config.control.map), "control map", True))
    return found


def _edited(video: Path, with_heatmaps: bool) -> Iterator[tuple[str, Path]]:
    from ctxedit.stages.report import files_for, heatmap_files

    if not video.name:
        raise ConfigError(f"--output {video} names no file", "e.g. -o edited.mp4, or -o frames/ for PNGs")
    files = files_for(video)
    yield from (("output", video), ("side-by-side", files.side_by_side), ("contact sheet", files.sheet))
    if with_heatmaps:
        maps = heatmap_files(video)
        yield from (("heat maps", maps.sheet), ("heat maps", maps.video))


def _kept(folder: Path) -> tuple[tuple[str, Path], ...]:
    """What stages write under fixed names in a run folder."""
    names = ("run.toml", "metrics.json", "inversion.safetensors", "tune/curve.png", "tune/curve.csv")
    return tuple(("run's own file", folder / name) for name in names)


def _refused(text: str, one: Input) -> OutputError:
    return OutputError(text, f"the {one.what} would be lost: choose another path; -y does not allow this")


def _id(path: Path) -> tuple[int, int] | None:
    """Identifies a file regardless of its name; None if it does not exist."""
    try:
        found = expanded(path).stat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def _ids(path: Path) -> set[tuple[int, int]]:
    """All folders that contain a path, by its name and through its links."""
    whole = Path(os.path.abspath(expanded(path)))
    folders = {*whole.parents, *Path(os.path.realpath(whole)).parents}
    return {found for folder in folders if (found := _id(folder)) is not None}


def _members(folder: Path) -> Iterator[tuple[int, int]]:
    try:
        found = list(folder.iterdir())
    except OSError:
        return
    for path in found:
        if (one := _id(path)) is not None:
            yield one
