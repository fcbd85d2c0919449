"""Group norms over all frames of a clip: how networks that were inflated to video compute them.

Tune-A-Video, FateZero and ControlVideo hand five-dimensional tensors (B, C, F, H, W) to the residual blocks'
``norm1`` and ``norm2`` and to ``conv_norm_out``, so mean and variance of a group are the clip's. Here frames
are folded into the batch, and the stock norms would treat frames separately. The group norm at the entrance
of a transformer stays as it is: the published code folds the frames before it, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch.nn.functional as F
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from ctxedit.errors import ConfigError
from ctxedit.models.attention import current_view


def clip_norms(net: nn.Module) -> list[nn.GroupNorm]:
    """The group norms that the published code computes over clips."""
    blocks = [block for block in net.modules() if isinstance(block, ResnetBlock2D)]
    found = [norm for block in blocks for norm in (block.norm1, block.norm2)]
    return [norm for norm in (*found, getattr(net, "conv_norm_out", None)) if isinstance(norm, nn.GroupNorm)]


@contextmanager
def statistics_over_clip(net: nn.Module) -> Iterator[None]:
    """Group norms of residual blocks and output over the frames of each branch, as long as the block lasts.

    Branches (the source, the unconditional and the conditional one) have statistics of their own. A call
    needs a :class:`~ctxedit.models.attention.FrameView` in effect, which says how many frames a branch has.

    Raises:
        ConfigError: the network has no such norms.
    """
    norms = clip_norms(net)
    if not norms:
        raise ConfigError(
            "attention.group_norm = 'clip': the network has no group norms in residual blocks",
            "--set attention.group_norm=frame",
        )
    for norm in norms:
        norm.forward = _over_clip(norm)  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward  # the instance's: the class's is back


def _over_clip(norm: nn.GroupNorm) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        """(branches·frames, C, h, w) to the same."""
        clips = x.unflatten(0, (-1, current_view().frames)).transpose(1, 2)
        out = F.group_norm(clips, norm.num_groups, norm.weight, norm.bias, norm.eps)
        return out.transpose(1, 2).flatten(0, 1)

    return forward
