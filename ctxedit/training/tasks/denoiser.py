"""The denoiser: ``UNet2DConditionModel`` on the autoencoder's latents and CLIP's text embeddings."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ctxedit.config import Length, Range
from ctxedit.synthetic import composition_captions
from ctxedit.training.components import Components
from ctxedit.training.data import Data, DataConfig, Scenes
from ctxedit.training.fp16 import save_fp16
from ctxedit.training.memory import build_network
from ctxedit.training.noise import noise_like
from ctxedit.training.settings import (
    MAX_LEVELS,
    Channels,
    Channels16,
    Count,
    Levels,
    LossWeight,
    Share,
    require,
)
from ctxedit.training.tasks.base import Task, load_weights, register
from ctxedit.training.tasks.encoders import Encoders, noise_scheduler, save_text_encoder, write_layout

if TYPE_CHECKING:
    from ctxedit.training.checks.base import Check


class VelocityLoss:
    """The squared error of the predicted velocity, weighted towards the object.

    Half of the timesteps are uniform and half logit-normal (Esser et al. 2024), around the middle of the
    schedule where the prompt decides what is generated. Min-SNR weights all but ignore the noisy levels and
    are not used.

    Args:
        components: with ``vae``, ``text_encoder`` and ``tokenizer``.
        empty: share of captions replaced by the empty one, for classifier-free guidance.
        focus: weight of the loss inside the object's mask, where the data has one; 1 outside. An object
            covers a quarter of the image and is by far its hardest part.
        draws: noise samples per image and step; encoding an image costs as much as a fifth of a pass.
        logit_mean: mean of the logit-normal timesteps' logits; above 0 they are noisier.
    """

    def __init__(
        self, components: Components, empty: float, focus: float, draws: int, logit_mean: float = 0.0
    ) -> None:
        self.encoders = Encoders(components)
        self.scheduler = noise_scheduler()
        self.empty, self.focus, self.draws, self.logit_mean = empty, focus, draws, logit_mean

    def __call__(self, model: Any, batch: Any, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Loss and figures of a batch; ``model(noisy, t, embeddings)`` returns an object with ``sample``.

        Gradients reach the text encoder if its parameters require them.
        """
        n, device = len(batch["caption"]), batch["image"].device
        drop = torch.rand(n, generator=generator) < self.empty
        texts = ["" if d else c for d, c in zip(drop.tolist(), batch["caption"], strict=True)]
        self.encoders.to(device)
        latents = self.encoders.latents(batch["image"]).repeat(self.draws, 1, 1, 1)
        embeddings = self.encoders.embed(texts, device).repeat(self.draws, 1, 1)
        t = sample_timesteps(len(latents), generator, self.logit_mean).to(device)
        noise = noise_like(latents, generator)
        noisy = self.scheduler.add_noise(latents, noise, t)
        with attention_kernel(device):
            velocity = model(noisy, t, embeddings).sample
        error = (velocity - self.scheduler.get_velocity(latents, noise, t)) ** 2
        loss = (object_weight(batch.get("mask"), latents, self.focus, self.draws) * error).mean()
        return loss, {"loss": loss.item(), "plain": error.mean().item()}


def object_weight(mask: Tensor | None, latents: Tensor, focus: float, draws: int) -> Tensor:
    """Loss weights (N, 1, h, w) of mean 1: ``focus`` inside masks (N / draws, H, W), 1 outside."""
    if mask is None:
        return torch.ones_like(latents[:, :1])
    inside = F.adaptive_avg_pool2d(mask[:, None], (latents.shape[2], latents.shape[3]))
    weight = 1 + (focus - 1) * inside.repeat(draws, 1, 1, 1)
    return weight / weight.mean()


@register("denoiser")
class DenoiserTask(Task):
    """Velocity prediction; see :class:`VelocityLoss` for ``empty``, ``focus``, ``draws`` and ``logit_mean``.

    Args:
        components: with the autoencoder and the text encoder; they are installed next to the weights.
        data: images and captions.
        channels: of each resolution; multiples of 16, for the group norms.
        layers: residual blocks per resolution.
        head: channels of an attention head; at most the channels of each resolution with attention.
        attend: whether each resolution has attention.
        train_text: train the text encoder too. With compositions in the data its tokenizer gets a token for
            each of their words; texts without such a word are embedded as before when training starts.
    """

    folder = "unet"
    requires = ("vae", "text_encoder")

    def __init__(
        self,
        components: Components,
        data: DataConfig,
        *,
        channels: Annotated[list[Channels16], Levels],
        layers: Count,
        head: Channels,
        attend: Annotated[list[bool], Length(0, MAX_LEVELS)],
        empty: Share = 0.1,
        focus: LossWeight = 1.0,
        draws: Count = 1,
        logit_mean: Annotated[float, Range(-10, 10)] = 0.0,
        train_text: bool = False,
    ) -> None:
        from diffusers import UNet2DConditionModel

        count = len(channels)
        require(len(attend) == count, "attend", attend, f"a list of {count}, one for each of task.channels")
        # The middle block has the last resolution's channels, and always attends.
        attending = [channels[-1], *(c for c, on in zip(channels, attend, strict=True) if on)]
        fewest = min(attending)
        require(head <= fewest, "head", head, f"at most {fewest}, the fewest channels with attention")
        components.install("vae", "text_encoder", "tokenizer")
        self.data = Data(data, Scenes)
        self.velocity = VelocityLoss(components, empty, focus, draws, logit_mean)
        encoders = self.velocity.encoders
        self.train_text = train_text
        if train_text and data.compositions:
            encoders.add_words(composition_captions.words())
        down = ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attend]
        up = ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attend)]
        self.unet: Any = build_network(
            lambda: UNet2DConditionModel(
                sample_size=data.size // encoders.downsampling,
                in_channels=4,
                out_channels=4,
                down_block_types=down,
                up_block_types=up,
                block_out_channels=channels,
                layers_per_block=layers,
                norm_num_groups=16,
                cross_attention_dim=encoders.width,
                # In Stable Diffusion 1's configuration this key is the number of heads.
                attention_head_dim=[max(1, c // head) for c in channels],
            )
        )
        self.model: Any = self.unet
        if train_text:
            self.model = nn.ModuleDict({"unet": self.unet, "text": encoders.text.requires_grad_(True)})

    def loss(self, model: Any, batch: Any, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        return self.velocity(model["unet"] if self.train_text else model, batch, generator)

    def export(self, model: Any, folder: Path) -> None:
        if self.train_text:
            save_text_encoder(model["text"], self.velocity.encoders.tokenizer, folder.parent)
        save_fp16(model["unet"] if self.train_text else model, folder)
        write_layout(folder.parent, self.data.captions, bool(self.data.config.compositions))

    def load_weights(self, folder: Path) -> None:
        load_weights(self.unet, folder)  # the text encoder was loaded when the task was built

    @classmethod
    def checks(cls) -> tuple[Check, ...]:
        from ctxedit.training.checks import compositions, editing, text_to_image

        return text_to_image.CHECK, editing.CHECK, compositions.PICTURES


def attention_kernel(device: torch.device) -> AbstractContextManager[None]:
    """The plain kernel on a CPU: for so few positions flash attention is slower, in bf16 by a fifth."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


def sample_timesteps(n: int, generator: torch.Generator, logit_mean: float = 0.0) -> Tensor:
    """Timesteps (n) in [0, 1000): the first half uniform, the rest logit-normal."""
    middle = torch.sigmoid(torch.randn(n, generator=generator) + logit_mean) * 1000
    even = torch.rand(n, generator=generator) * 1000
    return torch.where(torch.arange(n) < n // 2, even, middle).long().clamp(0, 999)
