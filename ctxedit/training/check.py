"""Running checks by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ctxedit.editing.reporter import Reporter
from ctxedit.errors import ConfigError
from ctxedit.training.checks.base import CheckConfig, CheckRow
from ctxedit.training.tasks import base as tasks


def check(
    config: CheckConfig, parts: Sequence[str] | None = None, reporter: Reporter | None = None
) -> Iterator[CheckRow]:
    """Measure parts, or all that have weights; raises ConfigError for a part that has no check."""
    known = tasks.all_checks()
    if unknown := sorted(set(parts or ()) - set(known)):
        raise ConfigError(f"no check of {unknown[0]!r}", f"parts with a check: {', '.join(known)}")
    reporter = reporter or Reporter()
    for name, one in known.items():
        if parts is None and (lacking := [part for part in one.components if not config.has(part)]):
            reporter.warn(f"no weights of {lacking[0]}: {name} is not checked")
        elif parts is None or name in parts:
            yield from one.measure(config, reporter)
