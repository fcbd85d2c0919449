"""How a result was made: the facts that travel inside it, and the command that makes it again."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ctxedit.config import Config, load, to_table
from ctxedit.files import visible
from ctxedit.renames import with_current_names
from ctxedit.tables import DEFAULT_PRESET, preset_names

#: Settings that do not change a result, or are facts of their own.
_ASIDE = (
    "model",
    "seed",
    "device",
    "offload",
    "low_memory",
    "keep_source",
    "round_trip",
    "captioner",
    "caption_by",
)
_BARE = re.compile(r"[A-Za-z0-9_-]+")


def changed_settings(config: Config, preset: str) -> dict[str, Any]:
    """Settings that differ from the preset's, by dotted name; from the default preset's where it is a file
    or is no longer there.

    Raises:
        ConfigError: a preset's own file is broken.
    """
    name = preset if preset in preset_names() else DEFAULT_PRESET
    base = to_table(load(name, flags={"model": config.model}, environ={}))
    return dict(differences(base, to_table(config)))


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """Values of a nested table that another has not, by dotted name."""
    for key, value in new.items():
        name = prefix + (key if _BARE.fullmatch(key) else json.dumps(key))
        if isinstance(value, Mapping) and isinstance(old.get(key), Mapping):
            yield from differences(old[key], value, f"{name}.")
        elif key not in old or old[key] != value:
            yield name, value


def facts(kind: str, config: Config, preset: str, version: str, **more: Any) -> dict[str, Any]:
    """The metadata of a result: plain values for JSON, files by name without their folders.

    Args:
        kind: ``edit`` or ``image``.
        config, preset: its settings and what they started from.
        version: ctxedit's.
        more: what else is to be told; None is left out.
    """
    settings = {k: v for k, v in changed_settings(config, preset).items() if k not in _ASIDE}
    known = {
        "ctxedit": version,
        "kind": kind,
        "preset": preset if preset in preset_names() else Path(preset).name,
        "model": config.model,
        "seed": config.seed,
        "settings": settings,
        **more,
    }
    return {k: _public(v) for k, v in known.items() if v is not None}


def to_text(table: Mapping[str, Any]) -> str:
    """Facts as text for a file: JSON in ASCII, which every container holds."""
    return json.dumps(table, ensure_ascii=True, separators=(",", ":"))


def from_text(text: str | None) -> dict[str, Any] | None:
    """Facts that :func:`to_text` wrote, settings under the names of today; None for any other text."""
    try:
        table = json.loads(text or "", object_hook=with_current_names)
    except (ValueError, RecursionError):
        return None
    return table if isinstance(table, dict) and "ctxedit" in table and "kind" in table else None


def commands(table: Mapping[str, Any], clip: str | None = None) -> list[str]:
    """The command lines that make a result again; two where an edit's seed is not that of its tuning.

    Args:
        table: its facts.
        clip: where the source is; None is the name that it had.
    """
    if table["kind"] == "comparison":
        parts = [part for part in table["of"] if "kind" in part]
        return list(dict.fromkeys(line for part in parts for line in commands(part)))
    source, settings = table.get("source", {}), table.get("settings", {})
    given = [] if table["preset"] not in preset_names() else ["--preset", table["preset"]]
    given += ["--model", table["model"]] if table["model"] != "builtin" else []
    sets = [part for k, v in settings.items() for part in ("--set", f"{k}={_toml(v)}")]
    seed = ["--seed", str(table["seed"])]
    if table["kind"] == "image":
        adapter = ["--adapter", table["adapter"]] if "adapter" in table else []
        for name in ("class", "layout", "encoder"):
            adapter += [f"--{name}", table[name]] if name in table else []
        adapter += ["--grid"] if table.get("grid") else []
        adapter += [part for key, value in table.get("output", {}).items() for part in _option(key, value)]
        words = [table["text"]] if table["text"] else []
        return [_joined(["ctxedit", "t2i", *words, *given, *seed, *sets, *adapter])]
    where, prompt = clip or source.get("name", "CLIP"), ["--prompt", table.get("prompt", "")]
    result = [part for key, value in table.get("output", {}).items() for part in _option(key, value)]
    tuning_seed = table.get("tuning_seed")
    if tuning_seed is None:
        return [_joined(["ctxedit", "run", where, table["target"], *prompt, *given, *seed, *sets, *result])]
    tune = ["ctxedit", "tune", where, *prompt, *given, "--seed", str(tuning_seed), *sets]
    return [_joined(tune), _joined(["ctxedit", "edit", where, table["target"], *seed, *sets, *result])]


def flat(table: Mapping[str, Any]) -> dict[str, Any]:
    """What an edit may differ in from another with the same target, by name."""
    kept = {k: table[k] for k in ("preset", "model", "seed", "prompt") if k in table}
    output = {k: v for k, v in table.get("output", {}).items() if k != "output"}
    return {**kept, **table.get("settings", {}), **output}


def distinct_labels(labels: Sequence[str], settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Labels of which no two are the same: with the settings that differ, or with numbers where none do."""
    known = list(zip(labels, settings, strict=True))
    made = []
    for label, own in known:
        others = [other for name, other in known if name == label]
        names = {k for other in others for k in other}
        differ = sorted(k for k in names if any(other.get(k) != own.get(k) for other in others))
        said = ", ".join(f"{k} {own[k]}" for k in differ if k in own)
        made.append(f"{label} ({said})" if said else label)
    seen = Counter[str]()
    for i, (label, count) in enumerate(zip(made, map(Counter(made).get, made), strict=True)):
        if count and count > 1:
            seen[label] += 1
            made[i] = f"{label} #{seen[label]}"
    return made


def _joined(words: Sequence[str]) -> str:
    """A command line for a shell; control characters are written as escapes, which ``$'…'`` reads."""
    return " ".join(shlex.quote(word) if word == visible(word) else f"$'{_escaped(word)}'" for word in words)


def _escaped(word: str) -> str:
    return visible(word.replace("\\", "\\\\").replace("'", "\\'"))


def _option(key: str, value: Any) -> list[str]:
    name = f"--{key.replace('_', '-')}"
    return [name] if value is True else [name, str(value)]


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False)


def _public(value: Any) -> Any:
    """A value without the folders of the machine that it was made on."""
    if isinstance(value, Mapping):
        return {k: _public(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_public(v) for v in value]
    if isinstance(value, (str, Path)) and os.path.isabs(value):
        return Path(value).name
    return str(value) if isinstance(value, Path) else value
