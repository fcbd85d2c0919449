"""Deep features of a UNet, reused from one sampling step to the next (DeepCache; Ma et al. 2024).

What the coarse levels of a UNet hand up to the finest one changes little between neighbouring steps. It is
kept at one step; at the next ones the finest level alone runs, on it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, cast

from torch import Tensor, nn

from ctxedit.errors import ConfigError

#: What a pass of the finest level alone takes of a whole pass, at most. By operations it is 0.40 of the
#: built-in UNet's pass over 16 frames, and 0.48 of Stable Diffusion 1.4's over 8 frames of 512².
REUSED_SHARE = 0.5
_REUSES: ContextVar[bool] = ContextVar("reuses_deep_features", default=False)


def pass_share() -> float:
    """What the pass of a UNet that is running counts as: 1, or :data:`REUSED_SHARE` on cached features."""
    return REUSED_SHARE if _REUSES.get() else 1


class DeepBlocks:
    """All of a UNet but its first down block and its last up block.

    Args:
        unet: diffusers' ``UNet2DConditionModel``.

    Raises:
        ConfigError: it has one level only.
    """

    def __init__(self, unet: nn.Module) -> None:
        net = cast(Any, unet)
        if len(net.up_blocks) < 2 or net.mid_block is None:
            raise ConfigError("edit.cache_interval: the UNet has one level only", "leave it at 1")
        self._downs, self._mid = list(net.down_blocks), net.mid_block
        self._ups, self._last = list(net.up_blocks[:-1]), net.up_blocks[-1]

    @contextmanager
    def kept(self) -> Iterator[list[Tensor]]:
        """The network runs as always; the list receives what its last up block is given from below."""
        found: list[Tensor] = []

        def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found.append(kwargs["hidden_states"] if "hidden_states" in kwargs else args[0])

        handle = self._last.register_forward_pre_hook(keep, with_kwargs=True)
        try:
            yield found
        finally:
            handle.remove()

    @contextmanager
    def replaced_by(self, features: Tensor) -> Iterator[None]:
        """The network runs without these blocks: its last up block is given ``features``."""
        nothing = features.new_zeros(())  # a ControlNet's residual of any shape can be added to it

        def down(count: int) -> Callable[..., Any]:
            return lambda *args, **kwargs: (nothing, (nothing,) * count)

        with ExitStack() as stack:
            for sampler in self._downs[0].downsamplers or ():
                stack.enter_context(_forward(sampler, lambda *args, **kwargs: nothing))
            for block in self._downs[1:]:
                skips = len(block.resnets) + len(block.downsamplers or ())
                stack.enter_context(_forward(block, down(skips)))
            stack.enter_context(_forward(self._mid, lambda *args, **kwargs: nothing))
            for block in self._ups:
                stack.enter_context(_forward(block, lambda *args, **kwargs: features))
            reuses = _REUSES.set(True)
            stack.callback(_REUSES.reset, reuses)
            yield


@contextmanager
def _forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Replace a module's forward pass inside the block."""
    vars(module)["forward"] = forward
    try:
        yield
    finally:
        del vars(module)["forward"]


@dataclass
class DeepFeatures:
    """The cache of the UNet's deep features during one sampling run.

    Attributes:
        interval: every so many steps the whole network runs, and the features are kept; 1 keeps none.
    """

    interval: int = 1
    _kept: dict[Hashable, tuple[int, Tensor]] = field(default_factory=dict)

    def run(
        self, blocks: Callable[[], DeepBlocks], key: Hashable, step: int, network: Callable[[], Tensor]
    ) -> Tensor:
        """One pass of the network, on cached features where they are recent enough.

        Args:
            blocks: makes the network's deep blocks; called where features are kept at all.
            key: what the pass shares features with: passes of the same branches.
            step: counted upwards.
            network: runs the pass.
        """
        if self.interval == 1:
            return network()
        kept = self._kept.get(key)
        if kept is not None and step - kept[0] < self.interval:
            with blocks().replaced_by(kept[1]):
                return network()
        with blocks().kept() as found:
            out = network()
        fresh = {name: one for name, one in self._kept.items() if step - one[0] < self.interval}
        self._kept = {**fresh, key: (step, found[-1])}
        return out
