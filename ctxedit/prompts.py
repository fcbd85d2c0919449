"""Prompt syntax: weights of words, ``(tiger:1.3)``, and what other tools have and ctxedit does not.

The text encoder would read the rest as words, so it is refused with a hint. AUTOMATIC1111's web UI, ComfyUI,
compel, NovelAI and Midjourney each add marks of their own to prompts. Brackets around ordinary words, as in
prose, are left alone.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from ctxedit.errors import ConfigError, InputError
from ctxedit.files import is_utf8, printable

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)"
# Not the times of day and ratios of prose: (it is 12:30), (a screen, 4:3).
_COLON = r"(?<!\b\d)(?<!\b\d\d):"
_WEIGHT = re.compile(rf"\(([^()]*?[^\W\d_][^()]*?){_COLON}\s*({_NUMBER})\s*\)")
_NO_WEIGHT = "write (tiger:1.5) in the target, or --set fusion.word_weights.tiger=1.5"
_TOKEN = "textual inversions are added with --embedding FILE; write the token alone"
#: What it is, its pattern, and what there is instead.
_FOREIGN = (
    ("a LoRA tag", r"<\s*(?i:lora|lyco|locon|hypernet)\s*:", "a LoRA is given as an option: --lora FILE:0.8"),
    ("an embedding's name", r"\b(?i:embedding)\s*:\s*\S+", _TOKEN),
    ("emphasis by double brackets", r"\(\([^()]*\)\)", _NO_WEIGHT),
    (
        "a weight in a bracket that is not closed",
        rf"\([^()]*?[^\W\d_][^()]*?{_COLON}\s*{_NUMBER}(?![\w.])[^()]*$",
        _NO_WEIGHT,
    ),
    ("a weight that is not a finite number", r"\([^():]+:\s*[-+]?(?i:nan|inf|infinity)\s*\)", _NO_WEIGHT),
    ("an escaped bracket", r"\\[][(){}]", "brackets around words are plain text: write no backslash"),
    ("a weight behind brackets", rf"\)(?:\+|-{{2}}|{_NUMBER}(?![\w.]))", _NO_WEIGHT),
    ("emphasis or a schedule in square brackets", r"\[[^\[\]]*\]", _NO_WEIGHT),
    ("a choice of words", r"\{[^{}]*\|[^{}]*\}", "give one --target for each of them"),
    ("emphasis by braces", r"\{[^{}]*\}", _NO_WEIGHT),
    ("an option of another tool", r"(?:^|\s)--[a-z]+(?=\s|$)", "see `ctxedit run --help` for the options"),
    ("a wildcard", r"\b__\w+?__(?!\w)", "write the words themselves"),
)
_CAPITALS = re.compile(r"(?:^|\s)(BREAK|AND)(?=\s|$)")


def weighted(text: str) -> tuple[str, list[tuple[int, int, float]]]:
    """A target prompt without its weights, and they as (start, end, weight) of its characters.

    ``a (striped tiger:1.3)`` is ``a striped tiger`` with [(2, 15, 1.3)]; the equaliser of the attention maps
    (prompt-to-prompt) takes them.
    """
    rest, out, spans = unicodedata.normalize("NFC", text), "", []
    while found := _WEIGHT.search(rest):
        words, weight = found.groups()
        out += rest[: found.start()]
        spans.append((len(out), len(out) + len(words), float(weight)))
        out, rest = out + words, rest[found.end() :]
    return (out + rest, spans) if spans else (text, [])


def plain(text: str) -> str:
    """A target prompt without its weights."""
    return weighted(text)[0]


def check_texts(prompt: str | None, targets: Sequence[str] = (), negative: str = "") -> None:
    """Raise InputError for empty texts of an edit, ConfigError for a syntax that ctxedit does not have.

    Args:
        prompt: of the source; None where the clip is captioned.
        targets: one for each edit; they may have weights.
        negative: the negative prompt, which may be empty.
    """
    if prompt is not None:
        check_text(prompt, "prompt")
    for target in targets:
        check_text(target, "target")
    check_text(negative, "negative prompt")
    if prompt is not None and not prompt.strip():
        raise InputError("the prompt is empty", "omit it to caption the clip")
    for target in targets:
        if not target.strip():
            raise InputError("the target is empty", "describe what the edited clip should show")
    check_syntax(prompt or "", "prompt")
    for target in targets:
        check_syntax(plain(target), "target")
    check_syntax(negative, "negative prompt")


def check_text(value: object, what: str) -> None:
    """Raise InputError for a value that is not a str, which the Python API cannot rule out."""
    if not isinstance(value, str):
        raise InputError(f"the {what} is not text: {value!r:.80}", "give it as a str")


def check_syntax(text: str, what: str) -> None:
    """Raise ConfigError for syntax that other tools give a meaning, InputError for what is not Unicode text.

    Args:
        text: a prompt; ``{source}`` in it stands for the source prompt where that is allowed.
        what: what it is called in the error.
    """
    if not is_utf8(text):
        raise InputError(f"the {what} is not valid Unicode: {printable(text)[:60]}", "write it in UTF-8")
    rest = text.replace("{source}", " ")
    if found := _WEIGHT.search(rest):
        words, weight = found.groups()
        hint = _weight_hint(words, weight)
        if what != "target":
            hint = f"write “{' '.join(words.split())}” plainly; only the target of an edit takes weights"
        raise ConfigError(f"the {what} has a weight in it: {found.group()[:60]}", hint)
    for name, pattern, hint in _FOREIGN:
        if found := re.search(pattern, rest):
            raise ConfigError(f"the {what} has {name} in it: {found.group().strip()[:60]}", hint)
    # A text all in capitals is loud, and no syntax.
    if (found := _CAPITALS.search(rest)) and any(letter.islower() for letter in rest):
        raise ConfigError(
            f"the {what} has {found.group(1)} in it, which joins prompts in other tools",
            "here a prompt is one text: write it in lower case if it is a word",
        )


def _weight_hint(words: str, weight: str) -> str:
    """How to say the same with settings."""
    names = re.findall(r"\w+(?:['’-]\w+)*", words)
    if not names:
        return _NO_WEIGHT
    said = " ".join(_setting(name, float(weight)) for name in names)
    return f"write “{' '.join(words.split())}” plainly in the target, and add {said}"


def _setting(name: str, weight: float) -> str:
    """An option for a shell; a key of TOML that is more than letters, digits and hyphens wants quotes."""
    plain = re.fullmatch(r"[A-Za-z0-9_-]+", name)
    key = (
        f"fusion.word_weights.{name}={weight:g}" if plain else f"'fusion.word_weights.\"{name}\"={weight:g}'"
    )
    return f"--set {key}"
