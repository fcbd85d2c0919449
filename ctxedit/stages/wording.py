"""Target prompts that give an order ("make it snow") instead of describing the finished clip."""

from __future__ import annotations

import re
from collections.abc import Callable

from ctxedit.errors import InputError

#: An order, and the description that it most likely means, made from the caption of the source.
_ORDERS: tuple[tuple[str, Callable[[re.Match[str], str], str]], ...] = (
    (
        r"(?:turn|change|convert|transform|morph) (?P<old>.+?) (?:in)?to (?P<new>.+)",
        lambda m, caption: _replaced(caption, m["old"], m["new"]),
    ),
    (
        r"(?:replace|swap|substitute|exchange) (?P<old>.+?) (?:with|by|for) (?P<new>.+)",
        lambda m, caption: _replaced(caption, m["old"], m["new"]),
    ),
    (
        r"make (?P<old>(?:the|his|her|its|their) .+?) (?:(?:in)?to )?(?P<new>an? .+)",
        lambda m, caption: _replaced(caption, m["old"], m["new"]),
    ),
    (
        r"make (?P<old>(?:the|his|her|its|their) .+?) (?P<new>\S+)",
        lambda m, caption: _replaced(caption, m["old"], f"a {m['new']} {_noun(m['old'])}"),
    ),
    (r"make (?:it|this|them|everything|him|her) (?P<new>.+)", lambda m, caption: f"{caption}, {m['new']}"),
    (
        r"(?:add|insert|put|give (?:it|him|her|them)) (?P<new>.+)",
        lambda m, caption: f"{caption} with {m['new']}",
    ),
    (
        r"(?:remove|delete|erase|get rid of) (?P<old>.+)",
        lambda m, caption: _without(caption, m["old"]),
    ),
    (r"(?:edit|apply|use|set|render|stylize|stylise|please) .+", lambda m, caption: caption),
)
_ARTICLE = re.compile(r"^(?:the|a|an|this|that|his|her|its|their) ", re.I)


def described(target: str, caption: str) -> str | None:
    """The description that a target which gives an order may mean; None for a target that describes.

    Args:
        target: a target prompt.
        caption: the source prompt.

    Returns:
        For "turn the tiger into a panda" and "a tiger walking": "a panda walking".
    """
    text = re.sub(r"^(?:please|can you|could you|now) ", "", target.strip().rstrip(".!"), flags=re.I)
    for order, rewrite in _ORDERS:
        if found := re.fullmatch(order, text, re.I):
            return rewrite(found, caption)
    return None


def check_describes(target: str, caption: str) -> None:
    """Raise InputError, with an example, for a target that gives an order instead of a description."""
    if (meant := described(target, caption)) is not None:
        raise InputError(
            f"“{target}” says what to do; a target describes the finished clip",
            f"for example “{meant}”; -y uses the text as it is",
        )


def _noun(text: str) -> str:
    return _ARTICLE.sub("", text)


def _replaced(caption: str, old: str, new: str) -> str:
    """The caption with the new thing in the old one's place, or after it where the old one is not named."""
    noun = _noun(old)
    pattern = re.compile(rf"(?:\b(?:the|an?) )?\b{re.escape(noun)}\b", re.I)
    if noun and pattern.search(caption):
        return pattern.sub(lambda _: new, caption, count=1)
    return f"{caption}, {new}"


def _without(caption: str, old: str) -> str:
    noun = re.escape(_noun(old))
    left = re.sub(rf" ?(?:\b(?:with|and|in|on) )?(?:\b(?:the|an?) )?\b{noun}\b", "", caption, flags=re.I)
    return " ".join(left.split()) or caption
