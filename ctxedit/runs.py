"""The run folder: what each stage left and what of it is still valid.

``runs/<clip>-<preset>-<date>-<id>/`` holds ``run.toml`` (settings, versions, hashes of inputs, finished
stages) and one artefact a stage. A stage is valid while the key it was finished with, a hash of all that it
depends on, is the key that it would get today.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import tomli_w

from ctxedit.config import Config, merge, read_table, to_table
from ctxedit.errors import InputError, OutputError

DEFAULT_ROOT = Path("runs")
_FILE = "run.toml"
_EDGE = 1 << 20


class Run:
    """A run folder on disk. Every change is written to a temporary name and renamed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / _FILE).is_file():
            raise InputError(
                f"{folder} is not a run folder", "a run folder holds run.toml; `ctxedit tune` makes one"
            )
        self._table = read_table(folder / _FILE)
        if lacking := {"clip", "clip_hash", "preset", "config", "stages"} - set(self._table):
            raise InputError(f"{folder / _FILE} lacks {', '.join(sorted(lacking))}", "tune again")

    @classmethod
    def create(cls, root: Path, clip: Path, preset: str, config: Config, identity: str) -> Run:
        """The run of this identity: the one there is, or a new one.

        Raises:
            OutputError: the place cannot be written.
        """
        if found := cls.find(root, clip, preset, identity):
            return found
        folder = root / f"{_label(clip, preset)}-{time.strftime('%Y%m%d')}-{identity[:8]}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"{folder} cannot be made: {error.strerror}", "choose a place with --runs"
            ) from error
        table = {
            "identity": identity,
            "clip": str(clip.resolve()),
            "clip_hash": fingerprint(clip),
            "preset": preset,
            "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "versions": versions(),
            "config": to_table(config),
            "stages": {},
        }
        write_toml(folder / _FILE, table)
        return cls(folder)

    @classmethod
    def find(cls, root: Path, clip: Path, preset: str, identity: str) -> Run | None:
        """The run of this identity, if there is one."""
        for folder in sorted(root.glob(f"{_label(clip, preset)}-*-{identity[:8]}"), reverse=True):
            if (folder / _FILE).is_file():
                run = cls(folder)
                if run._table.get("identity") == identity:
                    return run
        return None

    @classmethod
    def newest(cls, root: Path, clip: Path | None = None) -> Run:
        """The run that was changed last, of ``clip`` if given; InputError when there is none."""
        for file in sorted(root.glob(f"*/{_FILE}"), key=lambda f: f.stat().st_mtime, reverse=True):
            run = cls(file.parent)
            if clip is None or run.clip == clip.resolve():
                return run
        of = "" if clip is None else f" of {clip}"
        hint = f"make one with `ctxedit tune {clip or 'CLIP'}`, or name one with --run"
        raise InputError(f"no run{of} in {root}", hint)

    @property
    def clip(self) -> Path:
        """The source clip's absolute path."""
        return Path(self._table["clip"])

    @property
    def preset(self) -> str:
        """The preset it was made with."""
        return str(self._table["preset"])

    @property
    def config(self) -> Config:
        """The settings it was made with."""
        return merge(Config(), self._table["config"])

    def check_clip(self) -> None:
        """Raise InputError when the clip is gone or is no longer the file that was tuned on."""
        if not self.clip.exists():
            raise InputError(f"the run's clip is gone: {self.clip}", "put it back, or tune again")
        if fingerprint(self.clip) != self._table["clip_hash"]:
            raise InputError(f"the run's clip has changed: {self.clip}", "tune again on the new clip")

    def done(self, stage: str, key: str) -> bool:
        """Whether the stage finished with this key and its files are still there."""
        entry = self._table["stages"].get(stage)
        if entry is None or entry["key"] != key:
            return False
        return all((self.folder / file).exists() for file in entry["files"])

    def facts(self, stage: str) -> dict[str, Any]:
        """What the stage noted when it finished; empty when it did not."""
        return dict(self._table["stages"].get(stage, {}).get("facts", {}))

    def finish(self, stage: str, key: str, files: list[str], **facts: Any) -> None:
        """Note that a stage has finished; ``files`` are relative to the folder."""
        entry = {"key": key, "files": files, "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "facts": facts}
        self._table["stages"][stage] = entry
        write_toml(self.folder / _FILE, self._table)

    def edits(self) -> list[str]:
        """Names of the finished edit stages, in the order they finished."""
        return [name for name in self._table["stages"] if name.startswith("edit/")]


def _label(clip: Path, preset: str) -> str:
    return f"{slug(clip.stem, 32)}-{slug(Path(preset).stem, 24)}"


def slug(text: str, length: int = 48) -> str:
    """A text as a file name: lower case, words joined by hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:length].strip("-") or "clip"


def key_of(*parts: Any) -> str:
    """A short hash of anything that JSON can write, dataclasses as tables."""
    plain = [to_table(p) if hasattr(p, "__dataclass_fields__") else p for p in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()[:16]


def fingerprint(path: Path) -> str:
    """A hash of a file's size and its first and last megabyte, or of a folder's names and sizes.

    A two-hour file is not read through; a copy of it has the same fingerprint.

    Raises:
        InputError: nothing there.
    """
    if not path.exists():
        raise InputError(f"no file {path}")
    digest = hashlib.sha256()
    if path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            digest.update(f"{file.relative_to(path)}:{file.stat().st_size}\n".encode())
            with file.open("rb") as stream:
                digest.update(stream.read(4096))
    else:
        size = path.stat().st_size
        digest.update(str(size).encode())
        with path.open("rb") as stream:
            digest.update(stream.read(_EDGE))
            if size > _EDGE:
                stream.seek(max(_EDGE, size - _EDGE))
                digest.update(stream.read(_EDGE))
    return digest.hexdigest()[:16]


def versions() -> dict[str, str]:
    """Versions that a result depends on."""
    names = ("ctxedit", "torch", "diffusers", "transformers", "numpy", "imageio-ffmpeg", "av", "decord")
    out = {"python": platform.python_version()}
    for name in names:
        try:
            out[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            out[name] = "not installed"
    return out


def write_toml(path: Path, table: Mapping[str, Any]) -> None:
    """Write a table at once: to a temporary name, then renamed."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(tomli_w.dumps(_plain(table)).encode())
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise OutputError(
            f"{path} cannot be written: {error.strerror}", "check the folder and the disk"
        ) from error


def _plain(value: Any) -> Any:
    """TOML has no null: a missing figure is left out."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items() if v is not None}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value
