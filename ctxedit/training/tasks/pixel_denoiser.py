"""A denoiser of pixels with classes, plain or jointly with the context adapter: for likelihoods (table 6)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ctxedit.config import Length, Range
from ctxedit.diffusion.broadcast import per_sample
from ctxedit.diffusion.forward import marginal
from ctxedit.diffusion.likelihood import discretised_nll, level_chances, prior_kl, step_kl
from ctxedit.errors import ConfigError, InputError
from ctxedit.models.adapter import ContextAdapter
from ctxedit.models.pixel_denoiser import WIDTH, PixelConfig, PixelDenoiser
from ctxedit.synthetic.tensors import to_tensor
from ctxedit.training.components import Components
from ctxedit.training.data import Data, DataConfig, check_usable
from ctxedit.training.memory import build_network
from ctxedit.training.noise import noise_like
from ctxedit.training.pixel_sources import PixelSet, open_pixels
from ctxedit.training.settings import MAX_LEVELS, Count
from ctxedit.training.sources import Entry, Listing
from ctxedit.training.tasks.adapter import adapter_config
from ctxedit.training.tasks.base import Task, register

#: Channels of an attention head.
_HEAD = 32
Objective = Literal["velocity", "bound"]


@register("pixel-denoiser")
class PixelDenoiserTask(Task):
    """Train on images of one size with classes.

    Args:
        components: none are needed.
        data: the images' ``size``, and ``path`` as
            :func:`ctxedit.training.pixel_sources.open_pixels` takes it.
        channels: of the U-Net's resolutions, multiples of 32; the last two have attention.
        layers: residual blocks in each.
        steps: T of the cosine schedule.
        adapter: settings of the context adapter; ``enabled = false`` trains the denoiser alone.
        objective: ``velocity`` is the squared error of the velocity, which an adapter lowers by writing x_0
            into x_t; ``bound`` is one random term of the variational bound, the shifts' part included
            (:func:`ctxedit.diffusion.likelihood.step_kl`), with the first and the prior's term.

    Raises:
        ConfigError: data that are not images on disk, or unknown adapter settings.
    """

    folder = "pixel-denoiser"

    def __init__(
        self,
        components: Components,
        data: DataConfig,
        *,
        channels: Annotated[list[Annotated[int, Range(_HEAD, 8192, _HEAD)]], Length(2, MAX_LEVELS)],
        layers: Count = 1,
        steps: Annotated[int, Range(2, 100_000)] = 1000,
        adapter: Mapping[str, Any],
        objective: Objective = "velocity",
    ) -> None:
        from diffusers import UNet2DModel

        config = adapter_config(adapter)
        self.data: PixelData = PixelData(data)
        self.objective = objective
        names = self.data.pixels.names
        count = len(channels)
        unet: Any = build_network(
            lambda: UNet2DModel(
                sample_size=data.size,
                in_channels=3,
                out_channels=3,
                down_block_types=["DownBlock2D"] * (count - 2) + ["AttnDownBlock2D"] * 2,
                up_block_types=["AttnUpBlock2D"] * 2 + ["UpBlock2D"] * (count - 2),
                block_out_channels=channels,
                layers_per_block=layers,
                norm_num_groups=16,
                attention_head_dim=_HEAD,
                num_class_embeds=len(names),
            )
        )
        network = build_network(lambda: ContextAdapter(config, 3, WIDTH)) if config.enabled else None
        self.model: Any = PixelDenoiser(unet, PixelConfig(data.size, names, steps), network)

    def loss(self, model: Any, batch: Any, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        x0, labels = batch["image"], batch["label"]
        steps = model.config.steps
        noise = noise_like(x0, generator)
        if self.objective == "bound":
            return _bound(model, x0, labels, noise, generator)
        level = torch.randint(1, steps + 1, (len(x0),), generator=generator).to(x0.device)
        a, s = model.at(level, x0)
        b = model.shift(x0, level, labels)
        x = marginal(x0, noise, a, s, None if model.adapter is None else b)
        velocity = model.unet(x, level - 1, labels).sample.float()
        # The effective noise: all of x_t that is not signal, the shift's share included.
        effective = (x - per_sample(a, x) * x0) / per_sample(s, x)
        target = per_sample(a, x) * effective - per_sample(s, x) * x0
        error = ((velocity - target) ** 2).mean()
        share = float(b.detach().norm() / (per_sample(a, x0) * x0).norm())
        return error, {"loss": error.item(), "shift": share}

    def export(self, model: Any, folder: Path) -> None:
        model.save(folder)


def _bound(
    model: Any, x0: Tensor, labels: Tensor, noise: Tensor, generator: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    """An unbiased estimate of the bound in nats per dimension: one of T − 1 terms, the first, the prior's."""
    alpha, sigma = model.levels.alpha.to(x0), model.levels.sigma.to(x0)
    steps = model.config.steps

    def predict(x: Tensor, at: Tensor) -> Tensor:
        return model.predict(x, at, labels, clip=False)

    def shift(x: Tensor, at: Tensor) -> Tensor:
        return model.shift(x, at, labels)

    used = None if model.adapter is None else shift
    chances = level_chances(steps)
    drawn = torch.multinomial(chances, len(x0), replacement=True, generator=generator)
    level = (drawn + 2).to(x0.device)
    kl = step_kl(x0, noise, level, alpha, sigma, predict, used) / chances[drawn].to(x0)
    one, last = torch.ones_like(level), torch.full_like(level, steps)
    first = marginal(x0, noise, alpha[1], sigma[1], None if used is None else shift(x0, one))
    decoder = discretised_nll(x0, predict(first, one), sigma[1] / alpha[1])
    prior = prior_kl(x0, alpha[steps], sigma[steps], None if used is None else shift(x0, last))
    total = (kl + decoder + prior).mean()
    return total.float(), {
        "loss": total.item(),
        "prior": prior.mean().item(),
        "decoder": decoder.mean().item(),
    }


class PixelData(Data):
    """Exact pixels with classes: ``image`` (3, size, size) in [−1, 1] and ``label``."""

    pixels: PixelSet

    def __init__(self, config: DataConfig) -> None:
        if config.source == "scenes" or not config.path:
            raise ConfigError("pixels are trained on images on disk", "pass --data PATH")
        self.config = config
        self.pixels = open_pixels(Path(config.path), config.size)
        entries = [Entry(str(i), Path(config.path), None, "") for i in range(len(self.pixels))]
        self.listing = Listing(entries, self.pixels.bad)
        check_usable(self.listing, config, self.pixels.load)

    @property
    def captions(self) -> list[str] | None:
        return None

    def dataset(self, seed: int) -> Dataset[Any]:
        return _Samples(self.pixels, seed, config=self.config)


class _Samples(Dataset[dict[str, Any]]):
    """Images in random order, half of them mirrored; sample ``i`` is a function of the seed and ``i``.

    One that cannot be used is replaced by the next, and reported as :class:`Images` does.
    """

    def __init__(self, pixels: PixelSet, seed: int, config: DataConfig) -> None:
        self.pixels, self.seed = pixels, seed
        self.bad, self.on_error = pixels.bad, config.on_error

    def __len__(self) -> int:
        return 1 << 40

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng((self.seed, index))
        number = int(rng.integers(len(self.pixels)))
        bad: list[str] = []
        # One image at least can be used, as was checked.
        while isinstance(image := self.pixels.load(number), str):
            bad.append(f"{self.pixels.name(number)}\t{image}")
            if len(bad) == len(self.pixels):
                raise InputError("images can no longer be read", "was the data moved?")
            number = (number + 1) % len(self.pixels)
        if rng.random() < 0.5:
            image = image[:, ::-1].copy()
        label = int(self.pixels.labels[number])
        return {"image": to_tensor(image), "label": label, "bad": "\n".join(bad)}
