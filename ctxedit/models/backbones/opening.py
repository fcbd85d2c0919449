"""A checkpoint with the add-ons from the settings: LoRA files and embeddings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ctxedit.config import Config
from ctxedit.errors import ConfigError
from ctxedit.models.backbones.base import Backbone, family_of, open_backbone
from ctxedit.models.embedding import Embedding, read_embedding
from ctxedit.models.lora import Lora, read_lora
from ctxedit.models.sizes import AT_ONCE
from ctxedit.models.weights import Checkpoint


@dataclass(frozen=True)
class Addons:
    """The settings' LoRA files and embeddings, read and checked to fit a checkpoint."""

    loras: tuple[Lora, ...] = ()
    embeddings: tuple[Embedding, ...] = ()

    def lengthen(self, text: str) -> str:
        """A text of as many tokens as ``text`` has once the embeddings are known."""
        for embedding in self.embeddings:
            text = embedding.lengthen(text)
        return text


def check_addons(config: Config, checkpoint: Checkpoint, offline: bool = False) -> Addons:
    """The LoRA files and embeddings of the settings, read; the checkpoint is not loaded.

    Raises:
        ConfigError, WeightsError: as of :func:`ctxedit.models.lora.read_lora` and ``read_embedding``; two
            embeddings have the same token.
    """
    family = family_of(checkpoint)
    loras = tuple(read_lora(setting, family, checkpoint, offline) for setting in config.lora)
    embeddings = tuple(read_embedding(name, checkpoint, offline) for name in config.embedding)
    tokens = [embedding.token for embedding in embeddings]
    if twice := next((token for token in tokens if tokens.count(token) > 1), None):
        raise ConfigError(f"two embeddings are named {twice!r}", "give each once, or rename a file")
    return Addons(loras, embeddings)


def open_with_addons(
    config: Config,
    checkpoint: Checkpoint,
    addons: Addons,
    device: torch.device,
    dtype: torch.dtype,
    say: Callable[[str], None] = lambda text: None,
) -> Backbone:
    """Load a checkpoint, merge its LoRA files into it and add its embeddings; as the settings say.

    Raises:
        WeightsError: broken or unfitting files.
        ResourceError: not enough memory.
    """
    if checkpoint.note:
        say(checkpoint.note)
    backbone = open_backbone(checkpoint, device, dtype, config.offload)
    for lora in addons.loras:
        say(f"LoRA {lora.label}")
        backbone.merge(lora)
    for embedding in addons.embeddings:
        say(f"embedding {embedding.file.name}: write {embedding.token} in a prompt")
        backbone.embed_tokens(embedding)
    backbone.long_prompts = config.edit.long_prompts
    backbone.at_once = 1 if config.low_memory else AT_ONCE
    return backbone
