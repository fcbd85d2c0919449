"""Help on a narrow terminal, where a table would truncate options and texts: each name above its text."""

from __future__ import annotations

import shutil
import textwrap
from typing import Any

#: Columns that Typer's own tables of options need.
WIDE = 80
_INDENT = "  "


def is_narrow() -> bool:
    """Whether the terminal is too narrow for the tables of options."""
    return shutil.get_terminal_size((WIDE, 24)).columns < WIDE


def help_of(command: Any, context: Any) -> str:
    """The help of a command or of a group of commands, as wide as the terminal."""
    width = shutil.get_terminal_size((WIDE, 24)).columns
    parts = [_filled(command.get_usage(context), width, "")]
    parts += [_filled(text, width, "") for text in (command.help or "").split("\n\n")]
    for title, entries in _sections(command, context).items():
        parts.append(f"{title}:")
        parts += [_entry(name, text, width) for name, text in entries]
    if command.epilog:
        parts.append(_filled(command.epilog, width, ""))
    return "\n\n".join(part for part in parts if part)


def _sections(command: Any, context: Any) -> dict[str, list[tuple[str, str]]]:
    """Arguments, options by their panel, commands: name and text of each."""
    sections: dict[str, list[tuple[str, str]]] = {}
    for parameter in command.get_params(context):
        if (record := parameter.get_help_record(context)) is not None:
            usual = "Arguments" if parameter.param_type_name == "argument" else "Options"
            title = getattr(parameter, "rich_help_panel", None) or usual
            sections.setdefault(title, []).append(record)
    for name in command.list_commands(context) if hasattr(command, "list_commands") else ():
        inner = command.get_command(context, name)
        if not inner.hidden:
            text = (inner.help or "").split("\n\n")[0]
            sections.setdefault("Commands", []).append((name, text))
    return sections


def _entry(name: str, text: str, width: int) -> str:
    """A name and, indented below it, its text."""
    lines = [_filled(name.replace("|", " | "), width, "    ")]
    if text:
        lines.append(textwrap.indent(_filled(text, width - len(_INDENT), ""), _INDENT))
    return "\n".join(lines)


def _filled(text: str, width: int, hanging: str) -> str:
    """Wrap at spaces; a word that is longer than a line stays whole."""
    return textwrap.fill(
        " ".join(text.split()),
        max(width, 1),
        subsequent_indent=hanging,
        break_long_words=False,
        break_on_hyphens=False,
    )
