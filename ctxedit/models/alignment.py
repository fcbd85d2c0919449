"""Which target word takes which source word's attention (prompt-to-prompt, Hertz et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from ctxedit.errors import ConfigError
from ctxedit.models.attention import WordAlignment
from ctxedit.models.backbones import Word

#: Function words, which never make a mask.
_FUNCTION_WORDS = frozenset(
    "a an the its his her and or is are was be style "  # noqa: SIM905
    "of on in at by to with under over near next into from".split()
)


def align(
    source: Sequence[Word],
    target: Sequence[Word],
    length: int,
    how: Literal["auto", "replace", "refine"] = "auto",
    weights: Mapping[str, float] | None = None,
) -> WordAlignment:
    """Token mapping from a source prompt to a target prompt.

    ``replace``: the i-th target word takes the i-th source word's attention; the counts must agree.
    ``refine``: words that both prompts have (longest common subsequence, content words before all others)
    take the source's, new words keep their own. ``auto``: replace where the counts agree. Start, end and
    padding tokens take the source's.

    Args:
        source, target: the prompts' words.
        length: tokens of the text encoder.
        how: see above.
        weights: the equaliser, by target word (any case); 1 for the rest.

    Returns:
        mapper (length, length), share (length,), weight (length,), float32. Each source token's row of the
        mapper sums to at most 1, and the shared columns carry the source's whole attention on shared words.

    Raises:
        ConfigError: ``replace`` with differing counts; a weight for a word that the prompt lacks.
    """
    same_count = len(source) == len(target)
    if how == "replace" and not same_count:
        raise ConfigError(
            f"fusion.cross = 'replace' needs as many words in both prompts ({len(source)} and {len(target)})",
            "use 'refine', or 'auto'",
        )
    mapper, share = torch.zeros(length, length), torch.zeros(length)
    if how == "replace" or (how == "auto" and same_count):
        pairs = list(zip(source, target, strict=True))
    else:
        pairs = _common(source, target)
    for old, new in pairs:
        _map_word(mapper, share, old.tokens, new.tokens)
    _map_word(mapper, share, (0,), (0,))
    ends = _end(source), _end(target)
    words = {token for word in (*source, *target) for token in word.tokens}
    for place in range(1, min(ends)):  # start and end tokens of a long prompt's chunks
        if place not in words:
            _map_word(mapper, share, (place,), (place,))
    _map_padding(mapper, share, *ends)
    return WordAlignment(mapper, share, equaliser(target, length, weights or {}))


def equaliser(target: Sequence[Word], length: int, weights: Mapping[str, float]) -> Tensor:
    """(length,): the weight of each token of the target prompt; raises ConfigError for an absent word."""
    weight = torch.ones(length)
    for text, value in weights.items():
        found = [w for w in target if w.text.lower() == text.lower()]
        if not found:
            raise ConfigError(
                f"fusion.word_weights: the target has no word {text!r}", "give whole words of the target"
            )
        for word in found:
            weight[list(word.tokens)] = value
    return weight


def changed(source: Sequence[Word], target: Sequence[Word]) -> tuple[list[Word], list[Word]]:
    """Content words that only the source has, and those that only the target has."""
    kept_old = {id(a) for a, _ in _common(source, target)}
    kept_new = {id(b) for _, b in _common(source, target)}

    return (
        [w for w in content(source) if id(w) not in kept_old],
        [w for w in content(target) if id(w) not in kept_new],
    )


def content(words: Sequence[Word]) -> list[Word]:
    """The content words."""
    return [w for w in words if _is_content(w.text)]


def _is_content(text: str) -> bool:
    return text[0].isalnum() and text.lower() not in _FUNCTION_WORDS


def columns(words: Sequence[Word], length: int) -> Tensor:
    """(length, words): for each word ones at its tokens; a heat map's values."""
    out = torch.zeros(length, len(words))
    for i, word in enumerate(words):
        out[list(word.tokens), i] = 1
    return out


def _common(source: Sequence[Word], target: Sequence[Word]) -> list[tuple[Word, Word]]:
    """Pairs of the longest common subsequence; one content word counts more than all function words.

    Else "a tiger" and "the tiger with a hat" would agree in "a" and the tiger pass for a change.
    """
    old, new = ([word.text.lower() for word in words] for words in (source, target))
    worth = [len(old) + 1 if _is_content(text) else 1 for text in old]
    best = [[0] * (len(new) + 1) for _ in range(len(old) + 1)]
    for i in reversed(range(len(old))):
        for j in reversed(range(len(new))):
            both = worth[i] + best[i + 1][j + 1] if old[i] == new[j] else 0
            best[i][j] = max(both, best[i + 1][j], best[i][j + 1])
    pairs, i, j = [], 0, 0
    while i < len(old) and j < len(new):
        if old[i] == new[j] and best[i][j] == worth[i] + best[i + 1][j + 1]:
            pairs.append((source[i], target[j]))
            i, j = i + 1, j + 1
        elif best[i + 1][j] >= best[i][j + 1]:
            i += 1
        else:
            j += 1
    return pairs


def _end(words: Sequence[Word]) -> int:
    return words[-1].tokens[-1] + 1 if words else 1


def _map_word(mapper: Tensor, share: Tensor, old: Sequence[int], new: Sequence[int]) -> None:
    """Token by token where the counts agree, else the source's attention spread evenly."""
    if len(old) == len(new):
        mapper[list(old), list(new)] = 1
    else:
        mapper[torch.tensor(old)[:, None], torch.tensor(new)] = 1 / len(new)
    share[list(new)] = 1


def _map_padding(mapper: Tensor, share: Tensor, old_end: int, new_end: int) -> None:
    """End and padding in order; where one side has more, its surplus meets the other's last, mass kept."""
    length = mapper.shape[0]
    old, new = range(old_end, length), range(new_end, length)
    shared = min(len(old), len(new))
    for i in range(shared - 1):
        mapper[old[i], new[i]] = 1
    last_old, last_new = list(old)[shared - 1 :], list(new)[shared - 1 :]
    mapper[torch.tensor(last_old)[:, None], torch.tensor(last_new)] = 1 / len(last_new)
    share[list(new)] = 1
