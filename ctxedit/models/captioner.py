"""What a clip shows, in words: BLIP-2 on a few frames, then one caption for the clip."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ctxedit.errors import ConfigError, InputError, NumericsError, WeightsError
from ctxedit.models.clip import (
    ImagePreprocessor,
    check_special_tokens,
    checkpoint_folder,
    checkpoint_name,
    load_model,
    load_tokenizer,
)
from ctxedit.models.weights import is_half


class Captioner(Protocol):
    """Anything that says what images show."""

    name: str

    def caption(self, images: list[np.ndarray]) -> list[str]:
        """One caption for each image ``(H, W, 3)`` uint8 RGB, in their order; it may be empty."""
        ...

    def propose(self, images: list[np.ndarray]) -> dict[str, float]:
        """Captions for all the images together, none empty, each with its mean log-likelihood over them.

        A captioner that tells no likelihoods gives the logarithm of each caption's share of the images.
        """
        ...


class Blip2Captioner:
    """``Blip2ForConditionalGeneration``, from a folder or by hub id, with a decoder such as OPT.

    Args:
        folder_or_id: a folder in transformers' format, or a hub id such as ``Salesforce/blip2-opt-2.7b``.
        device, dtype: where and in which precision the network runs.
        offline: use the hub's cache only (``HF_HUB_OFFLINE`` does the same).
        beams: width of the beam search, 1 is greedy; nothing is sampled, so captions are reproducible.
        max_tokens: longest caption.
        name: what the run folder notes; the id, or the folder's name, unless given.

    Raises:
        WeightsError: nothing there, a pickle, or files missing or broken.
    """

    def __init__(
        self,
        folder_or_id: str | Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        offline: bool = False,
        beams: int = 5,
        max_tokens: int = 40,
        name: str | None = None,
    ) -> None:
        from transformers import Blip2ForConditionalGeneration

        folder = checkpoint_folder(folder_or_id, offline, is_half(dtype))
        self.name = name or checkpoint_name(folder_or_id)
        self.device, self.dtype = torch.device(device), dtype
        self._prepare = ImagePreprocessor(folder, square=True)
        self._tokenizer = load_tokenizer(folder)
        self._model = load_model(Blip2ForConditionalGeneration, folder, device, dtype)
        self._prepare.check(self._model.config.vision_config.image_size)
        check_special_tokens(self._tokenizer, self._model.config.text_config.vocab_size, self.name)
        self._prompt = self._start_tokens()
        self._options = self._generation_options(beams, max_tokens)

    @torch.no_grad()
    def caption(self, images: list[np.ndarray]) -> list[str]:
        """One caption for each image ``(H, W, 3)`` uint8 RGB; one at a time, so that memory stays small."""
        return [self._text(self._search(image, 1)[0]) for image in images]

    @torch.no_grad()
    def propose(self, images: list[np.ndarray]) -> dict[str, float]:
        """Every image's beams, each with log p(caption | image) averaged over all images.

        Raises:
            ConfigError: the language model is an encoder and decoder, such as T5.
            NumericsError: a likelihood that is not finite.
        """
        if not getattr(self._model.config, "use_decoder_only_language_model", True):
            raise ConfigError(f"{self.name} does not give likelihoods of captions", "take --caption-by vote")
        beams = [beam for image in images for beam in self._search(image, self._options["num_beams"])]
        # Tokens, not texts: of one text they differ by the spelling, or by a tail behind its first line.
        found = list({tuple(beam.tolist()): beam for beam in beams if self._text(beam)}.values())
        if not found:
            return {}
        rows = pad_sequence(found, batch_first=True, padding_value=-1)
        likelihood = torch.stack([self._likelihood(image, rows) for image in images]).mean(0)
        if not bool(likelihood.isfinite().all()):
            raise NumericsError(
                f"{self.name}: NaN or infinity in a caption's likelihood", "try --dtype float32"
            )
        best: dict[str, float] = {}
        for text, value in zip(map(self._text, found), likelihood.tolist(), strict=True):
            best[text] = max(value, best.get(text, value))
        return best

    def _search(self, image: np.ndarray, count: int) -> list[Tensor]:
        """The tokens of the ``count`` best beams, each up to and with its end, where it has one."""
        pixels = self._prepare([image]).to(self.device, self.dtype)
        prompt = self._prompt.to(self.device)
        beams = self._model.generate(
            pixel_values=pixels, input_ids=prompt, num_return_sequences=count, **self._options
        )
        length, ends = prompt.shape[1], torch.tensor(self._options["eos_token_id"], device=self.device)
        # Transformers gives the prompt back; some versions do not.
        if torch.equal(beams[0, :length], prompt[0]):
            beams = beams[:, length:]
        last = [torch.isin(tokens, ends).nonzero() for tokens in beams]
        return [
            tokens[: int(end[0]) + 1] if len(end) else tokens for tokens, end in zip(beams, last, strict=True)
        ]

    def _text(self, tokens: Tensor) -> str:
        text = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return _tidy(text.strip().split("\n")[0])  # BLIP-2's OPT ends a caption with a new line

    def _likelihood(self, image: np.ndarray, rows: Tensor) -> Tensor:
        """log p of captions' tokens ``(N, L)``, −1 behind their ends, given an image: ``(N,)``, on CPU.

        The image goes through vision transformer and Q-Former once for all of them.
        """
        model, there = self._model, rows >= 0
        pixels = self._prepare([image]).to(self.device, self.dtype)
        image_features = model.vision_model(pixel_values=pixels).last_hidden_state
        queries = model.qformer(
            query_embeds=model.query_tokens, encoder_hidden_states=image_features
        ).last_hidden_state
        embed = model.language_model.get_input_embeddings()
        start = self._prompt[0, -1:].to(self.device).expand(len(rows), 1)
        text_embeddings = embed(torch.cat([start, rows.clamp(min=0)], 1))
        image_embeddings = model.language_projection(queries.to(image_features.dtype)).expand(
            len(rows), -1, -1
        )
        line = torch.cat([image_embeddings, text_embeddings], 1)
        mask = torch.nn.functional.pad(there.long(), (line.shape[1] - there.shape[1], 0), value=1)
        logits = model.language_model(inputs_embeds=line, attention_mask=mask).logits
        # OPT predicts the next token: the position of the start token predicts the first.
        log_probabilities = logits[:, queries.shape[1] : -1].float().log_softmax(-1)
        return (log_probabilities.gather(2, rows.clamp(min=0)[..., None])[..., 0] * there).sum(1).cpu()

    def _start_tokens(self) -> Tensor:
        """``(1, Q + 1)``: one place for each query token of the image, then the beginning of the text."""
        config = self._model.config
        start = config.text_config.bos_token_id
        if start is None:
            start = self._tokenizer.bos_token_id
        if start is None:
            raise WeightsError(
                f"{self.name} has no start-of-text token", "set text_config.bos_token_id in config.json"
            )
        if config.image_token_index is None:
            # Checkpoints from before transformers 4.46 have no placeholder. Any token that is not the
            # start does: every placeholder's embedding is replaced by the image's.
            config.image_token_index = 0 if start != 0 else 1
        return torch.tensor([[config.image_token_index] * config.num_query_tokens + [start]])

    def _generation_options(self, beams: int, max_tokens: int) -> dict[str, Any]:
        text = self._model.config.text_config
        ends = text.eos_token_id if isinstance(text.eos_token_id, list) else [text.eos_token_id]
        ends = sorted({end for end in [*ends, self._tokenizer.eos_token_id] if end is not None})
        places = getattr(text, "max_position_embeddings", None)
        room = max_tokens if places is None else min(max_tokens, places - self._prompt.shape[1])
        if room < 1:
            raise WeightsError(f"{self.name}: the language model has no room for a caption")
        pad = self._tokenizer.pad_token_id
        return {
            "do_sample": False,
            "num_beams": beams,
            "max_new_tokens": room,
            "eos_token_id": ends,
            "pad_token_id": pad if pad is not None else ends[0],
        }


#: Frames of a clip that are captioned.
CAPTIONED = 5


def pick_frames(count: int, n: int = CAPTIONED) -> list[int]:
    """At most ``n`` frame numbers out of ``count``: the middles of ``n`` equal spans, all distinct."""
    if count < 1 or n < 1:
        raise ValueError(f"want at least one frame, got count={count}, n={n}")
    n = min(n, count)
    return [(2 * i + 1) * count // (2 * n) for i in range(n)]


def choose_caption(captions: Sequence[str]) -> str:
    """The caption most frames share; among equals the one whose words the others use most, then the first.

    White space is made single, empty captions are dropped, and case does not tell captions apart.

    Raises:
        InputError: no frame has a caption.
    """
    tidy = [text for text in map(_tidy, captions) if text]
    if not tidy:
        raise no_caption_error()
    votes = Counter(text.casefold() for text in tidy)

    def rank(place: int) -> tuple[int, float, int]:
        agreement = sum(_overlap(tidy[place], other) for other in tidy)
        return votes[tidy[place].casefold()], agreement, -place

    return tidy[max(range(len(tidy)), key=rank)]


def shares(captions: Sequence[str]) -> dict[str, float]:
    """Each caption, tidied, with the logarithm of its share of all; case is one, empty ones are dropped."""
    tidy = [text for text in map(_tidy, captions) if text]
    votes, first = Counter(map(str.casefold, tidy)), {text.casefold(): text for text in reversed(tidy)}
    return {first[said]: math.log(count / len(tidy)) for said, count in votes.items()}


def no_caption_error() -> InputError:
    """What is raised where no frame has a caption."""
    return InputError("no frame of the clip got a caption", "say what it shows with --prompt")


def _tidy(text: str) -> str:
    return re.sub(r"\s+([.,;:!?])", r"\1", " ".join(text.split()))


def _overlap(a: str, b: str) -> float:
    """Shared words over all words (Jaccard), from 0 to 1."""
    one, two = (set(re.findall(r"\w+", text.casefold())) for text in (a, b))
    return len(one & two) / max(len(one | two), 1)
