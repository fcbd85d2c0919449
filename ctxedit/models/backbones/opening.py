"""A checkpoint with what the settings lay over it: LoRA files, merged before anything else is done."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ctxedit.config import Config
from ctxedit.models.backbones.base import Backbone, family_of, open_backbone
from ctxedit.models.lora import Lora, read_lora
from ctxedit.models.weights import Checkpoint


def check_addons(config: Config, checkpoint: Checkpoint, offline: bool = False) -> list[Lora]:
    """The LoRA files of the settings, read and checked to fit the checkpoint, which is not loaded.

    Raises:
        ConfigError, WeightsError: as of :func:`ctxedit.models.lora.read_lora`.
    """
    family = family_of(checkpoint)
    return [read_lora(setting, family, checkpoint, offline) for setting in config.lora]


def open_with_addons(
    config: Config,
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: torch.dtype,
    offline: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Backbone:
    """Load a checkpoint and merge the settings' LoRA files into it.

    Raises:
        WeightsError: broken or unfitting files.
        ResourceError: not enough memory.
    """
    loras = check_addons(config, checkpoint, offline)
    backbone = open_backbone(checkpoint, device, dtype, config.offload)
    for lora in loras:
        say(f"LoRA {lora.label}")
        backbone.merge(lora)
    return backbone
