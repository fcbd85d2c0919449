"""A CLIP tokenizer trained on captions; it falls back to bytes, so that any text can be encoded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

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
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in learned["merges"]]
    words = [*alphabet, *(c + "</w>" for c in alphabet)]
    words += [w for w in ("".join(m) for m in merges) if w not in set(words)]
    vocab = {w: i for i, w in enumerate(dict.fromkeys([*words, _START, _END]))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=LENGTH, pad_token=_END)
