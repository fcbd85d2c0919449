"""Target prompts that give an order ("make it snow") instead of describing the finished clip."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from ctxedit.errors import InputError
from ctxedit.stages import phrases
from ctxedit.stages.phrases import (
    Span,
    article,
    find,
    has_determiner,
    is_plural,
    joined,
    noun_words,
    word_set,
    words_of,
)

#: Given where no example can be made from the caption.
GENERIC = "a panda walking in the snow"
_THE = r"(?:the|this|that|his|her|its|their|my|all(?: the)?|an?|every) "
_THING = rf"(?:{_THE}\S.*?|it|him|her|them|everything|everyone)"
_ALL = (
    r"(?:the |this |my )?(?:(?:whole|entire) )?"
    r"(?:clip|video|scene|image|picture|photo|footage|film|it|everything)"
)
_SETTING = r"(?:the |its )?(?:background|backdrop|setting|scenery|location|surroundings|place)"
_COLOUR = r"colou?r"

_WEATHER = {
    "rain": "in the rain", "raining": "in the rain", "snow": "in the snow", "snowing": "in the snow",
    "fog": "in the fog", "mist": "in the mist", "storm": "in a storm", "sunshine": "in the sunshine",
}  # fmt: skip
_WEATHER_ADJECTIVES = {
    "rainy", "snowy", "foggy", "misty", "stormy", "sunny", "cloudy", "windy", "hot", "cold", "grey", "bright"
}  # fmt: skip
_TIMES = {
    "night": "at night", "nighttime": "at night", "day": "in daylight", "daytime": "in daylight",
    "sunset": "at sunset", "sunrise": "at sunrise", "dawn": "at dawn", "dusk": "at dusk", "noon": "at noon",
    "evening": "in the evening", "morning": "in the morning", "winter": "in winter", "summer": "in summer",
    "spring": "in spring", "autumn": "in autumn", "fall": "in autumn", "christmas": "at Christmas",
}  # fmt: skip
_MEDIA = word_set(
    "animation anime cartoon comic drawing illustration mosaic painting photo photograph poster render "
    "rendering sculpture sketch watercolor watercolour"
)
_STYLES = word_set(
    "anime cartoon comic cubist cyberpunk ghibli impressionist lego minecraft oil painting pencil pixar "
    "pixel art pop retro sketch steampunk vintage watercolor watercolour noir"
)
_SEEN_OVER = {"sky": "under"}
_ON = word_set("beach moon mars street road grass ice stage mountain hill lawn sand bridge boat roof ship")
_AT = word_set("station airport party school home market zoo")
_ADJECTIVES = frozenset[str]().union(*phrases.KINDS) | word_set(
    "angry bright cute dirty fluffy furry golden happy metallic robotic rusty sad scary shiny striped "
    "transparent wet wooden"
)

#: A way of giving an order, and what makes a caption of it: words, or None where none can be made.
Rewrite = Callable[[re.Match[str], list[str]], "list[str] | None"]


def described(target: str, caption: str) -> str | None:
    """The description that a target which gives an order may mean; None for a target that describes.

    Args:
        target: a target prompt.
        caption: the source prompt.

    Returns:
        For "turn the tiger into a panda" and "a tiger walking": "a panda walking". An empty text where the
        target gives an order of which no caption can be made.
    """
    text = re.sub(r"\s+", " ", target.strip().rstrip(".!? ").removesuffix(" please"))
    polite = re.sub(_POLITE, "", text, count=1, flags=re.I)
    for order, rewrite in _ORDERS:
        if found := re.fullmatch(order, polite, re.I):
            made = rewrite(found, _lowered(words_of(caption)))
            return joined(made) if made is not None and phrases.is_finished(made) else ""
    if not re.match(_WISH, text, re.I):
        return None
    return polite if has_determiner(polite) else ""


def check_describes(target: str, caption: str) -> None:
    """Raise InputError, with an example, for a target that gives an order instead of a description."""
    if (meant := described(target, caption)) is None:
        return
    example = f"for example “{meant}”" if meant else f"all that it shows, as in “{GENERIC}”"
    raise InputError(
        f"“{target}” says what to do; a target describes the finished clip",
        f"{example}; -y uses the text as it is",
    )


_WISH = r"(?:i want|i'd like|i would like) "
_POLITE = (
    r"^(?:(?:please|now|hey|just|let's|can you|could you|would you|will you|you should|i want(?: you)? to|"
    r"i'd like(?: you)? to|i would like(?: you)? to|i want|i'd like|i would like|try to),? )+"
)


def _lowered(caption: list[str]) -> list[str]:
    """A caption that begins as a sentence does, as it stands within one."""
    if caption and caption[0].lower() in phrases.DETERMINERS:
        return [caption[0].lower(), *caption[1:]]
    return caption


# -- what orders ask for -----------------------------------------------------------------------------------


def _change(old: str, new: str, words: list[str]) -> list[str] | None:
    """One thing becomes another: the style, the place, the time, or what a noun names."""
    if re.fullmatch(_ALL, old, re.I):
        return _become(new, words)
    if re.fullmatch(_SETTING, old, re.I):
        return _elsewhere(new, words)
    aspect = noun_words(old)[0].lower() if noun_words(old) else ""
    if aspect in ("weather", "time", "season", "day", "night", "style", "mood", "lighting", "look"):
        return _become(new, words)
    span = _meant(old, words)
    if span is None:
        return None
    if new.lower() in _ADJECTIVES:
        return phrases.with_adjective(words, span, new.lower())
    if find([*words[: span.start], *words[span.end :]], new) is not None:
        return None  # "a cat and a cat"
    determiner = words[span.start].lower()
    if not has_determiner(new) and not is_plural(new) and determiner in ("a", "an", "the"):
        new = new if new.split()[-1].lower() in phrases.MASS else f"{determiner} {new}"
    return phrases.replaced(words, span, new)


def _become(new: str, words: list[str]) -> list[str] | None:
    """The whole clip in another weather, time or style; an adjective or a thing is the subject's."""
    new = re.sub(
        r"^(?:(?:to )?look(?:s)?(?: more)? like|look|be|become|into|to|more|as|like|in) ", "", new, flags=re.I
    )
    plain = new.lower()
    key = " ".join(noun_words(plain.removesuffix(" style").removesuffix(" weather").removesuffix(" time")))
    if plain in ("black and white", "sepia", "slow motion"):
        return [*words, "in", *words_of(plain)]
    if key.removeprefix("at ") in _TIMES:
        return _add_when(_TIMES[key.removeprefix("at ")], words)
    if key in _WEATHER:
        return [*words, *_WEATHER[key].split()]
    if key in _WEATHER_ADJECTIVES and plain not in phrases.COLOURS:
        return [*words, "on", article(key), key, "day"]
    if has_determiner(new) and key.split()[-1:] and key.split()[-1] in _MEDIA:
        shown = phrases.as_phrase(words)
        return None if shown is None else [*words_of(new), "of", *shown]
    if found := re.fullmatch(r"(?:the )?style of (.+)", new, re.I):
        return [*words, "in", "the", "style", "of", *words_of(found[1])]
    if plain.endswith(" style") or set(key.split()) <= _STYLES:
        return [*words, ",", *words_of(plain.removesuffix(" style")), "style"]
    span = phrases.subject(words)
    if span is None:
        return None
    if _is_adjective(new):
        return phrases.with_adjective(words, span, plain)
    return phrases.replaced(words, span, new) if has_determiner(new) else None


def _add_when(when: str, words: list[str]) -> list[str]:
    return [*_without_time(words)[0], *when.split()]


def _meant(what: str, words: list[str]) -> Span | None:
    """What an order is about; a pronoun means the subject."""
    return phrases.subject(words) if what.lower() in ("it", "him", "her", "them") else find(words, what)


def _without_time(words: list[str]) -> tuple[list[str], list[str]]:
    """A caption, and the time that it ends with ("at night")."""
    length = next((n for n in (2, 3) if " ".join(words[-n:]) in _TIMES.values()), 0)
    return words[: len(words) - length], words[len(words) - length :]


def _elsewhere(new: str, words: list[str]) -> list[str] | None:
    """The caption at another place, which may name its own preposition."""
    words, time = _without_time(words)
    at = phrases.place(words)
    kept = words if at is None else words[:at]
    new = new.removeprefix("to ")
    if words_of(new)[0].lower() not in phrases.PLACE | {"next"}:
        noun = new.split()[-1].lower()
        new = f"{'on' if noun in _ON else 'at' if noun in _AT else 'in'} {new}"
        if not has_determiner(new.split(" ", 1)[1]) and noun in _ON | {"forest", "desert", "city", "jungle"}:
            new = new.replace(" ", " the ", 1)
    return [*kept, *words_of(new), *time]


def _recoloured(old: str, colour: str, words: list[str]) -> list[str] | None:
    """A thing with an adjective; sky over the scene where the caption has none."""
    adjective = re.sub(
        r"^(?:(?:to )?look|be|become|turn|more|into|in|to|very) ", "", colour, flags=re.I
    ).lower()
    if re.fullmatch(_ALL, old, re.I):
        return _become(colour, words)
    old = old if noun_words(old) else "it"  # "change the colour to red", "change its colour to red"
    span = _meant(old, words)
    if span is not None and _is_adjective(adjective):
        return phrases.with_adjective(words, span, adjective)
    if span is not None and has_determiner(adjective):
        return _change(old, adjective, words)
    if span is None and (noun := noun_words(old)[-1].lower()) in _SEEN_OVER and _is_adjective(adjective):
        return [*words, _SEEN_OVER[noun], article(adjective), adjective, noun]
    return None if span is None else _acting(span, adjective, words)


def _acting(span: Span, deed: str, words: list[str]) -> list[str] | None:
    """What the subject does, in place of what it did; "wear a hat" is added to it."""
    verb, *more = deed.split()
    base = phrases.base_verb(verb)
    if base is None:
        return None
    doing = [phrases.gerund(base), *more]
    if base in ("wear", "hold", "carry"):
        return [*words[: span.end], *doing, *words[span.end :]]
    rest = words[span.end :]
    if rest[:1] and rest[0].lower() in ("is", "are"):
        doing, rest = [rest[0], *doing], rest[1:]
    if not rest or phrases.base_verb(rest[0]) is None:
        return None if rest and rest[0].lower() not in phrases.PLACE else [*words[: span.end], *doing, *rest]
    at = phrases.place(words)
    kept = [] if at is None or more else words[at:]
    return [*words[: span.end], *doing, *kept]


def _with(what: str, words: list[str], whom: str | None = None) -> list[str] | None:
    """Something more: on whom it is said to be, on the subject where it is worn, else in the scene."""
    if " ".join(noun_words(what)).lower() in _WEATHER:
        return [*words, *_WEATHER[" ".join(noun_words(what)).lower()].split()]
    if not has_determiner(what):
        what = (
            what if is_plural(what) or what.lower() in ("hair", "fur", "fire") else f"{article(what)} {what}"
        )
    worn = what.split()[-1].lower() in phrases.WORN
    scene = whom is not None and bool(re.fullmatch(rf"{_ALL}|{_SETTING}", whom, re.I))
    if whom is not None and not scene:
        pronoun = re.fullmatch(
            r"it|him|her|them|(?:his|her|its|their) (?:head|face|back|neck|body)", whom, re.I
        )
        span = phrases.subject(words) if pronoun else find(words, whom)
        if span is None:
            return None
    else:
        span = phrases.subject(words) if worn else None
    if span is None:
        return [*words, "with", *words_of(what)]
    if is_plural(joined(words[: span.end])) and not is_plural(what):
        return None  # "two people with a hat"
    return [*words[: span.end], "with", *words_of(what), *words[span.end :]]


def _dressed(whom: str, what: str, words: list[str]) -> list[str] | None:
    """Somebody in other clothes than the caption names."""
    span = _meant(whom, words)
    if span is None:
        return None
    after = words[span.end :]
    worn = next((i for i, word in enumerate(after[:6]) if word.lower() in phrases.WORN), None)
    if after[:1] in (["in"], ["wearing"]) and worn is not None:
        after = after[worn + 1 :]
    return [*words[: span.end], "wearing", *words_of(what), *after]


def _given(both: str, words: list[str]) -> list[str] | None:
    """ "the man a hat": where the second thing begins is known by its determiner."""
    found = re.fullmatch(rf"(?P<whom>{_THING}) (?P<what>(?:an?|some|two|three|more) .+|\S+)", both, re.I)
    return None if found is None else _with(found["what"], words, found["whom"])


def _moved(what: str, where: str, words: list[str]) -> list[str] | None:
    """A thing of the caption at another place; one that is not in it is added there."""
    pronoun = re.fullmatch(r"it|him|her|them|everything", what, re.I)
    if pronoun or (not re.match(r"an? ", what, re.I) and find(words, what) is not None):
        return _elsewhere(where, words)
    preposition, _, on = where.partition(" ")
    at = phrases.place(words)
    if at is not None and find(words[at:], on) is not None:
        return [*words, "with", *words_of(what)]
    worn = what.split()[-1].lower() in phrases.WORN
    if preposition.lower() == "on" and (worn or find(words, on) is not None):
        return _with(what, words, on)
    definite = re.match(r"(?:the|his|her|its|their) ", what, re.I)
    return None if definite or preposition == "to" else [*words, "with", *words_of(what), *words_of(where)]


def _without(old: str, words: list[str]) -> list[str] | None:
    old = re.sub(r" (?:from|in|out of|off) (?:the|this|his|her|its) .+$", "", old, flags=re.I)
    span = find(words, old)
    return None if span is None else phrases.removed(words, span)


def _is_adjective(text: str) -> bool:
    words = text.lower().split()
    return len(words) == 1 and (
        words[0] in _ADJECTIVES
        or (words[0].endswith(("ish", "y", "ful", "less", "ous")) and len(words[0]) > 3)
    )


def _shown(text: str) -> Sequence[str] | None:
    return words_of(text) if has_determiner(text) else None


_TO = r"(?:in)?to"
_ORDERS: tuple[tuple[str, Rewrite], ...] = (
    (
        rf"(?:turn|change|make|alter) (?P<old>.+?)(?:'s {_COLOUR}| {_COLOUR}) (?:{_TO} )?(?P<new>\w+)",
        lambda m, c: _recoloured(m["old"], m["new"], c),
    ),
    (
        rf"(?:turn|change|make|set) the {_COLOUR} of (?P<old>.+?) (?:{_TO} )?(?P<new>\w+)",
        lambda m, c: _recoloured(m["old"], m["new"], c),
    ),
    (
        rf"(?:turn|change|convert|transform|switch|go) (?:from .+ )?{_TO} (?P<new>.+)",
        lambda m, c: _become(m["new"], c),
    ),
    (
        rf"(?:turn|change|convert|transform|morph|switch|alter|set|make) (?P<old>.+?) {_TO} (?P<new>.+)",
        lambda m, c: _change(m["old"], m["new"], c),
    ),
    (
        r"(?:replace|swap|exchange|switch) (?P<old>.+?) (?:out )?(?:with|by|for) (?P<new>.+)",
        lambda m, c: _change(m["old"], m["new"], c),
    ),
    (r"substitute (?P<new>.+?) for (?P<old>.+)", lambda m, c: _change(m["old"], m["new"], c)),
    (r"substitute (?P<old>.+?) (?:with|by) (?P<new>.+)", lambda m, c: _change(m["old"], m["new"], c)),
    (rf"(?:make|let) (?:it|this|that|{_ALL}) (?P<new>.+)", lambda m, c: _become(m["new"], c)),
    (
        rf"(?:make|let|have) (?P<old>{_THING}) (?P<new>(?:wear|hold|carry) .+)",
        lambda m, c: _recoloured(m["old"], m["new"], c),
    ),
    (rf"(?:make|turn) (?P<old>{_THING}) (?P<new>an? .+)", lambda m, c: _change(m["old"], m["new"], c)),
    (
        rf"(?:make|let|turn) (?P<old>{_THING}) (?P<new>(?:(?:look|be|become|turn|more|very) )?\S+"
        r"(?: (?:an?|the|some) .+)?)",
        lambda m, c: _recoloured(m["old"], m["new"], c),
    ),
    (
        rf"(?:paint|colou?r|dye|recolou?r|tint) (?P<old>{_THING}) (?:in )?(?P<new>\w+)",
        lambda m, c: _recoloured(m["old"], m["new"], c),
    ),
    (
        rf"(?:put|place|move) (?P<what>{_THING}|\w+s) "
        r"(?P<where>(?:in|on|at|onto|into|near|behind|beside|under|next to|in front of|to) .+)",
        lambda m, c: _moved(m["what"], re.sub(r"^(on|in)to ", r"\1 ", m["where"]), c),
    ),
    (
        r"(?:add|insert|include|attach) (?P<new>.+?) (?:to|onto|on top of|on) (?P<whom>.+)",
        lambda m, c: _moved(m["new"], f"on {m['whom']}", c)
        if not re.fullmatch(rf"{_ALL}|{_SETTING}", m["whom"], re.I)
        else _with(m["new"], c),
    ),
    (r"(?:add|insert|include|attach) (?P<new>.+)", lambda m, c: _with(m["new"], c)),
    (rf"give (?P<both>{_THING} .+)", lambda m, c: _given(m["both"], c)),
    (
        rf"dress (?P<whom>{_THING}) (?:in|with|as) (?P<what>.+)",
        lambda m, c: _dressed(m["whom"], m["what"], c),
    ),
    (
        r"(?:remove|delete|erase|get rid of|take away|take out|cut out|drop|without|lose) "
        r"(?P<old>(?:the|a|an|any|all|his|her|its|their) .+)",
        lambda m, c: _without(m["old"], c),
    ),
    (r"(?:remove|delete|erase|get rid of) (?P<old>.+)", lambda m, c: _without(m["old"], c)),
    (
        r"(?:show|generate|create|produce|render|draw|imagine)(?: me)? "
        rf"(?:(?:an?|the) (?:video|clip|picture|image|photo|film) of )?(?P<rest>{_THE}.+)",
        lambda m, c: list(_shown(m["rest"]) or ()) or None,
    ),
    (
        r"(?:edit|apply|stylize|stylise|restyle|render|use|set|keep|enhance|brighten|darken|blur|crop|rotate|"
        r"flip|zoom in on|zoom out of|increase|decrease|reduce|change|transform|swap|turn|replace|fix|"
        rf"improve) (?:{_THE}.+|it|this|him|her|them|everything|.*style.*)",
        lambda m, c: None,
    ),
)  # fmt: skip
