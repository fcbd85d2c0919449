"""Class and layout encoders, with or without a context adapter, on the trained denoiser (section 4.3)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ctxedit.config import merge
from ctxedit.diffusion.parameterization import Weighting, loss_weight
from ctxedit.errors import ConfigError
from ctxedit.models.adapter import ContextAdapter
from ctxedit.models.condition_encoder import ADAPTER, DENOISER, ConditionEncoder, EncoderConfig, Kind
from ctxedit.models.tensors import save_tensors
from ctxedit.training.components import Components, hashes, load_network, read_weights
from ctxedit.training.data import DataConfig
from ctxedit.training.labelled import LabelledData
from ctxedit.training.memory import build_network
from ctxedit.training.settings import Count, LossWeight, Share
from ctxedit.training.tasks.adapter import adapter_config, unfreeze
from ctxedit.training.tasks.base import Task, register
from ctxedit.training.tasks.denoiser import attention_kernel, object_weight, sample_timesteps
from ctxedit.training.tasks.encoders import Encoders, noise_scheduler
from ctxedit.training.tasks.shifted import denoise

#: ``train = ["all"]`` trains the whole denoiser.
ALL = "all"


class ConditionEncoderTask(Task):
    """λ_t ‖x̂_0 − x_0‖² over the encoder, the adapter and the denoiser's modules named in ``train``.

    The denoiser's cross-attention and the adapter attend to the text's tokens followed by the encoder's. The
    text is a sample's caption or, more often, empty. The loss is that of the text-to-image adapter. With
    ``adapter.enabled = false`` there is no shift; data, timesteps and noise are the same.

    Args:
        components: with a trained denoiser.
        data: images with labels.
        encoder: settings of :class:`~ctxedit.models.condition_encoder.EncoderConfig`.
        adapter: settings, as in a preset's ``[adapter]`` table.
        train: names of modules of the denoiser that are trained too, e.g. ``attn2``; ``["all"]``: all of it.
        words: share of the captions that are not replaced by the empty one, in [0, 1].
        start: ``words``: label embeddings start as the text encoder's tokens of the labels, which a frozen
            denoiser understands; ``random``.
        loss_weight: λ_t: ``one``, ``snr`` or ``min_snr``. ``one`` weights the noisy levels, at which the
            condition decides, higher.
        focus: weight of the loss inside the objects' mask, where the data has one.
        draws: noise samples per image and step.
        empty: share of samples without label and caption, for classifier-free guidance.

    Raises:
        ConfigError: unknown settings, no trained denoiser, or a name in ``train`` that matches nothing.
    """

    kind: ClassVar[Kind]
    requires = ("vae", "text_encoder", "unet")

    def __init__(
        self,
        components: Components,
        data: DataConfig,
        *,
        encoder: Mapping[str, Any],
        adapter: Mapping[str, Any],
        train: list[str],
        words: Share = 0.0,
        start: Literal["words", "random"] = "words",
        loss_weight: Weighting = "one",
        focus: LossWeight = 1.0,
        draws: Count = 1,
        empty: Share = 0.1,
    ) -> None:
        from diffusers import UNet2DConditionModel

        sizes = encoder_config(self.kind, encoder)
        config = adapter_config(adapter)
        unet = components.find("unet")
        if not (unet / "config.json").is_file():
            raise ConfigError(f"{unet} has no denoiser", "train the denoiser first")
        self.data = LabelledData(data, sizes.boxes if self.kind == "layout" else 0)
        self.words, self.weighting, self.empty = words, loss_weight, empty
        self.focus, self.draws = focus, draws
        self.encoders = Encoders(components)
        self.unet: Any = load_network(UNet2DConditionModel, unet, torch_dtype=torch.float32)
        self.unet.eval().requires_grad_(False)
        self.scheduler = noise_scheduler()
        self.trained_on = "".join(hashes(unet).values())[:16]
        labels, width = self.data.labels, self.encoders.width
        network = build_network(lambda: ConditionEncoder(sizes, labels, width))
        if start == "words":
            network.start_from(*self._words(labels))
        trained: dict[str, nn.Module] = {"encoder": network}
        if config.enabled:
            channels = int(self.unet.config.in_channels)
            trained["adapter"] = build_network(lambda: ContextAdapter(config, channels, width))
        if train == [ALL]:
            self.unet.requires_grad_(True)
        else:
            unfreeze(self.unet, train)
        if train:
            trained["unet"] = self.unet
        self.model: Any = nn.ModuleDict(trained)

    @torch.no_grad()
    def _words(self, labels: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Mean token of each label in "a LABEL" from its first word on, and of the empty text."""
        device = torch.device("cpu")
        tokens = [self.encoders.embed([f"a {label}"], device)[0, 2:].mean(0) for label in labels]
        return torch.stack(tokens), self.encoders.embed([""], device)[0, 1:].mean(0)

    def loss(self, model: Any, batch: Any, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        device, n = batch["image"].device, len(batch["caption"])
        self.encoders.to(device)
        self.unet.to(device)
        drop = torch.rand(n, generator=generator) < self.empty
        captioned = (torch.rand(n, generator=generator) < self.words) & ~drop
        texts = [c if shown else "" for c, shown in zip(batch["caption"], captioned.tolist(), strict=True)]
        labels = torch.where(drop.to(device)[:, None], -1, batch["labels"])
        x0 = self.encoders.latents(batch["image"]).repeat(self.draws, 1, 1, 1)
        text = self.encoders.embed(texts, device)
        tokens = torch.cat([text, model["encoder"](labels, batch["boxes"]).to(text)], 1)
        tokens = tokens.repeat(self.draws, 1, 1)
        t = sample_timesteps(len(x0), generator)
        shifting = model["adapter"] if "adapter" in model else None  # noqa: SIM401 - a ModuleDict has no get
        with attention_kernel(device):
            out = denoise(self.unet, shifting, self.scheduler, x0, tokens, tokens, t, generator)
        squares = object_weight(batch.get("mask"), x0, self.focus, self.draws) * out.squares
        errors = squares.flatten(1).mean(1)
        loss = (loss_weight(out.alpha, out.sigma, self.weighting).to(errors) * errors).mean()
        return loss, {"loss": loss.item(), "x0_error": out.squares.mean().item(), "shift": out.shift}

    def export(self, model: Any, folder: Path) -> None:
        """Write the encoder, the adapter and the trained part of the denoiser, all in fp16."""
        folder.mkdir(parents=True, exist_ok=True)
        model["encoder"].save(folder, denoiser=self.trained_on)
        if "adapter" in model:
            copy.deepcopy(model["adapter"]).half().save(folder / ADAPTER, trained=f"{self.kind} to image")
        if "unet" in model:
            names = {name for name, p in self.unet.named_parameters() if p.requires_grad}
            state = model["unet"].state_dict()
            save_tensors(folder / DENOISER, {k: v.half() for k, v in state.items() if k in names})

    def load_weights(self, folder: Path) -> None:
        encoder = ConditionEncoder.load(folder, self.kind)
        mine = self.model["encoder"]
        if (encoder.config, encoder.labels) != (mine.config, mine.labels):
            raise ConfigError(f"{folder} does not fit the recipe", "train from scratch, without --warm")
        mine.load_state_dict(encoder.state_dict())
        if "adapter" in self.model and (folder / ADAPTER).is_file():
            self.model["adapter"].load_state_dict(ContextAdapter.load(folder / ADAPTER).state_dict())
        if "unet" in self.model and (folder / DENOISER).is_file():
            self.unet.load_state_dict(read_weights(folder / DENOISER), strict=False)


@register("class-encoder")
class ClassEncoderTask(ConditionEncoderTask):
    folder = "class-encoder"
    kind = "class"
    reads = ("classes", "webdataset")


@register("layout-encoder")
class LayoutEncoderTask(ConditionEncoderTask):
    folder = "layout-encoder"
    kind = "layout"
    reads = ("coco",)


def encoder_config(kind: Kind, table: Mapping[str, Any]) -> EncoderConfig:
    """A recipe's ``[task.encoder]``; raises ConfigError for sizes that cannot be built."""
    if "kind" in table:
        raise ConfigError("unknown setting task.encoder.kind", f"the recipe's part determines it: {kind}")
    known = [field.name for field in fields(EncoderConfig) if field.name != "kind"]
    if unknown := [key for key in table if key not in known]:
        raise ConfigError(f"unknown setting task.encoder.{unknown[0]}", f"known here: {', '.join(known)}")
    config: EncoderConfig = merge(EncoderConfig(kind), table, "task.encoder.")
    try:
        config.check()
    except ValueError as error:
        raise ConfigError(f"task.encoder.{error}") from error
    return config
