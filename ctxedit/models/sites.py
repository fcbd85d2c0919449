"""Where a network attends: its attention layers, each with its kind, its resolution and its width."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import nn

_BLOCK = re.compile(r"(down_blocks|up_blocks)\.(\d+)\.|mid_block\.")


@dataclass(frozen=True)
class AttentionSite:
    """One attention layer of a network.

    Attributes:
        name: the layer's path among the network's modules.
        kind: what its queries attend to: positions of the frames (``self``), the condition's tokens
            (``cross``), or the same position of other frames (``temporal``: these keep their processors).
        halvings: how often the latent's sides have been halved, rounding up, where the layer is.
        channels: of its input.
        middle: whether it is in the network's middle block.
    """

    name: str
    kind: Literal["self", "cross", "temporal"]
    halvings: int
    channels: int
    middle: bool = False


def halvings_at(share: float) -> int:
    """Halvings of the finest layers whose side is at most this share, above 0, of the latent's."""
    halvings, side = 0, 1.0
    while side > share * (1 + 1e-6):
        halvings, side = halvings + 1, side / 2
    return halvings


def sites_of_unet(net: nn.Module) -> tuple[AttentionSite, ...]:
    """The sites of one of diffusers' UNets, or of a ControlNet, in the order of its modules."""
    from diffusers.models.attention_processor import Attention

    levels = len(net.down_blocks)  # type: ignore[arg-type]
    found = []
    for name, layer in net.named_modules():
        if isinstance(layer, Attention) and (block := _BLOCK.match(name)):
            place = {"down_blocks": int(block[2] or 0), "up_blocks": levels - 1 - int(block[2] or 0)}
            found.append(
                AttentionSite(
                    name,
                    "cross" if layer.is_cross_attention else "self",
                    place.get(block[1], levels - 1),
                    int(layer.query_dim),
                    block[1] is None,
                )
            )
    return tuple(found)


def sites_of_config(unet: Mapping[str, Any]) -> tuple[AttentionSite, ...]:
    """The same of a ``UNet2DConditionModel`` that is not loaded, from its config.

    Raises:
        KeyError, TypeError, ValueError: the config is not such a network's.
    """
    channels, down, up = unet["block_out_channels"], unet["down_block_types"], unet["up_block_types"]
    count = len(channels)
    if not len(down) == len(up) == count:
        raise ValueError(f"{len(down)} and {len(up)} blocks for {count} levels")
    layers = _each("layers_per_block", unet.get("layers_per_block", 2), count)
    depth = _each("transformer_layers_per_block", unet.get("transformer_layers_per_block", 1), count)
    depth_up = unet.get("reverse_transformer_layers_per_block") or depth[::-1]
    depth_up = _each("reverse_transformer_layers_per_block", depth_up, count)
    found: list[AttentionSite] = []
    for i, kind in enumerate(down):
        found += _stacks(f"down_blocks.{i}", kind, layers[i], depth[i], i, channels[i])
    for i, kind in enumerate(up):
        level = count - 1 - i
        found += _stacks(f"up_blocks.{i}", kind, layers[level] + 1, depth_up[i], level, channels[level])
    middle = unet.get("mid_block_type", "UNetMidBlock2DCrossAttn") or ""
    found += _stacks("mid_block", middle, 1, depth[-1], count - 1, channels[-1], True)
    return tuple(found)


def _stacks(
    block: str, kind: str, layers: int, depth: int, halvings: int, channels: int, middle: bool = False
) -> Iterator[AttentionSite]:
    """The sites of one block: transformer blocks, each with two; or plain self-attention."""
    for stack in (f"{block}.attentions.{i}" for i in range(layers)):
        if "CrossAttn" in kind:
            for transformer in (f"{stack}.transformer_blocks.{k}" for k in range(depth)):
                yield AttentionSite(f"{transformer}.attn1", "self", halvings, channels, middle)
                yield AttentionSite(f"{transformer}.attn2", "cross", halvings, channels, middle)
        elif kind.startswith("Attn"):
            yield AttentionSite(stack, "self", halvings, channels, middle)


def _each(name: str, value: int | Sequence[int], count: int) -> list[int]:
    """A setting that is one number, or one for each level; nonsense would make sites without end."""
    found = [value] * count if isinstance(value, int) else list(value)
    if len(found) != count or not all(type(n) is int and 0 <= n <= 64 for n in found):
        raise ValueError(f"{name} = {value!r}")
    return found
