"""Captions of compositions in natural English, several wordings for each count, relation and size."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from ctxedit.synthetic.compositions import STYLES, Composed, Composition, Group
from ctxedit.synthetic.vocabulary import BACKGROUNDS, BY_NAME, COLOURS
from ctxedit.synthetic.vocabulary import STYLES as STYLE_WORDS

COUNT_WORDS: dict[int, tuple[str, ...]] = {
    2: ("two", "a pair of", "a couple of"),
    3: ("three", "a group of three", "a trio of"),
    4: ("four", "a group of four"),
}
SIZE_WORDS: dict[str, tuple[str, ...]] = {
    "tiny": ("tiny", "very small", "miniature"),
    "huge": ("huge", "giant", "enormous"),
}
#: A template for each wording; the canonical one first. ``{a}`` is the first group, ``{b}`` the second.
RELATION_WORDS: dict[str, tuple[str, ...]] = {
    "left of": (
        "{a} to the left of {b}",
        "{a} on the left of {b}",
        "{a} on the left and {b} on the right",
        "{b} to the right of {a}",
    ),
    "right of": (
        "{a} to the right of {b}",
        "{a} on the right of {b}",
        "{a} on the right and {b} on the left",
        "{b} to the left of {a}",
    ),
    "above": ("{a} above {b}", "{a} over {b}", "{b} below {a}", "{b} under {a}"),
    "below": ("{a} below {b}", "{a} under {b}", "{b} above {a}"),
    "behind": ("{a} behind {b}", "{b} in front of {a}"),
    "in front of": ("{a} in front of {b}", "{b} behind {a}"),
}
_BESIDE = ("{a} and {b}", "{a} next to {b}", "{a} with {b}")
_PLURALS = {
    "sheep": "sheep", "man": "men", "person": "people", "snowman": "snowmen", "woman": "women",
    "octopus": "octopuses", "bus": "buses", "fox": "foxes", "puppy": "puppies", "bunny": "bunnies",
}  # fmt: skip


def plural(noun: str) -> str:
    """The plural of one of the world's nouns."""
    return _PLURALS.get(noun, f"{noun}s")


def caption(composed: Composed, rng: np.random.Generator | None = None) -> str:
    """A caption of a drawn composition: the canonical one without ``rng``, else a random wording."""
    return word(composed.composition, composed.scene.background, composed.scene.style, rng)


def word(
    composition: Composition, background: str, style: str = "plain", rng: np.random.Generator | None = None
) -> str:
    """One sentence for a composition.

    Args:
        composition: what is there.
        background: a key of ``BACKGROUNDS``.
        style: a key of ``STYLES``.
        rng: draws one of the wordings; None gives the canonical one, which is fixed forever.

    Returns:
        Lower case, no full stop, e.g. ``a red car to the left of a cat on the beach``.
    """

    names = [_phrase(group, rng) for group in composition.groups]
    if len(names) == 3:
        subject = f"{names[0]}, {names[1]} and {names[2]}"
    elif len(names) == 1:
        subject = names[0]
    else:
        template = _pick(rng, RELATION_WORDS[composition.relation] if composition.relation else _BESIDE)
        subject = template.format(a=names[0], b=names[1])
    where = _pick(rng, BACKGROUNDS[background])
    suffixes, prefixes = STYLE_WORDS[style]
    if rng is not None and rng.random() < 0.3:
        return f"{_pick(rng, prefixes)}{subject} {where}"
    return f"{subject} {where}{_pick(rng, suffixes)}"


def _pick(rng: np.random.Generator | None, options: Sequence[str]) -> str:
    """One of the options, or the first without ``rng``; always consumes exactly one random number."""
    return options[0] if rng is None else options[int(rng.random() * len(options))]


def _phrase(group: Group, rng: np.random.Generator | None) -> str:
    """A group with its article or number, e.g. ``three red cars``.

    Every group consumes the same number of random numbers, so that two captions that differ in one group have
    the same wording elsewhere.
    """
    rare, plain = (1.0, 0.0) if rng is None else rng.random(2)
    noun = _pick(rng if rare < 0.15 else None, BY_NAME[group.name].words)
    # The plain number is far more likely than the other wordings: it is what people write.
    number = _pick(rng if plain >= 0.6 else None, COUNT_WORDS.get(group.count, ("",)))
    size = _pick(rng, SIZE_WORDS[group.size]) if group.size else None
    described = " ".join(w for w in (size, group.colour, noun if group.count == 1 else plural(noun)) if w)
    if group.count > 1:
        return f"{number} {described}"
    return ("an " if described[0] in "aeiou" else "a ") + described


def words() -> list[str]:
    """Every word in captions of compositions, sorted, including those of the easy scenes."""
    nouns = [noun for thing in BY_NAME.values() for noun in thing.words]
    templates = [t for options in RELATION_WORDS.values() for t in options]
    texts = [*nouns, *map(plural, nouns), *_BESIDE, *templates, *COLOURS, "a", "an", "and"]
    tables = [*COUNT_WORDS.values(), *SIZE_WORDS.values(), *BACKGROUNDS.values()]
    texts += [text for options in tables for text in options]
    texts += [text for style in STYLES for options in STYLE_WORDS[style] for text in options]
    return sorted({w for text in texts for w in re.findall(r"\w+", re.sub(r"\{.\}", "", text))})
