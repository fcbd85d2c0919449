"""The backbone: any diffusers-format Stable Diffusion 1.x or 2.x, frames folded into the batch.

An object with few abilities: encode and decode frames, embed a prompt, predict
x̂_0, name its attention layers, say its schedule's levels. Nothing outside this file asks which model it is.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from numpy.typing import NDArray
from torch import Tensor, nn

from ctxedit.config import AttentionConfig
from ctxedit.diffusion import schedule
from ctxedit.diffusion.parameterization import Prediction, to_x0
from ctxedit.errors import ConfigError, InputError, WeightsError
from ctxedit.files import read_json
from ctxedit.models.attention import FrameView, frame_attention
from ctxedit.models.control import Control, Denoiser
from ctxedit.models.temporal import TemporalLayers
from ctxedit.models.weights import Checkpoint, locate, parts
from ctxedit.naming import VOCABULARY


@dataclass(frozen=True)
class Word:
    """A word of a prompt and the positions of its tokens in the text encoder's output."""

    text: str
    tokens: tuple[int, ...]


class Backbone:
    """A loaded Stable Diffusion checkpoint, frozen.

    Attributes:
        name: for labels.
        builtin: whether it is the small one in the package.
        unet, vae, text_encoder: the stock networks.
        resolution: pixels of the side it was trained on.
        multiple: frame sides must be multiples of this.
        offload: autoencoder and text encoder wait in main memory and visit the device when they are called.
        control: the ControlNet beside the UNet, or None.
    """

    def __init__(
        self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, offload: bool = False
    ) -> None:
        self.offload = offload
        loaded = parts(checkpoint, device, dtype, waiting=("vae", "text_encoder") if offload else ())
        self.name, self.builtin, self.path = checkpoint.name, checkpoint.builtin, checkpoint.path
        self._own = checkpoint.own
        self.unet, self.vae = loaded["unet"], loaded["vae"]
        self.text_encoder, self.tokenizer = loaded["text_encoder"], loaded["tokenizer"]
        self.device, self.dtype = device, dtype
        self.control: Control | None = None
        self._scheduler = loaded["scheduler"].config
        self._set_up()

    def _set_up(self) -> None:
        self.prediction: Prediction = self._scheduler.prediction_type
        self.alphas_cumprod = _alphas_cumprod(self._scheduler)
        self.factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        sample = self.unet.config.sample_size
        self.resolution = self.factor * (sample if isinstance(sample, int) else max(sample))
        # Every level of the UNet halves the latent; a side that does not halve evenly would not come back.
        self.multiple = self.factor * 2 ** (len(self.unet.config.block_out_channels) - 1)
        self.latent_channels = int(self.unet.config.in_channels)
        self.context_width = int(self.unet.config.cross_attention_dim)
        places = int(self.text_encoder.config.max_position_embeddings)
        self.context_length = min(int(self.tokenizer.model_max_length), places)
        if self.latent_channels != self.vae.config.latent_channels:
            raise WeightsError(
                f"{self.name}: the UNet takes {self.latent_channels} channels, the autoencoder gives "
                f"{self.vae.config.latent_channels}",
                "inpainting and upscaling checkpoints are not supported",
            )

    @classmethod
    def load(cls, model: str, device: torch.device, dtype: torch.dtype, offline: bool = False) -> Backbone:
        """Locate and load; errors as in :mod:`ctxedit.models.weights`."""
        return cls(locate(model, offline), device, dtype)

    def levels(self, steps: int) -> schedule.Levels:
        """The used noise levels for so many steps, spaced as the checkpoint's scheduler says."""
        spacing = self._scheduler.timestep_spacing
        offset = self._scheduler.steps_offset if spacing == "leading" else 0
        try:
            return schedule.levels(self.alphas_cumprod, steps, spacing, offset)
        except ValueError as error:
            raise ConfigError(f"{self.name} has no {steps} steps: {error}", "take fewer") from error

    @torch.no_grad()
    def encode(self, frames: NDArray[np.uint8], chunk: int = 4) -> Tensor:
        """RGB uint8 (F, H, W, 3) to scaled latents (F, C, H/f, W/f): the posterior's mean, in slices."""
        pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).to(self.device, self.dtype) / 127.5 - 1
        with self._visiting(self.vae):
            means = [self.vae.encode(part).latent_dist.mean for part in pixels.split(chunk)]
        return torch.cat(means) * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor, chunk: int = 4) -> NDArray[np.uint8]:
        """Scaled latents (F, C, h, w) to RGB uint8 (F, H, W, 3), in slices."""
        scaled = (latents / self.vae.config.scaling_factor).to(self.device, self.dtype)
        with self._visiting(self.vae):
            pixels = torch.cat([self.vae.decode(part).sample.float() for part in scaled.split(chunk)])
        levels = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        return levels.permute(0, 2, 3, 1).cpu().numpy()

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """Texts to the text encoder's last hidden state (N, L, D); the empty text is unconditional."""
        ids = self.tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=self.context_length,
            return_tensors="pt",
        ).input_ids.to(self.device)
        with self._visiting(self.text_encoder):
            return self.text_encoder(ids).last_hidden_state

    @contextmanager
    def _visiting(self, module: nn.Module) -> Iterator[None]:
        """A module on the device for as long as it is needed, where the settings offload."""
        if self.offload:
            module.to(self.device)
        try:
            yield
        finally:
            if self.offload:
                module.to("cpu")

    def words(self, text: str) -> list[Word]:
        """The prompt's words and their tokens' positions (position 0 is the start token).

        Marks that the tokenizer takes together ("...") are one word.

        Raises:
            InputError: the prompt is longer than the text encoder takes.
        """
        text = unicodedata.normalize("NFC", text)  # as the tokenizer sees it
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        places: list[tuple[int, int]] = encoded.offset_mapping
        room = self.context_length - 2
        if len(places) > room:
            rest = split_words(text[places[room][0] :])
            raise InputError(
                f"the prompt has {len(places)} tokens, {self.name} takes {room}",
                f"shorten it: from {rest[0]!r} on it would be cut",
            )
        starts = [m.start() for m in _WORD.finditer(text) if not any(a < m.start() < b for a, b in places)]
        found = []
        for start, end in itertools.pairwise([*starts, len(text)]):
            tokens = tuple(at for at, (a, _) in enumerate(places, 1) if start <= a < end)
            if tokens:
                found.append(Word(text[start:end].strip(), tokens))
        return found

    def predict_x0(
        self, x: Tensor, timestep: int, context: Tensor, signal: Tensor, noise: Tensor, view: FrameView
    ) -> Tensor:
        """x̂_0 of (lanes·frames, C, h, w) latents at a level (Eq 6).

        Args:
            x: latents, lanes after one another.
            timestep: what the network is told.
            context: (lanes, L, D) text embeddings, one for each lane.
            signal, noise: the level that ``x`` is at.
            view: frames, lanes, fusion.
        """
        return to_x0(self.raw(x, timestep, context, view), x, signal, noise, self.prediction)

    def raw(self, x: Tensor, timestep: int | Tensor, context: Tensor, view: FrameView) -> Tensor:
        """The network's own output (noise or velocity), float32 for half-precision networks."""
        words = context.repeat_interleave(view.frames, dim=0).to(self.dtype)
        noisy = x.to(self.dtype)
        added = {} if self.control is None else self.control(noisy, timestep, words, view)
        out = self.unet(noisy, timestep, words, cross_attention_kwargs={"view": view}, **added).sample
        return out.to(x.dtype)

    @contextmanager
    def attention(self, config: AttentionConfig) -> Iterator[None]:
        """Clip attention in the UNet, and in the ControlNet, for as long as the block lasts."""
        with ExitStack() as stack:
            for net in self.networks:
                stack.enter_context(frame_attention(net, config.backend))
            yield

    @property
    def networks(self) -> tuple[UNet2DConditionModel | ControlNetModel, ...]:
        """What is asked at every step, and what tuning may move: the UNet, and the ControlNet if any."""
        return (self.unet,) if self.control is None else (self.unet, self.control.net)

    @property
    def denoiser(self) -> Denoiser:
        """The sizes that a ControlNet must fit."""
        config = self.unet.config
        layers = config.layers_per_block
        return Denoiser(
            self.name,
            self._own,
            tuple(config.block_out_channels),
            layers if isinstance(layers, int) else max(layers),
            self.latent_channels,
            self.context_width,
            self.factor,
        )

    def temporal_layers(self, seed: int = 0, init: Literal["zero", "copy"] = "zero") -> TemporalLayers:
        """Fresh temporal layers, hooked into the UNet; they do nothing until trained."""
        return TemporalLayers(self.unet, seed, init).to(self.device)

    def select(self, names: Sequence[str]) -> dict[str, nn.Parameter]:
        """The UNet's parameters whose path contains one of the names, e.g. ``attn1.to_q``."""
        return _select(self.unet, names)

    def select_control(self, names: Sequence[str]) -> dict[str, nn.Parameter]:
        """The ControlNet's parameters whose path contains one of the names; none without a ControlNet."""
        return {} if self.control is None else _select(self.control.net, names)


def _select(net: nn.Module, names: Sequence[str]) -> dict[str, nn.Parameter]:
    return {
        key: value
        for key, value in net.named_parameters()
        if any(f".{name}." in f".{key}." for name in names)
    }


#: A word, with what an apostrophe or a hyphen joins to it, or one mark.
_WORD = re.compile(r"\w+(?:['’-]\w+)*|[^\w\s]")


def split_words(text: str) -> list[str]:
    """Words and punctuation marks, in order; what prompt-to-prompt aligns."""
    return _WORD.findall(unicodedata.normalize("NFC", text))


def _alphas_cumprod(config: Any) -> Tensor:
    if config.get("trained_betas") is not None:
        return torch.cumprod(1 - torch.tensor(config["trained_betas"], dtype=torch.float64), 0)
    kinds = {"scaled_linear": "scaled_linear", "linear": "linear", "squaredcos_cap_v2": "cosine"}
    if config.beta_schedule not in kinds:
        raise WeightsError(f"unknown beta schedule {config.beta_schedule!r}")
    return schedule.alphas_cumprod(
        config.num_train_timesteps,
        config.beta_start,
        config.beta_end,
        kinds[config.beta_schedule],  # type: ignore[arg-type]
        bool(config.rescale_betas_zero_snr),
    )


def builtin_vocabulary(path: Path) -> set[str] | None:
    """Words that the built-in models were trained on, or None for a model that does not say."""
    file = path / VOCABULARY
    if not file.is_file():
        return None
    words = read_json(file, "list of words", error=WeightsError)
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise WeightsError(f"{file} is no list of words", "train or copy the model again")
    return set(words)
