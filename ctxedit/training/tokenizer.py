"""A CLIP tokenizer trained on captions; it falls back to bytes, so that any text can be encoded."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ctxedit.synthetic import scenes

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

LENGTH = 40
_START, _END = "<|startoftext|>", "<|endoftext|>"


def build(folder: Path, captions: int = 20_000, seed: int = 0) -> CLIPTokenizer:
    """Train on captions of drawn scenes and save in transformers' format."""
    tokenizer = learn(count=captions, seed=seed)
    tokenizer.save_pretrained(folder)
    return tokenizer


def learn(texts: list[str] | None = None, count: int = 20_000, seed: int = 0) -> CLIPTokenizer:
    """Train a tokenizer on ``texts``, or on ``count`` captions of drawn scenes.

    As in CLIP's tokenizer, the vocabulary has each byte twice (within and at the end of a word), then the
    merges.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    # A user's data set may have few captions, so a word that occurs twice is worth a token.
    rare = 5 if texts is None else 2
    if texts is None:
        rng = np.random.default_rng(seed)
        texts = [scenes.caption(scenes.draw_scene(rng), rng) for _ in range(count)]
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Punctuation(),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        min_frequency=rare,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    learner.train_from_iterator((text.lower() for text in texts), trainer)
    learned = json.loads(learner.to_str())["model"]
    merges = _merges(learned)
    words = [*alphabet, *(c + "</w>" for c in alphabet)]
    words += [w for w in ("".join(m) for m in merges) if w not in set(words)]
    vocab = {w: i for i, w in enumerate(dict.fromkeys([*words, _START, _END]))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=LENGTH, pad_token=_END)


def extend(tokenizer: CLIPTokenizer, texts: Iterable[str]) -> tuple[CLIPTokenizer, dict[int, list[int]]]:
    """Add one token for each word of ``texts``; existing tokens keep their ids.

    The new merges come after all others, so that texts without a new word are tokenised as before.

    Args:
        tokenizer: one of :func:`learn`; special tokens that were added to it later are left out.
        texts: captions. Words that take several tokens are added in alphabetical order.

    Returns:
        The tokenizer (the same object if nothing was added); and for each new id, in ascending order, the
        ids of the tokens that it joins, of which some may be new, with lower ids.
    """
    from tokenizers import models
    from transformers import CLIPTokenizer

    words = sorted({word for text in texts for word in re.findall(r"\w+", text.lower())})
    learned = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    vocab: dict[str, int] = dict(learned["vocab"])
    merges = _merges(learned)
    added: dict[int, list[int]] = {}
    for word in words:
        # Tokenise with all merges so far: those of an earlier word may join parts of this one.
        model = models.BPE(vocab=vocab, merges=merges, end_of_word_suffix="</w>")
        pieces = [token.value for token in model.tokenize(word)]
        joined = pieces[0]
        for count, piece in enumerate(pieces[1:], 2):
            merges.append((joined, piece))
            joined += piece
            if joined not in vocab:
                vocab[joined] = len(vocab)
                added[vocab[joined]] = [vocab[p] for p in pieces[:count]]
    if not added:
        return tokenizer, {}
    length = tokenizer.model_max_length
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=length, pad_token=_END), added


@torch.no_grad()
def extend_embeddings(table: Tensor, added: Mapping[int, list[int]]) -> Tensor:
    """Embeddings for the tokens that :func:`extend` added: the mean of those that each joins.

    Args:
        table: (tokens, width).
        added: as :func:`extend` returns it.

    Returns:
        (tokens + added tokens, width), starting with ``table``.
    """
    longer = torch.cat([table, table.new_zeros(len(added), table.shape[1])])
    for token, pieces in sorted(added.items()):
        longer[token] = longer[pieces].mean(0)
    return longer


def _merges(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The merges of a serialised BPE model, which older versions of tokenizers write as strings."""
    pairs = (m.split(" ") if isinstance(m, str) else m for m in model["merges"])
    return [(first, second) for first, second in pairs]
