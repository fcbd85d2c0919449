"""Temporal layers: attention and convolutions over the frames of each position.

All of them end in zeros, so they start as nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from ctxedit.errors import ConfigError
from ctxedit.models.attention import current_view
from ctxedit.models.sites import AttentionSite


def over_frames(x: Tensor, frames: int) -> Tensor:
    """(branches·frames, tokens, channels) to (branches·tokens, frames, channels)."""
    return x.unflatten(0, (-1, frames)).transpose(1, 2).flatten(0, 1)


def over_tokens(x: Tensor, tokens: int) -> Tensor:
    """(branches·tokens, frames, channels) to (branches·frames, tokens, channels): ``over_frames`` undone."""
    return x.unflatten(0, (-1, tokens)).transpose(1, 2).flatten(0, 1)


def _attend(x: Tensor, to_q: nn.Module, to_k: nn.Module, to_v: nn.Module, heads: int) -> Tensor:
    q, k, v = (f(x).unflatten(-1, (heads, -1)).transpose(1, 2) for f in (to_q, to_k, to_v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class TemporalAttention(nn.Module):
    """Residual self-attention over frames at each position, after a block's feed-forward (Tune-A-Video).

    Output weight *and* bias are zero at the start (the published code leaves a random bias).
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(channels)
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(channels, channels, bias=False)
        self.to_v = nn.Linear(channels, channels, bias=False)
        self.to_out = nn.Linear(channels, channels)
        nn.init.zeros_(self.to_out.weight)
        nn.init.zeros_(self.to_out.bias)

    def forward(self, hidden: Tensor, frames: int) -> Tensor:
        """(branches·frames, tokens, channels) to the same, in its own precision, not the weights'."""
        x = over_frames(self.norm(hidden.to(self.norm.weight.dtype)), frames)
        x = self.to_out(_attend(x, self.to_q, self.to_k, self.to_v, self.heads))
        return hidden + over_tokens(x, hidden.shape[1]).to(hidden.dtype)


class ParallelAttention(nn.Module):
    """Attention over frames parallel to a block's self-attention, initialised from it (ControlVideo).

    It takes self-attention's own, normalised, input and adds to its output through a 1×1 convolution (here a
    linear layer over tokens) whose weight and bias are zero at the start.
    """

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.heads = attention.heads
        self.to_q, self.to_k, self.to_v, self.to_out = (
            # Float32, regardless of the network's precision: these are tuned.
            copy.deepcopy(layer).float().requires_grad_(True)
            for layer in (attention.to_q, attention.to_k, attention.to_v, attention.to_out[0])
        )
        self.zero = nn.Linear(attention.out_dim, attention.out_dim)
        nn.init.zeros_(self.zero.weight)
        nn.init.zeros_(self.zero.bias)

    def forward(self, normed: Tensor, frames: int) -> Tensor:
        """What is added: (branches·frames, tokens, channels) to the same, in its input's precision."""
        x = over_frames(normed.to(self.zero.weight.dtype), frames)
        x = self.zero(self.to_out(_attend(x, self.to_q, self.to_k, self.to_v, self.heads)))
        return over_tokens(x, normed.shape[1]).to(normed.dtype)


class TemporalConvolution(nn.Module):
    """Residual low-rank convolution over frames at each position (the published code of FateZero).

    Two convolutions of three frames without biases, by way of :func:`convolution_rank` channels; the second
    is zero at the start.
    """

    def __init__(self, channels: int, rank: int) -> None:
        super().__init__()
        rank = convolution_rank(channels, rank)
        self.down = nn.Conv1d(channels, rank, 3, padding=1, bias=False)
        self.up = nn.Conv1d(rank, channels, 3, padding=1, bias=False)
        nn.init.normal_(self.down.weight, std=1 / rank)
        nn.init.zeros_(self.up.weight)

    def forward(self, hidden: Tensor, frames: int) -> Tensor:
        """(branches·frames, channels, h, w) to the same, in its own precision, not the weights'."""
        lines = hidden.unflatten(0, (-1, frames)).permute(0, 3, 4, 2, 1)
        branches_h_w = lines.shape[:3]
        out = self.up(self.down(lines.flatten(0, 2).to(self.down.weight.dtype)))
        out = out.unflatten(0, branches_h_w).permute(0, 4, 3, 1, 2).flatten(0, 1)
        return hidden + out.to(hidden.dtype)


def convolution_rank(channels: int, rank: int) -> int:
    """A rank as :class:`TemporalConvolution` has it: above ``channels`` it is half of them, as published."""
    return rank if rank <= channels else max(1, channels // 2)


class TemporalLayers(nn.ModuleDict):
    """Temporal layers for the transformer blocks and convolutions of a stock UNet, hooked in, no part of it.

    Args:
        unet: any; its blocks get hooks until ``remove``.
        sites: its attention layers; the transformer blocks are those around them.
        seed: of the layers' first weights.
        init: ``zero``: a :class:`TemporalAttention` behind every block; ``copy``: a
            :class:`ParallelAttention` beside every self-attention outside the middle block; ``none``: no
            attention.
        conv_rank: of the :class:`TemporalConvolution` behind every spatial convolution larger than 1×1; 0 is
            none.

    Raises:
        ConfigError: the network has no such blocks.
    """

    def __init__(
        self,
        unet: nn.Module,
        sites: Sequence[AttentionSite],
        seed: int = 0,
        init: Literal["zero", "copy", "none"] = "zero",
        conv_rank: int = 0,
    ) -> None:
        super().__init__()
        blocks: dict[str, Any] = {}
        for site in sites:
            name = site.name.rpartition(".")[0]
            block = unet.get_submodule(name)
            if isinstance(block, BasicTransformerBlock) and not (init == "copy" and site.middle):
                blocks[name] = block
        if init == "none":
            blocks = {}
        elif not blocks:
            raise ConfigError("the network has no transformer blocks to put temporal attention behind")
        spatial = {
            n: m for n, m in unet.named_modules() if isinstance(m, nn.Conv2d) and max(m.kernel_size) > 1
        }
        convolutions = spatial if conv_rank else {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for name, block in blocks.items():
                self[_key(name)] = (
                    ParallelAttention(block.attn1)
                    if init == "copy"
                    else TemporalAttention(block.attn1.query_dim, block.attn1.heads)
                )
            for name, convolution in convolutions.items():
                self[_key(name)] = TemporalConvolution(convolution.out_channels, conv_rank)
        hooked = {n: block.attn1 if init == "copy" else block for n, block in blocks.items()} | convolutions
        self._handles = [module.register_forward_hook(self._hook(name)) for name, module in hooked.items()]

    def tuned_parameters(self, convolutions: bool) -> dict[str, nn.Parameter]:
        """What tuning moves of the convolutions, or else of the attention: its projections.

        Its norms stay as they are, as in Tune-A-Video's published code.
        """
        return {
            f"{key}.{name}": parameter
            for key, layer in self.items()
            if isinstance(layer, TemporalConvolution) == convolutions
            for name, parameter in layer.named_parameters()
            if not name.startswith("norm.")
        }

    def _hook(self, name: str) -> Any:
        layer = self[_key(name)]

        def after_block(block: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
            return layer(out, current_view().frames)

        def in_parallel(attn: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
            return out + layer(args[0], current_view().frames)

        return in_parallel if isinstance(layer, ParallelAttention) else after_block

    def remove(self) -> None:
        """Take the hooks off again."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


def _key(name: str) -> str:
    """A module's path as a key of a ``ModuleDict``, which takes no dots."""
    return name.replace(".", "/")
