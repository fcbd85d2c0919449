"""The run folder: what each stage left and what of it is still valid.

``runs/<clip>-<preset>-<date>-<id>/`` holds ``run.toml`` (settings, versions, hashes of inputs, finished
stages) and one artefact a stage. A stage is valid while the key it was finished with, a hash of all that it
depends on, is the key that it would get today, and its files have the hashes that they were finished with.

One process at a time works in a run folder (:meth:`Run.working`); entries of several processes are merged.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from ctxedit.config import Config, merge, to_table
from ctxedit.contents import fingerprint as fingerprint
from ctxedit.display import facts_html
from ctxedit.errors import InputError, OutputError
from ctxedit.files import neighbour
from ctxedit.locks import held, is_held
from ctxedit.media.temporary import (
    check_writable,
    replace,
    staging,
    sweep,
    synchronize,
    synchronize_one,
)
from ctxedit.run_file import is_ruined, name_of, noted, read_run
from ctxedit.run_file import write_toml as write_toml

DEFAULT_ROOT = Path("runs")
_FILE = "run.toml"
#: Held for as long as a stage works; held for a moment while ``run.toml`` or a table beside it is rewritten.
_WORK_LOCK, _NOTES_LOCK = ".work.lock", ".notes.lock"
Say = Callable[[str], None]


def _silent(text: str) -> None:
    """Discard a message."""


@dataclass(frozen=True)
class StageStatus:
    """Whether a stage need not run again; where it finished with the same key but must, why (``flaw``)."""

    done: bool
    flaw: str | None = None


class Run:
    """A run folder on disk. Every change is written to a temporary name and renamed.

    Raises:
        InputError: the folder holds no ``run.toml``, or one that is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / _FILE).is_file():
            guess = "" if folder.exists() else neighbour(folder)
            raise InputError(
                f"{folder} is not a run folder",
                f"{guess}a run folder holds run.toml; `ctxedit tune` makes one",
            )
        self._table = read_run(folder / _FILE)

    @classmethod
    def create(
        cls, root: Path, clip: Path, preset: str, config: Config, identity: str, warn: Say = _silent
    ) -> Run:
        """The run of this identity: the one there is, or a new one.

        A run whose ``run.toml`` is damaged starts over in its place, with a warning to ``warn``.

        Raises:
            OutputError: the place cannot be written.
        """
        if found := cls.find(root, clip, preset, identity):
            return found
        broken = _candidates(root, clip, preset, identity)
        name = f"{_label(clip, preset)}-{time.strftime('%Y%m%d')}-{identity[:8]}"
        folder = broken[0] if broken else root / name
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
        with held(folder / _NOTES_LOCK):
            if found := cls.find(root, clip, preset, identity):
                return found  # another process was faster
            if os.path.lexists(folder / _FILE):
                warn(f"{folder / _FILE} is damaged and kept as {_FILE}.broken: the run starts over")
                replace(folder / _FILE, folder / f"{_FILE}.broken")
            write_toml(folder / _FILE, table)
        return cls(folder)

    @classmethod
    def find(cls, root: Path, clip: Path, preset: str, identity: str) -> Run | None:
        """The run of this identity, if there is one; those that are damaged are passed over."""
        for folder in _candidates(root, clip, preset, identity):
            with suppress(InputError):
                run = cls(folder)
                if run._table.get("identity") == identity:
                    return run
        return None

    @classmethod
    def check_damage(cls, root: Path, clip: Path, preset: str, identity: str | None) -> None:
        """Raise InputError if the ``run.toml`` of a run of this identity is damaged; of any if it is None."""
        for folder in _candidates(root, clip, preset, identity or ""):
            cls(folder)

    @classmethod
    def newest(cls, root: Path, warn: Say = _silent, clip: Path | None = None) -> Run:
        """The run that was changed last, of ``clip`` if given; damaged ones are skipped with a warning.

        Raises:
            InputError: there is none.
        """
        skipped = 0
        for file in sorted(root.glob(f"*/{_FILE}"), key=_changed, reverse=True):
            try:
                run = cls(file.parent)
            except InputError as error:
                warn(f"{error.message}: this run is skipped")
                skipped += 1
                continue
            if clip is None or run.clip == clip.resolve():
                return run
        of = "" if clip is None else f" of {clip}"
        hint = f"make one with `ctxedit tune {clip or 'CLIP'}`, or name one with --run"
        raise InputError(f"no {'undamaged ' if skipped else ''}run{of} in {root}", hint)

    @classmethod
    def noted_of(cls, root: Path, clip: Path, stage: str, key: str) -> dict[str, Any]:
        """Facts of a stage that finished with this key in any run of a clip; empty if none did."""
        for file in sorted(root.glob(f"{slug(clip.stem, 32)}-*/{_FILE}"), key=_changed, reverse=True):
            with suppress(InputError):
                run = cls(file.parent)
                if run.done(stage, key):
                    return run.facts(stage)
        return {}

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

    def _repr_html_(self) -> str:
        """In a notebook, what the run is."""
        targets = [str(self.facts(name).get("target", name)) for name in self.edits()]
        return facts_html(
            {
                "run": self.folder, "clip": self.clip, "prompt": self.facts("caption").get("text", ""),
                "preset": self.preset, "model": self.config.model, "seed": self.config.seed,
                "edits": "; ".join(targets) or "none yet",
            }
        )  # fmt: skip

    def check_clip(self, warn: Say = _silent) -> None:
        """Raise InputError when the clip is gone or is no longer the file that was tuned on.

        A run of ctxedit 0.1 recorded too little of its clip to tell. It continues with the present clip;
        since the hash is in every key, its stages are made again.
        """
        if not self.clip.exists():
            raise InputError(f"the run's clip is missing: {self.clip}", "restore it, or tune again")
        now, noted = fingerprint(self.clip), self._table["clip_hash"]
        if len(noted) != len(now):
            warn(f"{self.folder} was made by an older ctxedit, without checksums: its stages are made again")
            self._table["clip_hash"] = now
        elif now != noted:
            raise InputError(f"the run's clip has changed: {self.clip}", "tune again on the new clip")

    @staticmethod
    def in_use(folder: Path) -> bool:
        """Whether a process works in a run's folder, whose ``run.toml`` may be damaged."""
        return is_held(folder / _WORK_LOCK)

    @contextmanager
    def working(self, say: Say = _silent) -> Iterator[None]:
        """Hold the run for work; waits for another process that holds it, with a message to ``say``.

        What that one noted is read, and what a killed one left half written is deleted. May be nested.

        Raises:
            OutputError: the folder cannot be written.
        """

        def waiting() -> None:
            say(f"another ctxedit is working in {self.folder}: waiting for it to finish")

        with held(self.folder / _WORK_LOCK, waiting) as nested:
            if not nested:
                clip_hash = self._table["clip_hash"]
                self._table = {**read_run(self.folder / _FILE), "clip_hash": clip_hash}
                for folder in (self.folder, *(f for f in self.folder.iterdir() if f.is_dir())):
                    sweep(folder)
            yield

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Hold the tables of the run for as long as it takes to read, change and write one."""
        with held(self.folder / _NOTES_LOCK):
            yield

    def stage_status(self, stage: str, key: str) -> StageStatus:
        """Whether the stage finished with this key and its files are still there, unchanged."""
        entry = self._table["stages"].get(stage)
        if entry is None or entry["key"] != key:
            return StageStatus(False)
        flaws = (self._flaw(file) for file in entry["files"])
        flaw = next((f for f in flaws if f), None)
        return StageStatus(flaw is None, flaw)

    def done(self, stage: str, key: str) -> bool:
        """Whether the stage finished with this key and its files are what they were then."""
        return self.stage_status(stage, key).done

    def facts(self, stage: str) -> dict[str, Any]:
        """Facts of a finished stage; empty if it did not finish."""
        return dict(self._table["stages"].get(stage, {}).get("facts", {}))

    def flaw_of(self, stage: str, name: str) -> str | None:
        """What is wrong with one file of a finished stage, or None."""
        entry = self._table["stages"].get(stage, {"files": []})
        return self._flaw(next((f for f in entry["files"] if name_of(f) == name), name))

    def may_replace(self, stage: str, key: str, output: Path) -> bool:
        """Whether an output that exists is the stage's own of this key: as it was written, or ruined since.

        A ruined file is one that was truncated or emptied, so that no user's work is in it.
        """
        file = self._known(stage, key, output)
        if file is None or not output.exists():
            return False
        return fingerprint(output) in (file["hash"], file.get("before")) or is_ruined(output, file)

    def finish(self, stage: str, key: str, files: Sequence[str], **facts: Any) -> None:
        """Note that a stage has finished, and the hashes of its files, which are relative to the folder."""
        self._note(stage, key, [noted(self.folder / name, name) for name in files], facts)

    def publish(
        self,
        stage: str,
        key: str,
        outputs: Sequence[Path],
        write: Callable[[list[Path]], object],
        overwrite: bool,
        kept: Sequence[str] = (),
        **facts: Any,
    ) -> None:
        """Make a stage's results for the person, and note that it has finished.

        They are written apart, noted with their hashes, and only then renamed: killed at whichever moment,
        the file at their path is known to be the run's own.

        Args:
            stage, key: as for :meth:`finish`.
            outputs: files or folders of one parent folder, inside the run folder or not.
            write: makes them all at the paths that it is given, in the same order.
            overwrite: replace what is there; the stage's own of this key is replaced in any case.
            kept: further files of the stage, which are there already.
            facts: as for :meth:`finish`.

        Raises:
            OutputError: an output exists, the place cannot be written, the disk is full.
        """
        free = [overwrite or self.may_replace(stage, key, path) for path in outputs]
        with staging(outputs[0].parent, outputs[0].stem) as place:
            sweep(outputs[0].parent)
            staged = [place / path.name for path in outputs]
            write(staged)
            synchronize(place)
            for path, mine in zip(outputs, free, strict=True):
                check_writable(path, mine)
            files = [noted(self.folder / name, name) for name in kept]
            for new, path in zip(staged, outputs, strict=True):
                files.append(noted(new, self._name(path)))
                old = self._known(stage, key, path)
                if old is not None and old["hash"] != files[-1]["hash"]:
                    # Until the new file is in place: if killed before, the old one is still the run's own.
                    files[-1]["before"] = old["hash"]
            self._note(stage, key, files, facts)
            for new, path in zip(staged, outputs, strict=True):
                replace(new, path)
            synchronize_one(outputs[0].parent)

    def edits(self) -> list[str]:
        """Names of the finished edit stages, in the order they finished."""
        return [name for name in self._table["stages"] if name.startswith("edit/")]

    def _note(self, stage: str, key: str, files: list[dict[str, Any]], facts: Mapping[str, Any]) -> None:
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        entry = {"key": key, "files": files, "finished": now, "facts": dict(facts)}
        with self.noting():
            # Another process may have written since this one read the file.
            with suppress(InputError):
                self._table["stages"] = read_run(self.folder / _FILE)["stages"]
            self._table["stages"][stage] = entry
            write_toml(self.folder / _FILE, self._table)

    def _name(self, path: Path) -> str:
        """An output's path for ``run.toml``: relative inside the run folder, so that it can be moved."""
        here, whole = self.folder.resolve(), path.resolve()
        return str(whole.relative_to(here) if whole.is_relative_to(here) else whole)

    def _known(self, stage: str, key: str, output: Path) -> dict[str, Any] | None:
        """The entry of an output of a stage with this key."""
        entry = self._table["stages"].get(stage)
        if entry is None or entry["key"] != key:
            return None
        name = self._name(output)
        return next((f for f in entry["files"] if isinstance(f, dict) and f["name"] == name), None)

    def _flaw(self, file: Any) -> str | None:
        name = name_of(file)
        path = self.folder / name
        if not path.exists():
            return f"{name} is missing"
        if isinstance(file, str):
            return f"{name} has no checksum"
        if path.is_file() and path.stat().st_size != file["size"]:
            return f"{name} is {'empty' if not path.stat().st_size else 'damaged'}"
        return None if fingerprint(path) == file["hash"] else f"{name} is damaged"


def _candidates(root: Path, clip: Path, preset: str, identity: str) -> list[Path]:
    found = sorted(root.glob(f"{_label(clip, preset)}-*-{identity[:8] or '*'}"), reverse=True)
    return [folder for folder in found if (folder / _FILE).is_file()]


def _changed(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:  # deleted meanwhile
        return 0.0


def _label(clip: Path, preset: str) -> str:
    return f"{slug(clip.stem, 32)}-{slug(Path(preset).stem, 24)}"


def slug(text: str, length: int = 48, fallback: str = "clip") -> str:
    """A text as a file name: lower case, words joined by hyphens; ``fallback`` for one without a to z."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:length].strip("-") or fallback


def key_of(*parts: Any) -> str:
    """A short hash of anything that JSON can write, dataclasses as tables."""
    plain = [to_table(p) if hasattr(p, "__dataclass_fields__") else p for p in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()[:16]


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
