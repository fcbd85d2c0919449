"""What the context adapter costs beside the plain denoiser: parameters, training and sampling (table 5)."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn

from ctxedit.config import AttentionConfig, Config
from ctxedit.diffusion.forward import marginal
from ctxedit.editing.reporter import Reporter
from ctxedit.editing.text_to_image import load_adapter, own_adapter
from ctxedit.models.adapter import ContextAdapter
from ctxedit.models.attention import FrameView
from ctxedit.models.backbones import Backbone, open_backbone
from ctxedit.models.device import pick_device, pick_dtype
from ctxedit.models.shift import ContextShift
from ctxedit.models.weights import is_half, locate
from ctxedit.patterns import attended_frames
from ctxedit.stages.generate import generate

_TEXT = "a cat on the beach"


@dataclass
class CostRow:
    """One way to generate.

    Attributes:
        name: ``plain`` or ``contextual``.
        parameters: of everything that runs at each step: denoiser, and adapter.
        train: seconds per image and training step, forward and backward, one value for each repeat.
        sample: seconds per image, all steps and decoding, one value for each repeat.
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


def measure(
    config: Config, batch: int, repeats: int, reporter: Reporter, offline: bool = False
) -> list[CostRow]:
    """Measure both ways in turn, ``repeats`` times each, after one round that is not counted.

    Args:
        config: the model, the steps and guidance of sampling, and the adapter's sizes where the model has no
            adapter of its own.
        batch: images of a training step.
        repeats: measured rounds.
        reporter: is told of progress.
        offline: fetch nothing.

    Returns:
        The rows ``plain`` and ``contextual``.
    """
    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, device)
    backbone = open_backbone(locate(config.model, offline, is_half(dtype)), device, dtype, config.offload)
    file = own_adapter(config)
    adapter = (
        ContextAdapter(config.adapter, backbone.latent_channels, backbone.context_width).to(device)
        if file is None
        else load_adapter(file, backbone)
    )
    size = sum(p.numel() for network in backbone.networks[:1] for p in network.parameters())
    more = sum(p.numel() for p in adapter.parameters())
    rows = [CostRow("plain", size), CostRow("contextual", size + more)]
    with reporter.task("measure", 2 * (repeats + 1)) as progress:
        for number in range(repeats + 1):
            for i, row in enumerate(rows):
                used = adapter if row.name == "contextual" else None
                train = _seconds(device, partial(_train, backbone, used, batch)) / batch
                sample = _seconds(device, partial(_sample, backbone, used, config))
                if number:
                    row.train.append(train)
                    row.sample.append(sample)
                progress(2 * number + i + 1, row.name)
    return rows


def _seconds(device: torch.device, work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def _train(backbone: Backbone, adapter: ContextAdapter | None, batch: int) -> None:
    """One step of joint training without the optimiser: every image a clip of one frame."""
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


def _sample(backbone: Backbone, adapter: ContextAdapter | None, config: Config) -> None:
    shift = None if adapter is None else ContextShift(adapter, backbone.embed([_TEXT]), 1)
    generate(backbone, _TEXT, config, 1, None, shift)
