"""Captions in English, with several wordings for each scene."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ctxedit.synthetic.vocabulary import BACKGROUNDS, BY_NAME, GREY_STYLES, STYLES


def _article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def word(
    actors: Sequence[tuple[str, str | None]],
    background: str,
    style: str,
    rng: np.random.Generator | None = None,
) -> str:
    """One sentence for a scene.

    Args:
        actors: (name, colour or None) of each object, the main one first.
        background: a key of ``BACKGROUNDS``.
        style: a key of ``STYLES``.
        rng: chooses one of the wordings; None gives the canonical one, which is fixed forever.

    Returns:
        Lower case, no full stop, e.g. ``a tiger walking on the beach, watercolor style``.
    """

    def pick(options: Sequence[str]) -> str:
        return options[0] if rng is None else options[int(rng.integers(len(options)))]

    def chance(p: float) -> bool:
        return rng is not None and bool(rng.random() < p)

    names = []
    for name, colour in actors:
        noun = BY_NAME[name].words[0] if not chance(0.15) else pick(BY_NAME[name].words)
        seen = colour if style not in GREY_STYLES else None
        names.append(_article(f"{seen} {noun}" if seen else noun))
    subject = names[0] if len(names) == 1 else f"{names[0]} next to {names[1]}"
    verb = ""
    if len(names) == 1 and (rng is None or chance(0.7)):
        verb = (" is " if chance(0.3) else " ") + pick(BY_NAME[actors[0][0]].verbs)
    where = pick(BACKGROUNDS[background])
    suffixes, prefixes = STYLES[style]
    if style == "plain":
        return f"{pick(prefixes) if chance(0.3) else ''}{subject}{verb} {where}"
    if chance(0.35):
        return f"{pick(prefixes)}{subject}{verb} {where}"
    return f"{subject}{verb} {where}{pick(suffixes)}"
