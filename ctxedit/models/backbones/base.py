"""What every backbone can do; loading a checkpoint of any family.

A backbone encodes and decodes frames, encodes prompts, predicts x̂_0 at a noise level, and names its schedule
and its parameters. Nothing outside this folder asks which model it is. Families are registered in
:mod:`ctxedit.models.families`.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.utils.checkpoint
from numpy.typing import NDArray
from torch import Tensor, nn

from ctxedit.config import AttentionConfig
from ctxedit.diffusion.broadcast import Level
from ctxedit.diffusion.parameterization import Prediction, to_x0
from ctxedit.diffusion.schedule import Levels
from ctxedit.errors import ConfigError, InputError, WeightsError
from ctxedit.files import read_json
from ctxedit.model_names import VOCABULARY
from ctxedit.models.attention import FrameView, current_view, frame_attention
from ctxedit.models.conditioning import Condition
from ctxedit.models.control import Control, Denoiser
from ctxedit.models.deep_cache import DeepBlocks
from ctxedit.models.embedding import Embedding
from ctxedit.models.families import family_named
from ctxedit.models.group_norm import statistics_over_clip
from ctxedit.models.lora import Lora
from ctxedit.models.sites import AttentionSite
from ctxedit.models.sizes import AT_ONCE, Sizes
from ctxedit.models.temporal import TemporalLayers
from ctxedit.models.weights import Checkpoint, is_half, locate, pipeline_of


@dataclass(frozen=True)
class Word:
    """A word of a prompt and the positions of its tokens in the text encoder's output."""

    text: str
    tokens: tuple[int, ...]


class Backbone(ABC):
    """A loaded checkpoint, frozen.

    Attributes:
        name: for labels.
        path: folder or file of the checkpoint.
        builtin: whether it is the small one in the package.
        device, dtype: of the denoiser.
        prediction: what the denoiser's output means.
        factor: pixels per latent, in each direction.
        resolution: pixels of the side it was trained on.
        multiple: frame sides must be multiples of this.
        latent_channels: C of the latents.
        context_width, context_length: D and L of a condition's tokens.
        chunks: how many times the text encoder's length a condition has.
        at_once: frames that the autoencoder takes at a time.
        learned_tokens: of the embeddings that were added.
        long_prompts: whether prompts longer than that are encoded in chunks; otherwise they are refused.
        control: the ControlNet beside the denoiser, or None.
        final_alpha: ᾱ_0 of :meth:`levels`: 1, or as the checkpoint's scheduler says; a family whose clean
            data has no noise has no use for it.
    """

    #: Subfolders of a checkpoint that are needed, those with weights first.
    networks_in: ClassVar[tuple[str, ...]]
    others_in: ClassVar[tuple[str, ...]]
    #: diffusers' mixin that reads LoRA files for this family; None takes none.
    lora_loader: ClassVar[str | None] = None
    #: Whether :meth:`deep_blocks` gives some.
    reuses_features: ClassVar[bool] = False
    #: Whether :meth:`sizes` takes a checkpoint whose weights are not fetched yet, and counts them as none.
    plans_without_weights: ClassVar[bool] = False

    name: str
    path: Path
    builtin: bool
    device: torch.device
    dtype: torch.dtype
    prediction: Prediction
    factor: int
    resolution: int
    multiple: int
    latent_channels: int
    context_width: int
    context_length: int
    chunks: int = 1
    long_prompts: bool = False
    learned_tokens: tuple[str, ...] = ()
    at_once: int = AT_ONCE
    control: Control | None
    final_alpha: Literal["one", "checkpoint"] = "one"

    # -- before loading ----------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def open(
        cls, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, offload: bool = False
    ) -> Backbone:
        """Load a checkpoint; with ``offload``, autoencoder and text encoders wait in main memory."""

    @classmethod
    @abstractmethod
    def check(cls, checkpoint: Checkpoint) -> None:
        """Raise WeightsError for a checkpoint of this family that cannot be used; reads config files only."""

    @classmethod
    @abstractmethod
    def sizes(cls, checkpoint: Checkpoint) -> Sizes:
        """Sizes for planning, without loading; raises WeightsError for broken files."""

    @classmethod
    @abstractmethod
    def check_prompts(cls, checkpoint: Checkpoint, texts: Sequence[str]) -> None:
        """Raise InputError for a prompt longer than the text encoder takes, as far as files tell."""

    @classmethod
    def unet_config(cls, checkpoint: Checkpoint) -> Any:
        """The denoiser's config, as far as it is known before loading; for diffusers' LoRA reader."""
        return None

    def merge(self, lora: Lora) -> None:
        """Add a LoRA, read with :func:`ctxedit.models.lora.read_lora`, to the weights."""
        raise WeightsError(f"{self.name} does not support LoRAs", "leave out --lora")

    def embed_tokens(self, embedding: Embedding) -> None:
        """Make a textual inversion's token known to prompts."""
        raise WeightsError(f"{self.name} does not support textual inversions", "leave out --embedding")

    # -- frames and words --------------------------------------------------------------------------

    @abstractmethod
    def encode(self, frames: NDArray[np.uint8], chunk: int | None = None) -> Tensor:
        """RGB uint8 (F, H, W, 3) to scaled latents (F, C, H/f, W/f), ``chunk`` or ``at_once`` at a time."""

    @abstractmethod
    def decode(self, latents: Tensor, chunk: int | None = None) -> NDArray[np.uint8]:
        """Scaled latents (F, C, h, w) to RGB uint8 (F, H, W, 3), ``chunk`` or ``at_once`` at a time."""

    @abstractmethod
    def condition(self, texts: Sequence[str]) -> Condition:
        """Prompts to a condition of as many rows; the empty text is the unconditional one."""

    @abstractmethod
    def token_spans(self, text: str) -> list[tuple[int, int]]:
        """(start, end) characters in ``text`` of each of the tokenizer's tokens, special tokens left out."""

    def embed(self, texts: Sequence[str]) -> Tensor:
        """The tokens (N, L, D) of :meth:`condition` alone, what the context adapter attends to."""
        return self.condition(texts).tokens

    def words(self, text: str) -> list[Word]:
        """The prompt's words and their tokens' positions (position 0 is the start token).

        Marks that the tokenizer takes together ("...") are one word.

        Raises:
            InputError: the prompt is longer than the text encoder takes.
        """
        text = unicodedata.normalize("NFC", text)  # as the tokenizer sees it
        places = self.token_spans(text)
        room = self.context_length // self.chunks - 2
        if len(places) > room and not self.long_prompts:
            rest = split_words(text[places[room][0] :])
            raise InputError(
                f"the prompt has {len(places)} tokens, {self.name} takes {room}",
                f"shorten it: from {rest[0]!r} on it would be cut; or --set edit.long_prompts=true",
            )
        starts = [m.start() for m in _WORD.finditer(text) if not any(a < m.start() < b for a, b in places)]
        found = []
        for start, end in itertools.pairwise([*starts, len(text)]):
            tokens = tuple(self._place(n) for n, (a, _) in enumerate(places) if start <= a < end)
            if tokens:
                found.append(Word(text[start:end].strip(), tokens))
        return found

    def _place(self, n: int) -> int:
        """Where a condition has the n-th token of a prompt: each chunk has a start and an end token."""
        length = self.context_length // self.chunks
        return n // (length - 2) * length + 1 + n % (length - 2)

    def token_weights(self, text: str, spans: Sequence[tuple[int, int, float]]) -> Tensor:
        """(L,): weights of a prompt's tokens, from (start, end, weight) of its characters; 1 elsewhere."""
        weights = torch.ones(self.context_length)
        for n, (begin, _) in enumerate(self.token_spans(text)):
            for start, end, weight in spans:
                if start <= begin < end:
                    weights[self._place(n)] = weight
        return weights

    @contextmanager
    def room_for(self, texts: Sequence[str]) -> Iterator[None]:
        """Pad conditions to the chunks of the longest prompt, where long prompts are allowed."""
        before, length = self.chunks, self.context_length // self.chunks
        if self.long_prompts:
            longest = max(len(self.token_spans(text)) for text in texts)
            self.chunks = max(before, -(-longest // (length - 2)))
        self.context_length = length * self.chunks
        try:
            yield
        finally:
            self.chunks, self.context_length = before, length * before

    # -- noise levels ------------------------------------------------------------------------------

    @abstractmethod
    def levels(self, steps: int) -> Levels:
        """The used noise levels for so many steps, spaced as the checkpoint's scheduler says."""

    @abstractmethod
    def training_level(self, generator: torch.Generator) -> tuple[int | float, Tensor, Tensor]:
        """A random level to train at: (timestep, alpha, sigma), the last two 0-d."""

    # -- the denoiser ------------------------------------------------------------------------------

    @property
    @abstractmethod
    def networks(self) -> tuple[nn.Module, ...]:
        """What is evaluated at every step, and what tuning may change: the denoiser, then the ControlNet."""

    @abstractmethod
    def attention_sites(self, network: nn.Module) -> tuple[AttentionSite, ...]:
        """The attention layers of one of ``networks``, in the order of its modules."""

    @abstractmethod
    def raw(
        self, x: Tensor, timestep: int | float | Tensor, condition: Condition | Tensor, view: FrameView
    ) -> Tensor:
        """The denoiser's own output for (branches·frames, C, h, w) latents, in their precision."""

    def predict_x0(
        self,
        x: Tensor,
        timestep: int | float,
        condition: Condition | Tensor,
        alpha: Level,
        sigma: Level,
        view: FrameView,
    ) -> Tensor:
        """x̂_0 of (branches·frames, C, h, w) latents at a level (Eq 6).

        Args:
            x: latents, branches after one another.
            timestep: the network's input.
            condition: one row for each branch; a tensor is taken as tokens without anything else.
            alpha, sigma: the level that ``x`` is at.
            view: frames, branches, fusion.
        """
        return to_x0(self.raw(x, timestep, condition, view), x, alpha, sigma, self.prediction)

    @contextmanager
    def attention(self, config: AttentionConfig) -> Iterator[None]:
        """Attention, and group norms, across frames in every network for as long as the block lasts."""
        with ExitStack() as stack:
            for net in self.networks:
                stack.enter_context(frame_attention(net, self.attention_sites(net), config.backend))
                if config.group_norm == "clip":
                    stack.enter_context(statistics_over_clip(net))
            yield

    def deep_blocks(self) -> DeepBlocks:
        """The denoiser's blocks whose features can be reused at the next step.

        Raises:
            ConfigError: this family has none.
        """
        raise ConfigError(f"{self.name} has no deep features to reuse", "leave edit.cache_interval at 1")

    @property
    def denoiser(self) -> Denoiser | None:
        """The sizes that a ControlNet must fit; None for a family that takes none."""
        return None

    def temporal_layers(
        self, seed: int = 0, init: Literal["zero", "copy", "none"] = "zero", conv_rank: int = 0
    ) -> TemporalLayers:
        """Fresh temporal layers, hooked into the denoiser; they do nothing until trained."""
        net = self.networks[0]
        return TemporalLayers(net, self.attention_sites(net), seed, init, conv_rank).to(self.device)

    def select(self, names: Sequence[str]) -> dict[str, nn.Parameter]:
        """The denoiser's parameters whose path contains one of the names, e.g. ``attn1.to_q``."""
        return _select(self.networks[0], names)

    def select_control(self, names: Sequence[str]) -> dict[str, nn.Parameter]:
        """The ControlNet's parameters whose path contains one of the names; none without a ControlNet."""
        return {} if self.control is None else _select(self.control.net, names)

    @contextmanager
    def checkpointing(self) -> Iterator[None]:
        """Gradient checkpointing in every network; attention's view is restored where they are recomputed."""
        networks: tuple[Any, ...] = self.networks
        for net in networks:
            net.enable_gradient_checkpointing(_checkpoint)
        try:
            yield
        finally:
            for net in networks:
                net.disable_gradient_checkpointing()


def _checkpoint(module: Callable[..., Any], *args: Any) -> Any:
    """``torch.utils.checkpoint`` for diffusers' blocks.

    The backward pass runs without a view, on a GPU in a thread of its own: each block takes the view that it
    was called under along.
    """
    view = current_view()

    def call(*again: Any) -> Any:
        with view.in_effect():
            return module(*again)

    return torch.utils.checkpoint.checkpoint(call, *args, use_reentrant=False)


def _select(net: nn.Module, names: Sequence[str]) -> dict[str, nn.Parameter]:
    return {
        key: value
        for key, value in net.named_parameters()
        if any(f".{name}." in f".{key}." for name in names)
    }


# -- finding and loading ---------------------------------------------------------------------------


def family_of(checkpoint: Checkpoint) -> type[Backbone]:
    """The family of a checkpoint, checked to be one that can be used; reads config files alone.

    Raises:
        WeightsError: no family is registered for it, or its family refuses it.
    """
    family: type[Backbone] = family_named(pipeline_of(checkpoint.settings), checkpoint.name)
    family.check(checkpoint)
    return family


def open_backbone(
    checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, offload: bool = False
) -> Backbone:
    """Load a checkpoint of any registered family.

    Raises:
        WeightsError: an unknown family, or broken files.
        ResourceError: not enough memory.
    """
    return family_of(checkpoint).open(checkpoint, device, dtype, offload)


def load_backbone(model: str, device: torch.device, dtype: torch.dtype, offline: bool = False) -> Backbone:
    """Locate and load a model; errors as of :func:`ctxedit.models.weights.locate` and `open_backbone`."""
    return open_backbone(locate(model, offline, is_half(dtype)), device, dtype)


# -- words -----------------------------------------------------------------------------------------

#: A word, with what an apostrophe or a hyphen joins to it, or one mark.
_WORD = re.compile(r"\w+(?:['’-]\w+)*|[^\w\s]")


def split_words(text: str) -> list[str]:
    """Words and punctuation marks, in order; what prompt-to-prompt aligns."""
    return _WORD.findall(unicodedata.normalize("NFC", text))


def builtin_vocabulary(path: Path) -> set[str] | None:
    """Words that the built-in models were trained on, or None for a model that does not say."""
    file = path / VOCABULARY
    if not file.is_file():
        return None
    words = read_json(file, "list of words", error=WeightsError)
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise WeightsError(f"{file} is not a list of words", "train or copy the model again")
    return set(words)
