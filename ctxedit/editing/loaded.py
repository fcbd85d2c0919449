"""Networks that stay loaded from one session to the next, in the state in which they were loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

import torch

from ctxedit.config import Config
from ctxedit.models.backbones import Backbone

T = TypeVar("T")
#: Networks other than the backbone; sessions do not change them.
Kind = Literal["scorer", "captioner", "upscaler"]


class LoadedNetworks:
    """Holds one backbone and one network of each other kind, those used last; others replace them."""

    def __init__(self) -> None:
        self._backbone: tuple[Any, Backbone] | None = None
        self._others: dict[Kind, tuple[Any, Any]] = {}

    @contextmanager
    def backbone(self, key: Any, train: tuple[str, ...], load: Callable[[], Backbone]) -> Iterator[Backbone]:
        """The backbone of this key, lent for the length of the block; what tuning moves is put back then.

        Args:
            key: what the loaded networks depend on.
            train: names of the parameters that may be changed, as in ``tune.trainable_modules``.
            load: called where another one, or none, is held.
        """
        held, self._backbone = self._backbone, None
        if held is None or held[0] != key:
            del held  # two do not fit where one does
            held = (key, load())
        backbone = held[1]
        moved = backbone.select(train) | {f"control.{k}": v for k, v in _in_control(backbone, train).items()}
        before = {name: value.detach().to("cpu", copy=True) for name, value in moved.items()}
        yield backbone
        # Not after an exception: the state that it left is dropped with the backbone.
        with torch.no_grad():
            for name, value in moved.items():
                value.copy_(before[name])
        self._backbone = held

    def drop(self) -> None:
        """Drop what is held: after a failure its state is unknown."""
        self._backbone = None
        self._others.clear()

    def other(self, kind: Kind, key: Any, load: Callable[[], T]) -> T:
        """The network of this kind and key; ``load`` is called if another one, or none, is held."""
        held = self._others.get(kind)
        if held is None or held[0] != key:
            self._others.pop(kind, None)  # two do not fit where one does
            del held
            self._others[kind] = (key, load())
        network: T = self._others[kind][1]
        return network


def _in_control(backbone: Backbone, train: tuple[str, ...]) -> dict[str, torch.nn.Parameter]:
    names = [name.removeprefix("controlnet.") for name in train if name.startswith("controlnet.")]
    return backbone.select_control(names) if names else {}


def backbone_key(config: Config, offline: bool, device: torch.device, dtype: torch.dtype) -> Any:
    """What a loaded backbone depends on."""
    control = config.control
    control_net = (control.model, control.scale) if control.kind != "none" else None
    addons = (config.lora, config.embedding)
    return (config.model, addons, control_net, config.offload, config.low_memory, offline, str(device), dtype)
