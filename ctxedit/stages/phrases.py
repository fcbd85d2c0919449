"""Noun phrases of a caption: found, replaced, removed, given an adjective, in plain English.

Captions are short and simple ("a dog and a cat playing on the beach"), so a few word lists are enough. Where
they are not, nothing is returned: no example is better than a broken one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


def word_set(text: str) -> frozenset[str]:
    """A set of words."""
    return frozenset(text.split())


NUMBERS = word_set("two three four five six seven eight nine ten several many some few")
DETERMINERS = NUMBERS | word_set("a an the this that these those his her its their my our one another")
PLACE = word_set(
    "in on at along through across over under near beside by down up inside outside around behind above "
    "below against beneath between"
)
_PREPOSITIONS = PLACE | word_set("with of from for to into onto off like as during towards toward past")
_CONJUNCTIONS = word_set("and or but while")
_PLURAL_FORMS = {"is": "are", "was": "were", "has": "have"}
_CLAUSE = word_set("is are was were has have can will that who which whose where")
#: Verbs of captions; with -s and -ing they are found, too.
VERBS = word_set(
    "bark carry chase climb cook crawl cry dance dive drink drive eat fall fight float fly hold hop "
    "jump laugh lie look move paddle play read ride roar roll run sail sing sit skate ski sleep smile "
    "spin stand surf swim swing talk turn walk watch wave wear work"
)
#: What somebody wears; "a man in a suit" says nothing of a place.
WORN = word_set(
    "armor armour beard boots cap cape coat costume crown dress glasses gloves goggles hat helmet "
    "hoodie jacket jeans mask robe scarf shirt shoes skirt suit sunglasses sweater tie tuxedo uniform "
    "wings"
)
COLOURS = word_set(
    "black blue brown dark gold golden gray green grey orange pink purple red silver white yellow"
)
#: Adjectives of which a noun has one.
KINDS = (
    COLOURS,
    word_set("old older young younger new"),
    word_set("big bigger fat giant huge large larger little small smaller tall taller tiny"),
)
_MULTIWORD = (("in", "front", "of"), ("on", "top", "of"), ("next", "to"), ("close", "to"))
MASS = word_set("fire fog gold grass ice lava mist mud rain sand smoke snow space sunshine water")


@dataclass(frozen=True)
class Span:
    """A noun phrase: words ``start`` to ``end``; the noun itself begins at ``noun``."""

    start: int
    noun: int
    end: int


def words_of(text: str) -> list[str]:
    """Words and punctuation of a text."""
    return re.findall(r"[^\s,;:]+|[,;:]", text.strip().rstrip(".!"))


def joined(words: Sequence[str]) -> str:
    """Words as a text, with ``a`` and ``an`` as the next word wants them."""
    fixed = list(words)
    for i, (word, after) in enumerate(pairwise(words)):
        if word.lower() in ("a", "an"):
            fixed[i] = article(after)
    return re.sub(r" ([,;:])", r"\1", " ".join(fixed))


def article(noun: str) -> str:
    """``a`` or ``an``."""
    vowel = re.match(r"[aeiou]|hour|honest", noun, re.I) and not re.match(r"uni|use|one|eu", noun, re.I)
    return "an" if vowel else "a"


def noun_words(phrase: str) -> list[str]:
    """A noun phrase's words without its determiner."""
    words = words_of(phrase)
    return words[1:] if words and words[0].lower() in DETERMINERS else words


def has_determiner(phrase: str) -> bool:
    """Whether a noun phrase begins with ``a``, ``the``, ``two`` and the like."""
    words = words_of(phrase)
    return bool(words) and words[0].lower() in DETERMINERS


def is_plural(phrase: str) -> bool:
    """Whether a noun phrase means several."""
    words = words_of(phrase)
    words = words[: next((i for i in range(1, len(words)) if _bounds(words, i)), len(words))]
    if words[0].lower() in ("a", "an", "one", "this", "that"):
        return False
    return words[0].lower() in NUMBERS or bool(re.search(r"(?<![su])s$|people$|children$", words[-1]))


def gerund(verb: str) -> str:
    """``run`` as ``running``."""
    if verb.endswith("ie"):
        return f"{verb[:-2]}ying"
    if verb.endswith("e") and not verb.endswith("ee"):
        return f"{verb[:-1]}ing"
    short = re.search(r"(?:^|[^aeiou])[aeiou][^aeiouwxy]$", verb)
    return f"{verb}{verb[-1]}ing" if short else f"{verb}ing"


def base_verb(word: str) -> str | None:
    """The verb of VERBS that a word is a form of."""
    word = word.lower()
    return next((v for v in VERBS if word in (v, f"{v}s", f"{v}es", f"{v[:-1]}ies", gerund(v))), None)


def find(words: Sequence[str], phrase: str) -> Span | None:
    """Where a caption names what ``phrase`` names, by all its words or by its noun; None if it does not."""
    wanted = [_singular(w) for w in noun_words(phrase)]
    own = [_singular(w) for w in words]
    for tail in (wanted, wanted[-1:]):
        for i in range(len(words) - len(tail) + 1) if tail else ():
            if own[i : i + len(tail)] == tail and _ends_at(words, i + len(tail)):
                return Span(_begins_at(words, i), i, i + len(tail))
    return None


def subject(words: Sequence[str]) -> Span | None:
    """The noun phrase that a caption begins with; None for several ("a dog and a cat …"), or if unclear."""
    if not words:
        return None
    end = next((i for i in range(1, len(words)) if _bounds(words, i)), len(words))
    if end > 5 or end < 1 + (words[0].lower() in DETERMINERS) or words[end : end + 1] in (["and"], [","]):
        return None
    return Span(0, end - 1, end)


def place(words: Sequence[str]) -> int | None:
    """Where the phrase begins that says at a caption's end where it is ("on the beach"); None without one."""
    for i in range(len(words) - 2, 0, -1):
        if words[i].lower() in PLACE:
            worn = words[-1].lower() in WORN
            return None if worn or any(_bounds(words, j) for j in range(i + 2, len(words))) else i
        if words[i].lower() in _PREPOSITIONS - {"of"} or words[i].lower() in _CONJUNCTIONS:
            return None
    return None


def replaced(words: list[str], span: Span, new: str) -> list[str] | None:
    """The caption with another noun phrase in this one's place; verbs agree with it."""
    after = agreeing(words[span.end :], is_plural(new)) if span.start == 0 else words[span.end :]
    return None if after is None else [*words[: span.start], *words_of(new), *after]


def with_adjective(words: list[str], span: Span, adjective: str) -> list[str]:
    """The caption with an adjective before the noun; a colour, age or size replaces another."""
    same = next((kind for kind in KINDS if adjective in kind), frozenset())
    before = [word for word in words[span.start : span.noun] if word.lower() not in same]
    sizes = DETERMINERS | (KINDS[2] if adjective in COLOURS else frozenset())  # a big red dog
    at = next((i for i, word in enumerate(before) if word.lower() not in sizes), len(before))
    return [*words[: span.start], *before[:at], adjective, *before[at:], *words[span.noun :]]


def removed(words: list[str], span: Span) -> list[str] | None:
    """The caption without a noun phrase; None where nothing is left that stands by itself."""
    before, after = words[: span.start], words[span.end :]
    if after[:1] == ["and"]:
        if before and before[-1] == ",":  # a dog, [a cat] and a bird
            return [*before[:-1], *after]
        rest = agreeing(after[1:], False, skip=True) if not before else after[1:]
        return None if rest is None else [*before, *rest]
    if after[:1] == [","] and (not before or before[-1] in (",", *PLACE, "with")):
        return [*before, *after[1:]]
    if before and before[-1] == "and":
        return _without_last(before[:-1], after)
    for lead in _MULTIWORD:
        if tuple(w.lower() for w in before[-len(lead) :]) == lead:
            return [*before[: -len(lead)], *after]
    if before and (before[-1].lower() in _PREPOSITIONS - {"of"} or _is_gerund(before, len(before) - 1)):
        return [*before[:-1], *after]
    return None if before else _emptied(words)


def agreeing(after: list[str], plural: bool, skip: bool = False) -> list[str] | None:
    """What follows a subject, its verb agreeing; with ``skip`` the subject stands before it."""
    at = next((i for i in range(1, len(after)) if _bounds(after, i)), len(after)) if skip else 0
    if at >= len(after):
        return after
    verb = after[at].lower()
    forms = _PLURAL_FORMS if plural else {v: k for k, v in _PLURAL_FORMS.items()}
    if verb in forms:
        return [*after[:at], forms[verb], *after[at + 1 :]]
    base = base_verb(verb)
    if base is None or verb == gerund(base) or (verb == base) == plural:
        return after
    return None


def as_phrase(words: list[str]) -> list[str] | None:
    """A caption as it stands behind "a painting of": its verb becomes a participle; None where it cannot."""
    for i, word in enumerate(words):
        lower = word.lower()
        if lower in ("is", "are") and i + 1 < len(words):
            after = words[i + 1].lower()
            return [*words[:i], *words[i + 1 :]] if after in PLACE or after.endswith("ing") else None
        if lower in _CLAUSE:
            return None
        base = base_verb(word)
        if base and i and lower not in (gerund(base), base) and words[i - 1].lower() not in DETERMINERS:
            return [*words[:i], gerund(base), *words[i + 1 :]]
    return words


def is_finished(words: Sequence[str]) -> bool:
    """Whether words read as a caption: no leading or trailing connective, no two determiners in a row."""
    lower = [w.lower() for w in words]
    if not lower or not re.match(r"\w", lower[0]):
        return False
    connective = _PREPOSITIONS | _CONJUNCTIONS | {",", "is", "are", "was", "were"}
    if lower[0] in connective or lower[-1] in (connective | DETERMINERS - NUMBERS) - {"down", "up"}:
        return False
    pairs = list(pairwise(lower))
    determiners = DETERMINERS - NUMBERS
    return not any(
        (a in determiners and b in determiners | connective) or (a == b) or {a, b} <= _CONJUNCTIONS | {","}
        for a, b in pairs
    )


def _singular(word: str) -> str:
    word = word.lower()
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def _is_gerund(words: Sequence[str], i: int) -> bool:
    """Whether a word is what the subject does, not an adjective ("a smiling woman")."""
    adjective = i == 0 or words[i - 1].lower() in DETERMINERS
    return len(words[i]) > 5 and words[i].lower().endswith("ing") and not adjective


def _bounds(words: Sequence[str], i: int) -> bool:
    """Whether a word cannot be part of the noun phrase before it."""
    word = words[i].lower()
    known = _PREPOSITIONS | _CONJUNCTIONS | _CLAUSE | {",", ";", ":"}
    return word in known or _is_gerund(words, i) or base_verb(word) is not None


def _ends_at(words: Sequence[str], i: int) -> bool:
    """Whether a noun phrase may end before a word; a noun there makes it another thing ("dog house")."""
    if i >= len(words) or _bounds(words, i):
        return True
    return words[i].lower().endswith(("ly", "ed"))


def _begins_at(words: Sequence[str], noun: int) -> int:
    """Where the phrase of a noun begins: its determiner, or else the first adjective."""
    i = noun
    while i > 0 and noun - i < 4:
        if words[i - 1].lower() in DETERMINERS:
            return i - 1
        if _bounds(words, i - 1):
            return i
        i -= 1
    return i


def _without_last(before: list[str], after: list[str]) -> list[str] | None:
    """The caption without the last member of a list: "a dog, a cat" takes ``and`` for its comma."""
    if "," in before:
        at = len(before) - 1 - before[::-1].index(",")
        before = [*before[:at], "and", *before[at + 1 :]]
        return [*before, *after]
    rest = agreeing(after, False)
    return None if rest is None else [*before, *rest]


def _emptied(words: list[str]) -> list[str] | None:
    """The place by itself, where the only one in it is removed: "an empty beach"."""
    at = place(words)
    noun = [] if at is None else noun_words(joined(words[at + 1 :]))
    if not noun or noun[-1].lower() in MASS or "of" in noun:
        return None
    return [*([] if is_plural(" ".join(["the", *noun])) else ["an"]), "empty", *noun]
