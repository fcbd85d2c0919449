"""The source's branch of all fused steps, run once for all edits of a clip.

In a fused step an edit takes from the source's branch the queries and keys of attention layers, and nothing
else. They are the same for every target, so the first edit can keep them. A plain DDIM inversion, too,
evaluates the network on these latents, at these timesteps and with this prompt; but its latents come from the
autoencoder in another memory format, in which convolutions round differently.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ctxedit.config import Config
from ctxedit.models.sites import AttentionSite, halvings_at
from ctxedit.models.source_layers import SourceLayers
from ctxedit.stages.passes import fused_counts

#: What ``keep_source = "auto"`` keeps at most, in bytes.
_MOST = 256 << 20


def layers_of_step(config: Config, step: int) -> SourceLayers | None:
    """What a sampling step, counted from the noisy end, takes from the source; None if nothing."""
    fusion, steps = config.fusion, config.edit.steps
    fuses_self, fuses_cross = (step < count for count in fused_counts(fusion, steps))
    finest = halvings_at(fusion.max_resolution)
    masks = fusion.blend == "latent" or (fusion.blend == "self" and fuses_self)
    if config.edit.start == "noise" or not (fuses_self or fuses_cross or masks):
        return None
    return SourceLayers(
        finest if fuses_self else None,
        finest if fuses_cross else None,
        halvings_at(fusion.mask_resolution) if masks else None,
    )


def kept_bytes(
    config: Config, sites: Sequence[AttentionSite], side: tuple[int, int], frames: int, words: int, width: int
) -> int:
    """Bytes of all queries and keys that are kept.

    Args:
        config: settings.
        sites: the denoiser's attention layers.
        side: (height, width) of the latents.
        frames: of the clip.
        words: tokens of a condition.
        width: bytes of a number.
    """
    total = 0
    for step in range(config.edit.steps):
        if (layers := layers_of_step(config, step)) is not None:
            total += sum(_numbers(site, side, words) for site in sites if layers.wants(site))
    return total * frames * width


def _numbers(site: AttentionSite, side: tuple[int, int], words: int) -> int:
    """Of a layer's queries and keys of one frame."""
    positions = -(-side[0] // 2**site.halvings) * -(-side[1] // 2**site.halvings)
    return site.channels * (positions + (positions if site.kind == "self" else words))


def keeps_source(
    config: Config, edits: int, size: int, windows: int, device: str, dtype: torch.dtype
) -> bool:
    """Whether ``keep_source`` asks for it.

    Args:
        config: settings.
        edits: how many there will be; 0 where that is not known.
        size: what would be kept, in bytes, as of :func:`kept_bytes`.
        windows: of the clip; each of several would keep its own, of any length of clip.
        device: its type.
        dtype: of the denoiser.
    """
    if config.keep_source == "off" or windows > 1 or size == 0:
        return False
    # In float32 the last bits of a branch depend on how many are in its batch.
    exact = device == "cpu" and dtype == torch.bfloat16
    # A single edit gains where a pass of the source makes its masks, which then serves the step as well.
    gains = edits != 1 or config.fusion.blend == "self"
    return config.keep_source == "on" or (exact and gains and not config.low_memory and size <= _MOST)


class KeptSource:
    """What one clip's fused steps take from the source's branch, level by level.

    Args:
        config: settings.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._trajectory: Tensor | None = None
        self._levels: dict[int, SourceLayers] = {}
        self.clear()

    def clear(self) -> None:
        """Drop everything that is kept."""
        steps = self._config.edit.steps
        found = {steps - step: layers_of_step(self._config, step) for step in range(steps)}
        self._levels = {level: layers for level, layers in found.items() if layers is not None}

    def bind(self, trajectory: Tensor) -> None:
        """Say which inversion (S + 1, F, C, h, w) the edits to come begin from; drops what is of another."""
        if self._trajectory is not None and not torch.equal(self._trajectory, trajectory):
            self.clear()
        self._trajectory = trajectory

    def at(self, level: int) -> SourceLayers | None:
        """What is kept at a level; None where nothing is needed."""
        return self._levels.get(level)

    @property
    def whole(self) -> bool:
        """Whether no step needs the source's branch any more."""
        return all(layers.complete for layers in self._levels.values())

    @property
    def bytes(self) -> int:
        """Bytes of everything that is kept."""
        return sum(layers.bytes for layers in self._levels.values())
