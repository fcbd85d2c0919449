"""Running checks by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ctxedit.editing.reporter import Reporter
from ctxedit.errors import ConfigError
from ctxedit.training.checks.base import CheckConfig, Row
from ctxedit.training.tasks import base as tasks


def check(
    config: CheckConfig, parts: Sequence[str] | None = None, reporter: Reporter | None = None
) -> Iterator[Row]:
    """Measure parts, or all of them; raises ConfigError for a part that has no check."""
    known = tasks.all_checks()
    if unknown := sorted(set(parts or ()) - set(known)):
        raise ConfigError(f"no check of {unknown[0]!r}", f"parts with a check: {', '.join(known)}")
    for name, one in known.items():
        if parts is None or name in parts:
            yield from one.measure(config, reporter or Reporter())
