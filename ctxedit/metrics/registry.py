"""What a metric is, and where the metrics come from.

A metric is a function of an :class:`~ctxedit.metrics.edit.Edit` under the :func:`metric` decorator::

    from ctxedit.metrics import Edit, metric

    @metric("brightness", title="brightness", needs="", better="higher", decimals=2)
    def brightness(edit: Edit) -> float:
        \"\"\"mean grey level of the edit\"\"\"
        return float(edit.frames.mean())

Every module in ``ctxedit/metrics/scores`` is read, and every entry point of the group ``ctxedit.metrics``
(an entry point names a module, or one metric), which a package declares in its pyproject.toml::

    [project.entry-points."ctxedit.metrics"]
    mine = "my_package.metrics"

A metric found there is in ``ctxedit eval``, in the tables, page and JSON of ``ctxedit bench``, and can be
named by ``--metrics``. Nothing here imports torch; importing a metric may.
"""

from __future__ import annotations

import difflib
import pkgutil
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from importlib import import_module
from typing import Any, Literal

from ctxedit import plugins
from ctxedit.errors import ConfigError
from ctxedit.metrics.edit import NEEDS, PLACES, Edit, Metric, Place, Score
from ctxedit.metrics.networks import Networks

GROUP = "ctxedit.metrics"
_KEY = re.compile(r"[a-z][a-z0-9_]*")


def metric(
    key: str,
    *,
    title: str,
    needs: str,
    better: Literal["higher", "lower"],
    decimals: int,
    where: str = "run eval bench",
    order: int = 1000,
    prepare: Callable[[Networks], object] | None = None,
    version: int = 1,
    infinite: float | None = None,
) -> Callable[[Score], Metric]:
    """Turn a function of an ``Edit`` into a :class:`Metric`; its docstring says what it measures.

    Args:
        needs: space-separated names of :data:`NEEDS`.
        where: space-separated names of :data:`PLACES`.
        key, title, better, order, prepare, version, infinite: as in :class:`Metric`.
        decimals: in tables.

    Raises:
        ValueError: a key or a need that is not allowed, or a function without a docstring.
    """
    wanted = tuple(needs.split())
    if not _KEY.fullmatch(key):
        raise ValueError(f"a metric's key is lower-case letters, digits and underscores, not {key!r}")
    places = tuple(where.split())
    if strange := [need for need in wanted if need not in NEEDS]:
        raise ValueError(f"metric {key!r} needs {strange[0]!r}; known are {', '.join(NEEDS)}")
    if strange := [place for place in places if place not in PLACES]:
        raise ValueError(f"metric {key!r} is computed in {strange[0]!r}; known are {', '.join(PLACES)}")

    def wrap(score: Score) -> Metric:
        about = (score.__doc__ or "").strip().split("\n")[0].rstrip(".")
        if not about:
            raise ValueError(f"metric {key!r} has no docstring that says what it measures")
        return Metric(
            key, title, better, decimals, about, wanted, score, places, order, prepare, version,
            getattr(score, "__module__", ""), infinite,
        )  # fmt: skip

    return wrap


def metrics() -> tuple[Metric, ...]:
    """Every metric, built in or from a plugin, in the order of the columns.

    Raises:
        ConfigError: a plugin that cannot be imported, or two metrics of one key.
    """
    return _found(tuple(sys.path))


def named(keys: Iterable[str]) -> tuple[Metric, ...]:
    """The metrics of these keys, in the order of the columns.

    Raises:
        ConfigError: no such metric, or none at all.
    """
    wanted, known = set(keys), {one.key: one for one in metrics()}
    if not wanted:
        raise ConfigError("no metric is named", f"choose from {', '.join(known)}")
    for key in sorted(wanted):
        if key not in known:
            close = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise ConfigError(f"unknown metric {key!r}", f"{hint}There are {', '.join(known)}")
    return tuple(one for one in known.values() if one.key in wanted)


def value_of(edit: Edit, key: str) -> float | None:
    """An edit's value of the metric of this key, computed once; None where it does not apply."""
    return edit.score(named([key])[0])


def usual(place: Place) -> tuple[Metric, ...]:
    """The metrics that are computed there by default, in the order of the columns."""
    return tuple(one for one in metrics() if place in one.where)


@lru_cache(maxsize=4)
def _found(path: tuple[str, ...]) -> tuple[Metric, ...]:
    """Cached by the import path, on which the installed plugins depend."""
    from ctxedit.metrics import scores

    found: dict[str, Metric] = {}
    for module in pkgutil.iter_modules(scores.__path__, f"{scores.__name__}."):
        _take(found, _metrics_in(import_module(module.name)))
    for point, loaded in plugins.load(GROUP, "metric", ConfigError):
        found_here = _metrics_in(loaded)
        if not found_here:
            raise ConfigError(
                f"the metric plugin {point.name} ({point.value}) defines no metric",
                "an entry point names a module with metrics, or one metric",
            )
        _take(found, found_here)
    return tuple(sorted(found.values(), key=lambda one: (one.order, one.key)))


def _metrics_in(thing: Any) -> Sequence[Metric]:
    if isinstance(thing, Metric):
        return [thing]
    own = getattr(thing, "__name__", "")
    return [
        one
        for one in vars(thing).values()
        if isinstance(one, Metric) and (one.source == own or one.source.startswith(f"{own}."))
    ]


def _take(found: dict[str, Metric], more: Sequence[Metric]) -> None:
    for one in more:
        if one.key in found:
            raise ConfigError(
                f"two metrics are named {one.key!r}: in {found[one.key].source} and in {one.source}",
                "rename one of them",
            )
        found[one.key] = one
