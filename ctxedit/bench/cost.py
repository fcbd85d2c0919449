"""Cost of the context adapter and the cascade relative to the plain denoiser (table 5)."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ctxedit import footprint
from ctxedit.config import AttentionConfig, Config
from ctxedit.diffusion.forward import marginal
from ctxedit.editing.machine import check_memory, memory_available
from ctxedit.editing.reporter import Reporter
from ctxedit.editing.text_to_image import load_adapter, own_adapter
from ctxedit.errors import counted
from ctxedit.models.adapter import ContextAdapter
from ctxedit.models.attention import FrameView
from ctxedit.models.backbones import Backbone, family_of, open_backbone
from ctxedit.models.device import pick_device, pick_dtype
from ctxedit.models.shift import ContextShift
from ctxedit.models.upscalers.base import Upscaler
from ctxedit.models.upscalers.checkpoints import upscaler_of
from ctxedit.models.weights import is_half, locate
from ctxedit.patterns import attended_frames
from ctxedit.stages.generate import generate

_TEXT = "a cat on the beach"


@dataclass
class CostRow:
    """One way to generate.

    Attributes:
        name: ``plain``, ``contextual`` or ``cascade``.
        parameters: of everything that runs at each step: denoiser, and adapter or upscaler.
        train: seconds per image and training step, forward and backward, one value per repeat; for a cascade,
            that of its upscaler, which is trained alone.
        sample: seconds per image, all steps, decoding and upscaling, one value for each repeat.
    """

    name: str
    parameters: int
    train: list[float] = field(default_factory=list)
    sample: list[float] = field(default_factory=list)

    def table(self, plain: CostRow) -> dict[str, str | int | float]:
        """The row as a table, with ratios to the plain one."""
        train, sample = statistics.median(self.train), statistics.median(self.sample)
        return {
            "way": self.name, "parameters": self.parameters,
            "seconds_per_training_image": train, "training_ratio": train / statistics.median(plain.train),
            "seconds_per_image": sample, "sampling_ratio": sample / statistics.median(plain.sample),
        }  # fmt: skip


def check(config: Config, batch: int, offline: bool = False) -> None:
    """Raise ResourceError for a training step of ``batch`` images that exceeds the available memory."""
    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, device)
    checkpoint = locate(config.model, offline, is_half(dtype))
    body = family_of(checkpoint).sizes(checkpoint)
    side = (body.resolution // body.factor, body.resolution // body.factor)
    needed = 2 * body.unet.parameters * dtype.itemsize  # and their gradients
    needed += footprint.backward_bytes(body, side, batch, 1, dtype.itemsize, False)
    needed += footprint.adapter_bytes(config.adapter, side, batch, True)
    what = f"a training step of {counted(batch, 'image')}"
    check_memory(what, needed, memory_available(device), "choose a smaller --batch")


def measure(
    config: Config, batch: int, repeats: int, reporter: Reporter, offline: bool = False
) -> list[CostRow]:
    """Measure the configurations in turn, ``repeats`` times each, after one warm-up round.

    Args:
        config: the model, the steps and guidance of sampling, and the adapter's sizes where the model has no
            adapter of its own; ``upscale.scale`` above 1 adds the cascade.
        batch: images of a training step.
        repeats: measured rounds.
        reporter: receives progress.
        offline: fetch nothing.

    Returns:
        The rows ``plain`` and ``contextual``, and ``cascade`` if there is one.

    Raises:
        ResourceError: as :func:`check`.
    """
    check(config, batch, offline)
    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, device)
    backbone = open_backbone(locate(config.model, offline, is_half(dtype)), device, dtype, config.offload)
    file = own_adapter(config)
    adapter = (
        ContextAdapter(config.adapter, backbone.latent_channels, backbone.context_width).to(device)
        if file is None
        else load_adapter(file, backbone)
    )
    size = _parameters(backbone.networks[0])
    rows = [CostRow("plain", size), CostRow("contextual", size + _parameters(adapter))]
    works = [_ways(backbone, None, batch, config), _ways(backbone, adapter, batch, config)]
    if config.upscale.scale > 1:
        upscaler = upscaler_of(config, offline, device, dtype)
        rows.append(CostRow("cascade", size + _parameters(upscaler.unet)))
        works.append(_cascade(backbone, upscaler, batch, config))
    with reporter.task("measure", len(rows) * (repeats + 1), "round") as progress:
        for number in range(repeats + 1):
            for i, (row, (train, sample)) in enumerate(zip(rows, works, strict=True)):
                seconds = _seconds(device, train) / batch, _seconds(device, sample)
                if number:
                    row.train.append(seconds[0])
                    row.sample.append(seconds[1])
                progress(len(rows) * number + i + 1, row.name)
    return rows


def _parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


_Ways = tuple[Callable[[], object], Callable[[], object]]


def _ways(backbone: Backbone, adapter: ContextAdapter | None, batch: int, config: Config) -> _Ways:
    return partial(_train, backbone, adapter, batch), partial(_sample, backbone, adapter, config)


def _cascade(backbone: Backbone, upscaler: Upscaler, batch: int, config: Config) -> _Ways:
    def sample() -> None:
        upscaler.upscale(_sample(backbone, None, config), _TEXT, config.upscale, 0, clip=False)

    return partial(_train_upscaler, upscaler, backbone.resolution, batch), sample


def _seconds(device: torch.device, work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def _train(backbone: Backbone, adapter: ContextAdapter | None, batch: int) -> None:
    """One step of joint training without the optimiser; every image is a clip of one frame."""
    side = backbone.resolution // backbone.factor
    generator = torch.Generator().manual_seed(0)
    shape = (batch, backbone.latent_channels, side, side)
    x0 = torch.randn(shape, generator=generator).to(backbone.device, backbone.dtype)
    noise = torch.randn(shape, generator=generator).to(x0)
    t, a, s = backbone.training_level(generator)
    shift = None if adapter is None else ContextShift(adapter, backbone.embed([_TEXT] * batch), 1)
    attention = AttentionConfig(frames="none")
    view = FrameView(attended_frames(attention, batch), (side, side))
    networks = [backbone.networks[0], *([adapter] if adapter is not None else [])]
    with _trained(networks), backbone.attention(attention):
        b = None if shift is None else shift(x0, t, a, s)
        x = marginal(x0, noise, a, s, b)
        predicted = backbone.predict_x0(x, t, backbone.condition([_TEXT]), a, s, view)
        ((predicted.float() - x0.float()) ** 2).mean().backward()


def _train_upscaler(upscaler: Upscaler, side: int, batch: int) -> None:
    """One step on whole pictures of ``side`` pixels, without the optimiser."""
    generator = torch.Generator().manual_seed(0)
    low = torch.randn(batch, 3, side, side, generator=generator).to(upscaler.device, upscaler.dtype)
    noisy = torch.randn(batch, upscaler.channels, side, side, generator=generator).to(low)
    t = torch.tensor(500, device=upscaler.device)
    level = torch.zeros(batch, dtype=torch.long, device=upscaler.device)
    with _trained([upscaler.unet]):
        given = upscaler.network_input(noisy, t, low)
        tokens = upscaler.embed([_TEXT]).repeat(batch, 1, 1)
        upscaler.unet(given, t, tokens, class_labels=level).sample.float().square().mean().backward()


@contextmanager
def _trained(networks: list[nn.Module]) -> Iterator[None]:
    parameters = [p for network in networks for p in network.parameters()]
    before = [p.requires_grad for p in parameters]
    try:
        for p in parameters:
            p.requires_grad_(True)
        yield
    finally:
        for p, required in zip(parameters, before, strict=True):
            p.grad = None
            p.requires_grad_(required)


def _sample(backbone: Backbone, adapter: ContextAdapter | None, config: Config) -> NDArray[np.uint8]:
    shift = None if adapter is None else ContextShift(adapter, backbone.embed([_TEXT]), 1)
    return generate(backbone, _TEXT, config, 1, None, shift)
