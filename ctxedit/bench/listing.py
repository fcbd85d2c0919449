"""The list of a comparison or a batch: clips, their prompts and their targets.

TOML is described here; :mod:`ctxedit.bench.formats` reads CSV, JSON Lines and folders into the same form.
Unknown keys are refused. ``[[clips]]`` has ``path`` and ``prompt``, optionally ``name`` (the file's),
``mask`` (a video or image, white where the object is) and ``control`` (a map for presets that take one), and
``[[clips.targets]]`` with ``prompt`` and ``kind``, optionally ``mask`` (over the clip's), ``ideal`` (the true
edit) and ``expect`` (a table of what the built-in judge should see). Relative paths are relative to the list;
a URL that fsspec opens (``s3://bucket/a.mp4``) is fetched into the cache.

For several objects, ``composition`` is given beside ``expect``: ``groups``, tables with ``name`` and, where
it matters, ``colour``, ``count`` and ``size``; for two groups also the ``relation`` of the first to the
second. ``changed`` is the number of the edited group, from 0; without it, the relation is edited. The
composition judge is then used, which of ``expect`` only knows the background.

Masks are used only for the metrics: the methods do not see them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from reprlib import repr as brief
from typing import Any

from ctxedit.bench.formats import base_of, entries
from ctxedit.config import ClipConfig
from ctxedit.errors import ConfigError, InputError
from ctxedit.files import expanded
from ctxedit.storage import fetch, is_url
from ctxedit.synthetic.compositions import Composition
from ctxedit.synthetic.judge import ANSWERS

KINDS = ("object", "background", "style", "colour", "count", "size", "relation", "other")


@dataclass(frozen=True)
class Target:
    """A target of a clip; attributes as in the list."""

    prompt: str
    kind: str = "other"
    mask: Path | None = None
    ideal: Path | None = None
    expect: dict[str, str] = field(default_factory=dict)
    composition: Composition | None = None
    changed: int | None = None


@dataclass(frozen=True)
class Clip:
    """A clip of the list; ``prompt`` is empty if the clip is to be captioned.

    ``span`` selects frames if the clip is too short for those of the settings. ``remote`` has the URLs of
    fetched files, each with the local copy that the paths refer to.
    """

    name: str
    path: Path
    prompt: str
    targets: tuple[Target, ...]
    mask: Path | None = None
    control: Path | None = None
    span: ClipConfig | None = None
    remote: tuple[tuple[str, Path], ...] = ()


def read_list(
    path: Path, batch: bool = False, targets: Sequence[str] = (), url: str | None = None
) -> tuple[Clip, ...]:
    """Read and check a list; no clip is opened.

    Args:
        path: the list, or a folder of clips.
        batch: clips may come without a prompt; they are then captioned.
        targets: further target prompts for every clip.
        url: where ``path`` was fetched from; its relative paths are relative to it.

    Raises:
        ConfigError: no such list, not of its form, an unknown or missing key, a wrong value, the same name or
            target twice, or nothing in it.
        InputError: a file that it names does not exist, or an empty prompt.
    """
    folder = None if url is None else url.rpartition("/")[0]
    reading = _Reading(base_of(path), batch, tuple(targets), folder)
    if path.is_dir() and not batch:
        raise ConfigError(f"{path} is a folder", "a comparison needs a list that gives each clip's prompt")
    clips = tuple(_clip(entry.table, reading, entry.where) for entry in entries(path))
    _distinct((clip.name for clip in clips), "name", str(path), "give one of them a `name`")
    return clips


@dataclass(frozen=True)
class _Reading:
    """How a list is read: where its relative paths start, and what may be missing."""

    folder: Path
    batch: bool
    targets: tuple[str, ...]
    url: str | None
    fetched: dict[str, Path] = field(default_factory=dict)


def _clip(entry: Any, reading: _Reading, where: str) -> Clip:
    entry, reading = _as_table(entry, where), replace(reading, fetched={})
    _known(entry, {"name", "path", "prompt", "mask", "control", "targets"}, where)
    path = _path(entry, "path", reading, where)
    if path is None:
        raise ConfigError(f"{where} has no path", "name the clip's file")
    name = _text(entry, "name", where) or path.stem
    where = f"{where} ({name})"
    prompt = _text(entry, "prompt", where, None if reading.batch else "say what the clip shows")
    targets = entry.get("targets", [])
    if not isinstance(targets, list):
        raise ConfigError(
            f"{where}: targets must be a list, not {brief(targets)}", "one entry for each target"
        )
    if not (targets or reading.targets):
        hint = "each target is a table [[clips.targets]] with a prompt"
        if reading.batch:
            hint = "name them in the list, or for all clips: ctxedit batch LIST TEXT"
        raise ConfigError(f"{where} has no targets", hint)
    read = [_target(t, reading, f"{where}, target {i}") for i, t in enumerate(targets, 1)]
    read += [Target(text) for text in reading.targets if text not in [t.prompt for t in read]]
    _distinct((target.prompt for target in read), "target", where, "leave one of them out")
    mask, control = (_path(entry, key, reading, where) for key in ("mask", "control"))
    remote = tuple(reading.fetched.items())
    return Clip(name, path, prompt or "", tuple(read), mask, control, remote=remote)


def _target(entry: Any, reading: _Reading, where: str) -> Target:
    entry = _as_table(entry, where)
    _known(entry, {"prompt", "kind", "mask", "ideal", "expect", "composition", "changed"}, where)
    prompt = _text(entry, "prompt", where, "describe what the edited clip should show")
    kind = _text(entry, "kind", where) or "other"
    if kind not in KINDS:
        raise ConfigError(f"{where}: kind = {kind!r}", f"one of: {', '.join(KINDS)}")
    expect = _as_table(entry.get("expect", {}), f"{where}: expect")
    _known(expect, set(ANSWERS), f"{where}: expect")
    for question, answer in expect.items():
        if answer not in ANSWERS[question]:
            raise ConfigError(
                f"{where}: expect.{question} = {brief(answer)}",
                f"the judge knows: {', '.join(ANSWERS[question])}",
            )
    mask, ideal = (_path(entry, key, reading, where) for key in ("mask", "ideal"))
    return Target(prompt or "", kind, mask, ideal, dict(expect), *_composition(entry, expect, where))


def _composition(
    entry: Mapping[str, Any], expect: Mapping[str, str], where: str
) -> tuple[Composition | None, int | None]:
    """The composition of a target, and the group that changes."""
    table, changed = entry.get("composition"), entry.get("changed")
    if table is None:
        if changed is not None:
            raise ConfigError(
                f"{where}: changed without a composition", "it numbers a group of the composition"
            )
        return None, None
    try:
        composition = Composition.from_table(_as_table(table, f"{where}: composition"))
    except ValueError as error:
        raise ConfigError(f"{where}: composition: {error}") from error
    if changed is None and composition.relation is None:
        raise ConfigError(
            f"{where}: neither changed nor a relation", "give the number of the edited group, counting from 0"
        )
    if changed is not None and changed not in range(len(composition.groups)):
        raise ConfigError(f"{where}: changed = {brief(changed)}", f"0 to {len(composition.groups) - 1}")
    if strange := sorted(set(expect) - {"background"}):
        raise ConfigError(
            f"{where}: expect.{strange[0]} beside a composition", "the composition implies it; leave it out"
        )
    return composition, changed


def _as_table(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"{where} must be a table, not {brief(value)}", "a table has keys, such as path or prompt"
        )
    return value


def _known(table: Mapping[str, Any], keys: set[str], where: str) -> None:
    if strange := sorted(set(table) - keys):
        raise ConfigError(f"{where}: unknown key {strange[0]}", f"known here: {', '.join(sorted(keys))}")


def _text(table: Mapping[str, Any], key: str, where: str, required: str | None = None) -> str | None:
    """A text of the table; ``required`` is the hint when there is none."""
    value = table.get(key)
    if value is None and required:
        raise ConfigError(f"{where} has no {key}", required)
    if value is not None and not isinstance(value, str):
        raise ConfigError(f"{where}: {key} = {brief(value)}", "it must be text")
    if value is not None and not value.strip():
        raise InputError(f"{where}: the {key} is empty", required)
    return value


def _path(table: Mapping[str, Any], key: str, reading: _Reading, where: str) -> Path | None:
    text = _text(table, key, where)
    if text is None:
        return None
    if reading.url is not None and not is_url(text) and not expanded(text).is_absolute():
        text = f"{reading.url}/{text}"
    if is_url(text):
        return reading.fetched.setdefault(text, fetch(text))
    path = reading.folder / expanded(text)
    if not os.path.exists(path):
        raise InputError(f"{where}: {key} {path} does not exist", "paths are relative to the list's folder")
    return path


def _distinct(names: Iterable[str], what: str, where: str, hint: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ConfigError(f"{where}: the {what} {name!r} occurs twice", hint)
        seen.add(name)
