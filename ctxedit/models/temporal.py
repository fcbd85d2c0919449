"""Temporal attention: each position attends over the frames. Behind zeros, so it starts as nothing."""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from ctxedit.errors import ConfigError
from ctxedit.models.attention import current_view


def over_frames(x: Tensor, frames: int) -> Tensor:
    """(lanes·frames, tokens, channels) to (lanes·tokens, frames, channels)."""
    return x.unflatten(0, (-1, frames)).transpose(1, 2).flatten(0, 1)


def over_tokens(x: Tensor, tokens: int) -> Tensor:
    """(lanes·tokens, frames, channels) to (lanes·frames, tokens, channels): ``over_frames`` undone."""
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
        """(lanes·frames, tokens, channels) to the same, in its own precision whatever the weights'."""
        x = over_frames(self.norm(hidden.to(self.norm.weight.dtype)), frames)
        x = self.to_out(_attend(x, self.to_q, self.to_k, self.to_v, self.heads))
        return hidden + over_tokens(x, hidden.shape[1]).to(hidden.dtype)


class ParallelAttention(nn.Module):
    """Attention over frames beside a block's self-attention, which it is copied from (ControlVideo).

    It takes self-attention's own, normalised, input and adds to its output through a 1×1 convolution (here a
    linear layer over tokens) whose weight and bias are zero at the start.
    """

    def __init__(self, beside: Attention) -> None:
        super().__init__()
        self.heads = beside.heads
        self.to_q, self.to_k, self.to_v, self.to_out = (
            # Float32 whatever the network's: these are tuned.
            copy.deepcopy(layer).float().requires_grad_(True)
            for layer in (beside.to_q, beside.to_k, beside.to_v, beside.to_out[0])
        )
        self.zero = nn.Linear(beside.out_dim, beside.out_dim)
        nn.init.zeros_(self.zero.weight)
        nn.init.zeros_(self.zero.bias)

    def forward(self, normed: Tensor, frames: int) -> Tensor:
        """What is added: (lanes·frames, tokens, channels) to the same, in its input's precision."""
        x = over_frames(normed.to(self.zero.weight.dtype), frames)
        x = self.zero(self.to_out(_attend(x, self.to_q, self.to_k, self.to_v, self.heads)))
        return over_tokens(x, normed.shape[1]).to(normed.dtype)


class TemporalLayers(nn.ModuleDict):
    """Temporal attention for the transformer blocks of a stock UNet, hooked in; they are not part of it.

    Args:
        unet: any; its blocks get hooks until ``remove``.
        seed: of the layers' first weights.
        init: ``zero``: a :class:`TemporalAttention` behind every block; ``copy``: a
            :class:`ParallelAttention` beside every self-attention outside the middle block.

    Raises:
        ConfigError: the network has no such blocks.
    """

    def __init__(self, unet: nn.Module, seed: int = 0, init: Literal["zero", "copy"] = "zero") -> None:
        super().__init__()
        self.init = init
        blocks = {n: m for n, m in unet.named_modules() if isinstance(m, BasicTransformerBlock)}
        if init == "copy":
            blocks = {n: m for n, m in blocks.items() if not n.startswith("mid_block.")}
        if not blocks:
            raise ConfigError("the network has no transformer blocks to put temporal attention behind")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for name, block in blocks.items():
                self[name.replace(".", "/")] = (
                    ParallelAttention(block.attn1)
                    if init == "copy"
                    else TemporalAttention(block.attn1.query_dim, block.attn1.heads)
                )
        self._handles = [
            (block.attn1 if init == "copy" else block).register_forward_hook(self._hook(name))
            for name, block in blocks.items()
        ]

    def _hook(self, name: str) -> Any:
        layer = self[name.replace(".", "/")]

        def behind(block: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
            return layer(out, current_view().frames)

        def beside(attn: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
            return out + layer(args[0], current_view().frames)

        return beside if self.init == "copy" else behind

    def remove(self) -> None:
        """Take the hooks off again."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
