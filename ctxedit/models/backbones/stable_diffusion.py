"""Stable Diffusion 1.x and 2.x in diffusers' format, or as one file; frames folded into the batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from numpy.typing import NDArray
from torch import Tensor, nn

from ctxedit.diffusion import schedule
from ctxedit.errors import ConfigError, InputError, ResourceError, WeightsError
from ctxedit.models import single_file
from ctxedit.models.attention import FrameView
from ctxedit.models.backbones.base import Backbone
from ctxedit.models.backbones.checkpoint_sizes import largest, sizes_of, tensors_of
from ctxedit.models.backbones.scheduler import alphas_cumprod, check_scheduler
from ctxedit.models.clip import check_special_tokens, load_model, load_tokenizer
from ctxedit.models.conditioning import Condition
from ctxedit.models.control import Control, Denoiser
from ctxedit.models.deep_cache import DeepBlocks
from ctxedit.models.device import latent_dtype, storage_dtype
from ctxedit.models.embedding import Embedding, add_embedding
from ctxedit.models.families import register
from ctxedit.models.lora import Lora, merge_lora
from ctxedit.models.original import TOKENS
from ctxedit.models.sites import AttentionSite, sites_of_unet
from ctxedit.models.sizes import Sizes, Weight, read_config, weight_of
from ctxedit.models.weights import Checkpoint, check_finite, network

#: Settings of a UNet with more conditions than timestep and text.
_MORE_CONDITIONS = (
    "class_embed_type", "num_class_embeds", "time_cond_proj_dim", "encoder_hid_dim", "encoder_hid_dim_type",
    "dual_cross_attention",
)  # fmt: skip


@register("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionControlNetPipeline")
class StableDiffusion(Backbone):
    """A UNet over latents with one CLIP text encoder.

    Attributes:
        unet, vae, text_encoder, tokenizer: the stock networks.
        offload: autoencoder and text encoder wait in main memory and visit the device when they are called.
        alphas_cumprod: (T,) float64 of the schedule it was trained with.
    """

    #: ``addition_embed_type`` of the UNet: what else its time embedding is conditioned on.
    added_embedding: ClassVar[str | None] = None
    networks_in: ClassVar[tuple[str, ...]] = ("vae", "unet", "text_encoder")
    others_in: ClassVar[tuple[str, ...]] = ("tokenizer", "scheduler")
    lora_loader: ClassVar[str | None] = "StableDiffusionLoraLoaderMixin"
    reuses_features: ClassVar[bool] = True
    plans_without_weights: ClassVar[bool] = True

    def __init__(
        self,
        checkpoint: Checkpoint,
        loaded: dict[str, Any],
        device: torch.device,
        dtype: torch.dtype,
        offload: bool = False,
    ) -> None:
        self.offload = offload
        self.name, self.builtin, self.path = checkpoint.name, checkpoint.builtin, checkpoint.path
        self._own = checkpoint.own
        self.unet, self.vae = loaded["unet"], loaded["vae"]
        self.text_encoder, self.tokenizer = loaded["text_encoder"], loaded["tokenizer"]
        self.device, self.dtype = device, dtype
        self.control: Control | None = None
        self._embedded: dict[int, dict[int, list[int]]] = {}
        self._scheduler = loaded["scheduler"].config
        self.prediction = self._scheduler.prediction_type
        self.alphas_cumprod = alphas_cumprod(self._scheduler)
        self.factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.resolution = self.factor * largest(self.unet.config.sample_size)
        # Every level of the UNet halves the latent; a side that does not halve evenly would not come back.
        self.multiple = self.factor * 2 ** (len(self.unet.config.block_out_channels) - 1)
        self.latent_channels = int(self.unet.config.in_channels)
        self.context_width = int(self.unet.config.cross_attention_dim)
        places = int(self.text_encoder.config.max_position_embeddings)
        self.context_length = min(int(self.tokenizer.model_max_length), places)

    # -- before loading ----------------------------------------------------------------------------

    @classmethod
    def open(
        cls, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, offload: bool = False
    ) -> Backbone:
        waiting = [part for part in cls.networks_in if part != "unet"] if offload else []
        return cls(checkpoint, parts(cls, checkpoint, device, dtype, waiting), device, dtype, offload)

    @classmethod
    def load_networks(cls, checkpoint: Checkpoint, dtypes: dict[str, torch.dtype]) -> dict[str, Any]:
        """The networks by folder, on the CPU, each in its precision."""
        from diffusers import AutoencoderKL
        from transformers import CLIPTextModel, CLIPTextModelWithProjection

        path = checkpoint.path
        if checkpoint.form == "file":
            return single_file.load_networks(single_file.open_single_file(path), dtypes)
        encoders = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
        bodies = {"vae": AutoencoderKL, "unet": UNet2DConditionModel}
        return {
            part: network(bodies[part], path, part, dtype)
            if part in bodies
            else load_model(encoders[part], path / part, "cpu", dtype)
            for part, dtype in dtypes.items()
        }

    @classmethod
    def load_others(cls, checkpoint: Checkpoint) -> dict[str, Any]:
        """Tokenizers and scheduler by folder."""
        from diffusers import DDIMScheduler
        from transformers import CLIPTokenizer

        folder = checkpoint.settings
        return {
            part: DDIMScheduler.from_pretrained(folder, subfolder=part)
            if part == "scheduler"
            else load_tokenizer(folder / part, CLIPTokenizer)
            for part in cls.others_in
        }

    @classmethod
    def check(cls, checkpoint: Checkpoint) -> None:
        unet, vae = (read_config(checkpoint.settings / part) for part in ("unet", "vae"))
        if (named := unet.get("_class_name", "UNet2DConditionModel")) != "UNet2DConditionModel":
            raise WeightsError(
                f"{checkpoint.name}: its denoiser is a {named}, not a UNet2DConditionModel",
                "video and transformer checkpoints are not supported",
            )
        taken, given = unet.get("in_channels", 4), unet.get("out_channels", 4)
        latent = vae.get("latent_channels", 4)
        if taken != latent:
            raise WeightsError(
                f"{checkpoint.name}: the UNet takes {taken} channels, the autoencoder has {latent}",
                "inpainting, instruction and upscaling checkpoints are not supported",
            )
        if given != latent:
            raise WeightsError(
                f"{checkpoint.name}: the UNet gives {given} channels, the autoencoder takes {latent}",
                "checkpoints that predict a variance as well are not supported",
            )
        extra = [key for key in _MORE_CONDITIONS if unet.get(key)]
        if unet.get("addition_embed_type") != cls.added_embedding or extra:
            raise WeightsError(
                f"{checkpoint.name}: the UNet has conditioning that its model family does not "
                f"({', '.join(extra) or 'addition_embed_type'})",
                "distilled, upscaling and image-conditioned checkpoints are not supported",
            )
        check_scheduler(checkpoint)

    @classmethod
    def unet_config(cls, checkpoint: Checkpoint) -> Any:
        return SimpleNamespace(**read_config(checkpoint.settings / "unet"))

    def merge(self, lora: Lora) -> None:
        merge_lora(lora, type(self), {n: getattr(self, n) for n in self.networks_in if n != "vae"})

    def embed_tokens(self, embedding: Embedding) -> None:
        for part in embedding.vectors:
            names = (part, f"tokenizer{part.removeprefix('text_encoder')}")
            encoder, tokenizer = (getattr(self, name, None) for name in names)
            if encoder is None or tokenizer is None:
                raise WeightsError(f"{self.name} has no {part}", "leave out the embedding")
            ids = add_embedding(embedding, self.name, tokenizer, encoder, part)
            self._embedded.setdefault(id(tokenizer), {})[ids[0]] = ids
        self.learned_tokens = (*self.learned_tokens, embedding.token)

    @classmethod
    def check_prompts(cls, checkpoint: Checkpoint, texts: Sequence[str]) -> None:
        from transformers import CLIPTokenizer

        for part in cls.others_in:
            if part.startswith("tokenizer"):
                encoder = read_config(checkpoint.settings / part.replace("tokenizer", "text_encoder"))
                found = load_tokenizer(checkpoint.settings / part, CLIPTokenizer)
                check_special_tokens(found, encoder.get("vocab_size", TOKENS), checkpoint.name)
        tokenizer = load_tokenizer(checkpoint.settings / "tokenizer", CLIPTokenizer)
        room = cls.sizes(checkpoint).context_length - 2
        for text in texts:
            ids = tokenizer(text).input_ids
            if len(ids) > room + 2:
                cut = tokenizer.decode(ids[room + 1 : -1]).strip()
                raise InputError(
                    f"the prompt has {len(ids) - 2} tokens, the text encoder takes {room}: “{text[:40]}…”",
                    f"shorten it: this would be cut: “{cut[:80]}”; or --set edit.long_prompts=true",
                )

    @classmethod
    def sizes(cls, checkpoint: Checkpoint) -> Sizes:
        return sizes_of(checkpoint.settings, *_weights(cls, checkpoint))

    # -- frames and words --------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, frames: NDArray[np.uint8], chunk: int | None = None) -> Tensor:
        """RGB uint8 (F, H, W, 3) to scaled latents (F, C, H/f, W/f): the posterior's mean, in slices."""
        chunk = chunk or self.at_once
        pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).to(self.device, self.vae.dtype) / 127.5 - 1
        with self._visiting(self.vae):
            means = [self.vae.encode(part).latent_dist.mean for part in pixels.split(chunk)]
        return (torch.cat(means) * self.vae.config.scaling_factor).to(latent_dtype(self.dtype))

    @torch.no_grad()
    def decode(self, latents: Tensor, chunk: int | None = None) -> NDArray[np.uint8]:
        chunk = chunk or self.at_once
        scaled = (latents / self.vae.config.scaling_factor).to(self.device, self.vae.dtype)
        with self._visiting(self.vae):
            pixels = torch.cat([self.vae.decode(part).sample.float() for part in scaled.split(chunk)])
        levels = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        return levels.permute(0, 2, 3, 1).cpu().numpy()

    @torch.no_grad()
    def condition(self, texts: Sequence[str]) -> Condition:
        """The text encoder's last hidden state."""
        with self._visiting(self.text_encoder):
            found = self.text_encoder(self._ids(self.tokenizer, texts)).last_hidden_state
        return Condition(self._joined(found))

    def _ids(self, tokenizer: Any, texts: Sequence[str]) -> Tensor:
        """Token ids (texts·chunks, L / chunks), a text's chunks after one another."""
        length = self.context_length // self.chunks
        if self.chunks == 1 and not self._embedded:
            ids = tokenizer(
                list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
            ).input_ids
            found: Tensor = ids.to(self.device)
            return found
        rows = []
        for text in texts:
            tokens = [token for token, _ in self._tokens(tokenizer, text)]
            for at in range(self.chunks):
                part = tokens[at * (length - 2) : (at + 1) * (length - 2)]
                row = [tokenizer.bos_token_id, *part, tokenizer.eos_token_id]
                rows.append(row + [tokenizer.pad_token_id] * (length - len(row)))
        return torch.tensor(rows, device=self.device)

    def _joined(self, tokens: Tensor) -> Tensor:
        """(texts·chunks, l, D) to (texts, chunks·l, D)."""
        return tokens.reshape(-1, self.chunks * tokens.shape[1], tokens.shape[2])

    def _tokens(self, tokenizer: Any, text: str) -> list[tuple[int, tuple[int, int]]]:
        """A text's token ids and their characters; an embedding's token covers all of its vectors."""
        known = self._embedded.get(id(tokenizer), {})
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        pairs = zip(encoded.input_ids, encoded.offset_mapping, strict=True)
        return [(each, span) for token, span in pairs for each in known.get(token, [token])]

    def token_spans(self, text: str) -> list[tuple[int, int]]:
        return [span for _, span in self._tokens(self.tokenizer, text)]

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

    # -- noise levels ------------------------------------------------------------------------------

    def levels(self, steps: int) -> schedule.Levels:
        spacing = self._scheduler.timestep_spacing
        offset = self._scheduler.steps_offset if spacing == "leading" else 0
        try:
            return schedule.levels(self.alphas_cumprod, steps, spacing, offset, self._alpha_0)
        except ValueError as error:
            raise ConfigError(f"{self.name} has no {steps} steps: {error}", "take fewer") from error

    @property
    def _alpha_0(self) -> float | None:
        """ᾱ_0 where it is not 1."""
        first = self.final_alpha == "checkpoint" and not self._scheduler.get("set_alpha_to_one", True)
        return float(self.alphas_cumprod[0]) if first else None

    def training_level(self, generator: torch.Generator) -> tuple[int | float, Tensor, Tensor]:
        # At zero signal a noise head does not determine x_0: such a level trains nothing.
        usable = self.alphas_cumprod > 0 if self.prediction == "epsilon" else self.alphas_cumprod >= 0
        t = int(torch.randint(0, int(usable.sum()), (), generator=generator))
        bar = self.alphas_cumprod[t]
        return t, bar.sqrt(), (1 - bar).sqrt()

    # -- the denoiser ------------------------------------------------------------------------------

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        return (self.unet,) if self.control is None else (self.unet, self.control.net)

    def attention_sites(self, network: nn.Module) -> tuple[AttentionSite, ...]:
        return sites_of_unet(network)

    def raw(
        self, x: Tensor, timestep: int | float | Tensor, condition: Condition | Tensor, view: FrameView
    ) -> Tensor:
        rows = Condition.of(condition).for_frames(view.frames).to(self.dtype)
        noisy, added = x.to(self.dtype), self._added(rows, x)
        with view.in_effect():
            more: dict[str, Any] = {}
            if self.control is not None:
                more = self.control(noisy, timestep, rows.tokens, view, added)
            out = self.unet(noisy, timestep, rows.tokens, added_cond_kwargs=added, **more).sample
        return out.to(x.dtype)

    def _added(self, rows: Condition, x: Tensor) -> dict[str, Tensor] | None:
        """Additional inputs of the time embedding; none here."""
        return None

    def deep_blocks(self) -> DeepBlocks:
        return DeepBlocks(self.unet)

    @property
    def denoiser(self) -> Denoiser:
        config = self.unet.config
        return Denoiser(
            self.name,
            self._own,
            tuple(config.block_out_channels),
            largest(config.layers_per_block),
            self.latent_channels,
            self.context_width,
            self.factor,
        )


def parts(
    family: type[StableDiffusion],
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: torch.dtype,
    waiting: Sequence[str] = (),
) -> dict[str, Any]:
    """Load a checkpoint's networks, frozen and in eval mode, its tokenizers and its scheduler.

    Those named in ``waiting`` stay in main memory.

    Raises:
        WeightsError: broken files, weights missing, NaN in weights.
        ResourceError: not enough memory.
    """
    try:
        stored = storage_dtype(dtype, device)
        dtypes = {part: dtype if part == "unet" else stored for part in family.networks_in}
        out = family.load_networks(checkpoint, dtypes) | family.load_others(checkpoint)
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise ResourceError(
            f"not enough memory for {checkpoint.name}", "take a smaller model or dtype"
        ) from error
    except (WeightsError, ConfigError):
        raise
    except Exception as error:
        line = str(error).strip().split("\n")[0][:200]
        raise WeightsError(f"{checkpoint.name} cannot be loaded: {line}", "fetch or save it again") from error
    for name in family.networks_in:
        place = torch.device("cpu") if name in waiting else device
        out[name] = out[name].to(place).eval().requires_grad_(False)
        check_finite(out[name], f"{checkpoint.name}/{name}")
    return out


def _weights(
    family: type[StableDiffusion], checkpoint: Checkpoint
) -> tuple[dict[str, Weight], frozenset[str]]:
    """Parameters and bytes of each network, and the UNet's tensors, where these have diffusers' names.

    Nothing is known of weights that are not fetched yet.
    """
    if not checkpoint.has_weights:
        return dict.fromkeys(family.networks_in, Weight()), frozenset()
    if checkpoint.form == "file":
        return single_file.open_single_file(checkpoint.path).weights, frozenset()
    tensors = tensors_of(checkpoint.path, family.networks_in)
    weights = {part: weight_of(found) for part, found in tensors.items()}
    return weights, frozenset(tensors["unet"])
