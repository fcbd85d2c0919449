"""The pages of documentation: their links lead somewhere, their commands exist, the README stays short."""

import re
import shlex
from pathlib import Path

import pytest

from ctxedit.cli.app import build

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    p for p in ROOT.rglob("*.md") if not {"runs", ".venv", "build"} & set(p.relative_to(ROOT).parts)
)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)


def anchors(page: Path) -> set[str]:
    """The anchors that a page's headings get, by GitHub's rule."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def commands(page: Path) -> list[list[str]]:
    """Every ``ctxedit …`` command line of a page's code blocks, split as a shell splits it; in loops, too."""
    lines = [
        line for kind, block in FENCE.findall(page.read_text()) if not kind for line in block.splitlines()
    ]
    parts = [part.strip() for line in lines for part in re.split(r" && |; |\bdo ", line)]
    return [shlex.split(part, comments=True)[1:] for part in parts if part.startswith("ctxedit ")]


CALLS = [(page, call) for page in PAGES for call in commands(page)]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_relative_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for target in LINK.findall(FENCE.sub("", page.read_text())):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        file = file / "README.md" if file.is_dir() else file
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize(
    ("page", "call"), CALLS, ids=[f"{p.parent.name}-{' '.join(c)[:50]}" for p, c in CALLS]
)
def test_every_command_and_option_on_a_page_exists(page: Path, call: list[str]) -> None:
    command, names = build(), list(call)
    while names and names[0] in getattr(command, "commands", {}):
        command = command.commands[names.pop(0)]
    assert len(names) < len(call), f"no command {call[0]}"
    for default in ("run", "edits"):  # a group's command that may be left out
        command = getattr(command, "commands", {}).get(default, command)
    known = {option for parameter in command.params for option in parameter.opts + parameter.secondary_opts}
    given = {word.partition("=")[0] for word in names if re.match(r"--?[A-Za-z]", word)}
    assert given <= known | {"--help", "-h"}, given - known
    # Types, ranges, required arguments and ones too many; nothing is run.
    command.make_context(call[0], names)
