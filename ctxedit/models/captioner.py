"""What a clip shows, in words: BLIP-2 on a few frames, then one caption for the clip."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ctxedit.errors import InputError, WeightsError
from ctxedit.models.clip import (
    ImagePreprocessor,
    checkpoint_folder,
    checkpoint_name,
    load_model,
    load_tokenizer,
)


class Captioner(Protocol):
    """Anything that says what images show."""

    name: str

    def caption(self, images: list[np.ndarray]) -> list[str]:
        """One caption for each image ``(H, W, 3)`` uint8 RGB, in their order; it may be empty."""
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

        folder = checkpoint_folder(folder_or_id, offline)
        self.name = name or checkpoint_name(folder_or_id)
        self.device, self.dtype = torch.device(device), dtype
        self._prepare = ImagePreprocessor(folder, square=True)
        self._tokenizer = load_tokenizer(folder)
        self._model = load_model(Blip2ForConditionalGeneration, folder, device, dtype)
        self._prepare.check(self._model.config.vision_config.image_size)
        self._prompt = self._start_tokens()
        self._options = self._generation_options(beams, max_tokens)

    @torch.no_grad()
    def caption(self, images: list[np.ndarray]) -> list[str]:
        """One caption for each image ``(H, W, 3)`` uint8 RGB; one at a time, so that memory stays small."""
        return [self._caption_one(image) for image in images]

    def _caption_one(self, image: np.ndarray) -> str:
        pixels = self._prepare([image]).to(self.device, self.dtype)
        prompt = self._prompt.to(self.device)
        tokens = self._model.generate(pixel_values=pixels, input_ids=prompt, **self._options)[0]
        length = prompt.shape[1]
        # Transformers gives the prompt back; some versions do not.
        if torch.equal(tokens[:length], prompt[0]):
            tokens = tokens[length:]
        text = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return _tidy(text.strip().split("\n")[0])  # BLIP-2's OPT ends a caption with a new line

    def _start_tokens(self) -> Tensor:
        """``(1, Q + 1)``: one place for each query token of the image, then the beginning of the text."""
        config = self._model.config
        start = config.text_config.bos_token_id
        if start is None:
            start = self._tokenizer.bos_token_id
        if start is None:
            raise WeightsError(
                f"{self.name} does not say how a text begins", "set text_config.bos_token_id in config.json"
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


def pick_frames(count: int, n: int = 5) -> list[int]:
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
        raise InputError("no frame of the clip got a caption", "say what it shows with --prompt")
    votes = Counter(text.casefold() for text in tidy)

    def rank(place: int) -> tuple[int, float, int]:
        agreement = sum(_overlap(tidy[place], other) for other in tidy)
        return votes[tidy[place].casefold()], agreement, -place

    return tidy[max(range(len(tidy)), key=rank)]


def _tidy(text: str) -> str:
    return re.sub(r"\s+([.,;:!?])", r"\1", " ".join(text.split()))


def _overlap(a: str, b: str) -> float:
    """Shared words over all words (Jaccard), from 0 to 1."""
    one, two = (set(re.findall(r"\w+", text.casefold())) for text in (a, b))
    return len(one & two) / max(len(one | two), 1)
