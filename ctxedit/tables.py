"""Settings as files: reading TOML, finding presets, laying one preset over another."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ctxedit.errors import ConfigError, did_you_mean
from ctxedit.files import TEXT_LIMIT, check_depth, check_file, read_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

#: Presets travel inside the wheel; in a checkout they are the top-level folder.
PRESET_FOLDERS = (Path(__file__).parent / "presets", Path(__file__).parents[1] / "presets")
#: The key by which a preset names the preset that it changes.
BASE = "base"
#: The preset of commands and functions that are given none.
DEFAULT_PRESET = "contextdiff"


def read_table(path: Path) -> dict[str, Any]:
    """A TOML file as a table; raises ConfigError when it is missing, no regular file or not TOML."""
    text = read_text(path, "TOML file", TEXT_LIMIT, ConfigError)
    try:
        return parse(text)
    except ValueError as error:
        raise ConfigError(
            f"{path}: {error}", f"a config file is TOML; see `ctxedit presets show {DEFAULT_PRESET}`"
        ) from error


def parse(text: str) -> dict[str, Any]:
    """TOML as a table.

    Raises:
        ValueError: not TOML, a number of thousands of digits, or nested without end.
    """
    try:
        table = tomllib.loads(text)
        check_depth(table)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return table


def merge_into(under: dict[str, Any], over: Mapping[str, Any]) -> None:
    """Merge the nested table ``over`` into ``under``, in place; ``over`` wins."""
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(under.get(key), dict):
            merge_into(under[key], value)
        else:
            under[key] = dict(value) if isinstance(value, Mapping) else value


def nested(key: str, value: Any) -> dict[str, Any]:
    """The nested table of ``table.key``, with one value in it."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return dict(value)


def preset_names() -> list[str]:
    """Names of the presets that ship, sorted."""
    return sorted({p.stem for folder in PRESET_FOLDERS if folder.is_dir() for p in folder.glob("*.toml")})


def preset_path(name: str) -> Path:
    """The preset's file; raises ConfigError when there is none of that name."""
    if name.endswith(".toml"):
        check_file(Path(name), "preset", TEXT_LIMIT, ConfigError)
        return Path(name)
    if name in preset_names():
        return next(file for folder in PRESET_FOLDERS if (file := folder / f"{name}.toml").is_file())
    raise ConfigError(
        f"no preset named {name!r}",
        f"{did_you_mean(name, preset_names())}there are: {', '.join(preset_names())}",
    )


def preset_files(name: str) -> list[Path]:
    """The preset's file and those of its bases, as far as they are named by a path."""
    found: list[Path] = []
    while name.endswith(".toml"):
        path = preset_path(name)
        if path in found:
            break
        found.append(path)
        base = str(read_table(path).get(BASE, ""))
        name = str(path.parent / base) if base.endswith(".toml") else ""
    return found


def preset_table(name: str, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A preset's whole table, laid over that of its base, and that over its own, where it names one.

    Tables are merged key by key, ``[builtin]`` tables with each other: an overlay of the base stays above
    the plain settings of what changes it.

    Args:
        name: a preset's name or path. A base that is a path is taken from the folder of the file naming it.
        above: files that led here.

    Raises:
        ConfigError: no such preset or base, or bases that lead back to themselves.
    """
    path = preset_path(name)
    if path.resolve() in above:
        chain = " → ".join(p.stem for p in (*above, path.resolve()))
        raise ConfigError(f"a preset is its own base: {chain}", "take one of the base keys out")
    table = read_table(path)
    if BASE not in table:
        return table
    base = table.pop(BASE)
    if not isinstance(base, str) or not base:
        raise ConfigError(f"{path.name}: base = {base!r}", f"it names a preset: {', '.join(preset_names())}")
    found = str(path.parent / base) if base.endswith(".toml") else base
    try:
        whole = preset_table(found, (*above, path.resolve()))
    except ConfigError as error:
        if above:
            raise
        raise ConfigError(f"{path.name}: its base: {error}", error.hint) from error
    merge_into(whole, table)
    return whole
