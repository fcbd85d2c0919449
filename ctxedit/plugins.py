"""What other packages add to ctxedit: the objects that their entry points name."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from ctxedit.errors import CtxeditError


def load(group: str, what: str, failure: type[CtxeditError]) -> Iterator[tuple[EntryPoint, Any]]:
    """Import the entry points of a group, by name; yields each with the object that it names.

    Args:
        group: e.g. ``ctxedit.metrics``.
        what: what they add, for the error: "metric".
        failure: the error to raise for one that cannot be imported.
    """
    for point in sorted(entry_points(group=group), key=lambda p: p.name):
        try:
            found = point.load()
        except Exception as error:
            line = str(error).strip().split("\n")[0][:160]
            raise failure(
                f"the {what} plugin {point.name} ({point.value}) cannot be imported: {line}",
                "update or uninstall the package that provides it",
            ) from error
        yield point, found
