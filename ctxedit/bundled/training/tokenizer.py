"""A CLIP tokenizer trained on the world's captions that falls back to bytes, so any text is accepted."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPTokenizer

from ctxedit.bundled.world import scenes

LENGTH = 40
_START, _END = "<|startoftext|>", "<|endoftext|>"


def build(folder: Path, captions: int = 20_000, seed: int = 0) -> CLIPTokenizer:
    """Learn merges so that every word of the world is one token, and save in transformers' format."""
    tokenizer = learn(count=captions, seed=seed)
    tokenizer.save_pretrained(folder)
    return tokenizer


def learn(texts: list[str] | None = None, count: int = 20_000, seed: int = 0) -> CLIPTokenizer:
    """Learn merges from ``texts``, or from so many captions of the drawn world.

    The vocabulary holds each byte twice (inside a word, at its end), as CLIP's does, then the merges.
    """
    # A person's captions may be few: a word that comes twice is worth a token.
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
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in learned["merges"]]
    words = [*alphabet, *(c + "</w>" for c in alphabet)]
    words += [w for w in ("".join(m) for m in merges) if w not in set(words)]
    vocab = {w: i for i, w in enumerate(dict.fromkeys([*words, _START, _END]))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=LENGTH, pad_token=_END)


@torch.no_grad()
def lengthen(table: Tensor, new: Mapping[int, list[int]]) -> Tensor:
    """Rows for tokens that :func:`extend` added: each is the mean of those it stands for.

    Args:
        table: (old tokens, width) embeddings.
        new: for each new id the ids that it stands for.

    Returns:
        (old + new tokens, width); the first rows are the old ones.
    """
    longer = torch.cat([table, table.new_zeros(len(new), table.shape[1])])
    for token, pieces in sorted(new.items()):
        longer[token] = longer[pieces].mean(0)
    return longer


def extend(tokenizer: CLIPTokenizer, texts: Iterable[str]) -> tuple[CLIPTokenizer, dict[int, list[int]]]:
    """The tokenizer with one token for each word of ``texts``; what it had keeps its ids and its tokens.

    New merges come after all others, so words that were one token stay so and texts without a new word are
    split as before.

    Args:
        tokenizer: one of :func:`learn`.
        texts: captions; their words are added in alphabetical order, where they take several tokens.

    Returns:
        The tokenizer, the same if there was nothing to add; and for each new id, in their order, the ids that
        it stands for. Some of those may be new too, and come before it.
    """
    words = sorted({word for text in texts for word in re.findall(r"\w+", text.lower())})
    learned = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    vocab: dict[str, int] = dict(tokenizer.get_vocab())
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in learned["merges"]]
    made: dict[int, list[int]] = {}
    for word in words:
        # Split by all merges so far: those of a word before may have joined parts of this one.
        model = models.BPE(vocab=vocab, merges=merges, end_of_word_suffix="</w>")
        pieces = [token.value for token in model.tokenize(word)]
        joined = pieces[0]
        for count, piece in enumerate(pieces[1:], 2):
            merges.append((joined, piece))
            joined += piece
            if joined not in vocab:
                vocab[joined] = len(vocab)
                made[vocab[joined]] = [vocab[p] for p in pieces[:count]]
    if not made:
        return tokenizer, {}
    length = tokenizer.model_max_length
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=length, pad_token=_END), made
