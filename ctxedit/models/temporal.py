"""Temporal attention: each position attends over the frames. Zero-initialised, so it starts as nothing."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn

from ctxedit.errors import ConfigError
from ctxedit.models.attention import FrameView


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
        lanes, tokens = hidden.shape[0] // frames, hidden.shape[1]
        x = self.norm(hidden.to(self.norm.weight.dtype))
        x = x.unflatten(0, (lanes, frames)).transpose(1, 2).flatten(0, 1)
        q, k, v = (
            f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.to_q, self.to_k, self.to_v)
        )
        x = self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return hidden + x.to(hidden.dtype).unflatten(0, (lanes, tokens)).transpose(1, 2).flatten(0, 1)


class TemporalLayers(nn.ModuleDict):
    """One :class:`TemporalAttention` for every transformer block of a stock UNet, hooked behind it."""

    def __init__(self, unet: UNet2DConditionModel, seed: int = 0) -> None:
        super().__init__()
        blocks = {n: m for n, m in unet.named_modules() if isinstance(m, BasicTransformerBlock)}
        if not blocks:
            raise ConfigError("the network has no transformer blocks to put temporal attention behind")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for name, block in blocks.items():
                self[name.replace(".", "/")] = TemporalAttention(block.attn1.query_dim, block.attn1.heads)
        self._handles = [
            block.register_forward_hook(self._hook(name), with_kwargs=True) for name, block in blocks.items()
        ]

    def _hook(self, name: str) -> Any:
        layer = self[name.replace(".", "/")]

        def hook(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Tensor:
            return layer(out, _view(args, kwargs).frames)

        return hook

    def remove(self) -> None:
        """Take the hooks off again."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


def _view(args: tuple[Any, ...], kwargs: dict[str, Any]) -> FrameView:
    """The call's view among a block's arguments: by name, or by place under gradient checkpointing."""
    for value in (kwargs.get("cross_attention_kwargs"), *args):
        if isinstance(value, dict) and isinstance(value.get("view"), FrameView):
            return value["view"]
    raise ConfigError("temporal layers were called without a clip's view: call through the backbone")
