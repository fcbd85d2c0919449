"""The context adapter r_φ(x_0, c, t): text and image attend to each other; its output shifts the diffusion.

Paper: sections 4.1 and 4.2, appendix C. Four blocks of spatial self-attention, temporal causal attention,
text ↔ image cross-attention with eight heads, a timestep embedding, a last projection of zeros.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

from ctxedit.config import AdapterConfig, Config, merge, validated
from ctxedit.diffusion.broadcast import Level, per_sample
from ctxedit.diffusion.forward import keep_norm, shift_scale
from ctxedit.errors import ConfigError, WeightsError
from ctxedit.models.attention import sdpa
from ctxedit.models.device import latent_dtype
from ctxedit.models.sizes import header, weight_of
from ctxedit.models.tensors import save_tensors
from ctxedit.models.weights import own_folder, pretrained_adapter


class _Attention(nn.Module):
    """Multi-head attention of ``x`` (B, N, width) over ``context`` (B, M, width), pre-normed, residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.norm_context = nn.LayerNorm(width)
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        q = self.q(self.norm(x)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(self.norm_context(context)).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        out = sdpa(q, k, v) if mask is None else F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return x + self.out(out.transpose(1, 2).flatten(2))


def _feed_forward(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
    )


class _Block(nn.Module):
    """Space, time, text → image, image → text, and a feed-forward on either side.

    The ``last`` block's text would be read by nothing: it has no text side.
    """

    def __init__(self, width: int, heads: int, last: bool) -> None:
        super().__init__()
        self.space = _Attention(width, heads)
        self.time = _Attention(width, heads)
        self.from_text = _Attention(width, heads)
        self.image_mlp = _feed_forward(width)
        self.from_image = None if last else _Attention(width, heads)
        self.text_mlp = None if last else _feed_forward(width)

    def forward(self, image: Tensor, text: Tensor, frames: int, causal: Tensor) -> tuple[Tensor, Tensor]:
        """image (B·F, N, width), text (B·F, L, width); ``causal`` (F, F) says which frames are seen."""
        image = self.space(image, image)
        clips, tokens = image.shape[0] // frames, image.shape[1]
        line = image.unflatten(0, (clips, frames)).transpose(1, 2).flatten(0, 1)
        line = self.time(line, line, causal)
        image = line.unflatten(0, (clips, tokens)).transpose(1, 2).flatten(0, 1)
        before = image
        image = self.from_text(image, text)
        if self.from_image is not None and self.text_mlp is not None:
            text = self.from_image(text, before)
            text = text + self.text_mlp(text)
        return image + self.image_mlp(image), text


class ContextAdapter(nn.Module):
    """r_φ(x_0, c, t) → the shape of x_0.

    Args:
        config: sizes, bound, shift scale.
        channels: of the latent.
        context_width: of the text encoder's output.
        image_width: of extra image tokens (CLIP's), 0 for none.
    """

    def __init__(
        self, config: AdapterConfig, channels: int, context_width: int, image_width: int = 0
    ) -> None:
        super().__init__()
        self.config = config
        self.sizes = {"channels": channels, "context_width": context_width, "image_width": image_width}
        width, patch = config.width, config.patch
        self.patches = nn.Conv2d(channels, width, patch, stride=patch)
        self.text_in = nn.Linear(context_width, width)
        self.image_in = nn.Linear(image_width, width) if image_width else None
        self.time_in = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(
            _Block(width, config.heads, i == config.blocks - 1) for i in range(config.blocks)
        )
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, channels * patch * patch)
        # Zero: an untuned adapter changes nothing.
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(
        self,
        x0: Tensor,
        context: Tensor,
        timestep: Tensor | int | float,
        frames: int,
        image_tokens: Tensor | None = None,
    ) -> Tensor:
        """The adapter's output r.

        Args:
            x0: (B·F, C, h, w) clean latents, or the prediction of them.
            context: (B, L, D) text embeddings, one for each clip.
            timestep: the network's timestep; an int, or (B,).
            frames: F.
            image_tokens: (B·F, M, image_width) tokens of CLIP's image encoder, where it was built for them.

        Returns:
            (B·F, C, h, w), at least float32; within ±``bound`` where the config sets one.
        """
        x0 = x0.to(self.out.weight.dtype)
        h, w = x0.shape[-2:]
        patch = self.config.patch
        # A latent side that is not a multiple of the patch is continued at its edge and cut off again.
        padded = F.pad(x0, (0, -w % patch, 0, -h % patch), mode="replicate")
        image = self.patches(padded)
        rows, columns = image.shape[-2:]
        image = image.flatten(2).transpose(1, 2)
        clips = x0.shape[0] // frames
        steps = torch.as_tensor(timestep, device=x0.device).expand(clips)
        time = self.time_in(_sinusoids(steps, self.config.width).to(x0)).repeat_interleave(frames, 0)[:, None]
        image = image + _positions(rows, columns, self.config.width, x0) + time
        text = self.text_in(context.to(x0)).repeat_interleave(frames, 0) + time
        if self.image_in is not None:
            if image_tokens is None:
                raise ValueError("this adapter was built for CLIP's image tokens")
            text = torch.cat([text, self.image_in(image_tokens.to(x0))], 1)
        causal = causal_mask(frames, self.config.window, x0.device)
        for block in self.blocks:
            image, text = block(image, text, frames, causal)
        out = self.out(self.norm(image)).transpose(1, 2).unflatten(2, (rows, columns))
        out = F.pixel_shuffle(out, patch)[..., :h, :w]
        out = out.to(latent_dtype(out.dtype))
        bound = self.config.bound
        return bound * torch.tanh(out / bound) if bound else out

    def scale(self, alpha: Level, sigma: Level) -> Tensor:
        """k_t of the adapter's variant."""
        return shift_scale(alpha, sigma, self.config.scale)

    def shift(self, r: Tensor, x0: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """b_t of the adapter's output r: k_t r, or what keeps the signal's norm where the config says so.

        Args:
            r: (B·F, C, h, w), what the adapter gave for ``x0``.
            x0: as ``r``.
            alpha, sigma: the level; float, 0-d or (B·F,).
        """
        b = per_sample(self.scale(alpha, sigma), x0) * r
        return keep_norm(b, x0, alpha) if self.config.norm == "kept" else b

    def save(self, path: Path, tensors: Mapping[str, Tensor] | None = None, **notes: str) -> None:
        """One safetensors file; the settings and sizes are in its metadata.

        Args:
            path: of the file.
            tensors: the weights, where they are known more precisely than this network has them.
            notes: further metadata.
        """
        about = {"config": json.dumps(asdict(self.config)), "sizes": json.dumps(self.sizes), **notes}
        save_tensors(path, dict(tensors or self.state_dict()), about)

    @staticmethod
    def check(path: Path) -> AdapterConfig:
        """The settings of an adapter's file, from its header; raises WeightsError if it is not one."""
        return ContextAdapter.describe(path)[0]

    @staticmethod
    def describe(path: Path) -> tuple[AdapterConfig, dict[str, int]]:
        """As :meth:`check`, with ``channels``, ``context_width`` and ``image_width``."""
        try:
            parameters = weight_of(header([path])).parameters
            with safe_open(path, "pt") as file:
                return _about(file.metadata() or {}, parameters)
        except Exception as error:
            raise _no_adapter(path, error) from error

    @classmethod
    def load(cls, path: Path, device: torch.device | str = "cpu") -> ContextAdapter:
        """Read what :meth:`save` wrote; raises WeightsError when it is not one."""
        try:
            stored = weight_of(header([path]))
            with safe_open(path, "pt", device=str(device)) as file:
                config, sizes = _about(file.metadata() or {}, stored.parameters)
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            adapter = cls(config, **sizes)
            adapter.load_state_dict(tensors)
            if broken := [key for key, value in tensors.items() if not bool(value.isfinite().all())]:
                raise ValueError(f"NaN or infinity in {broken[0]}")
        except Exception as error:
            raise _no_adapter(path, error) from error
        return adapter.to(device)


def adapter_to_start_from(config: Config) -> Path:
    """The file of the adapter that ``tune.adapter_init = "pretrained"`` means.

    Raises:
        ConfigError: the model has none, or one of other sizes or settings than ``[adapter]`` says.
        WeightsError: its file is damaged.
    """
    file = pretrained_adapter(own_folder(config.model))
    # The plain arm of a comparison has an adapter that was never used.
    if file is None or not (stored := ContextAdapter.check(file)).enabled:
        raise ConfigError(
            f'tune.adapter_init = "pretrained": {config.model} has no adapter',
            "--set tune.adapter_init=zero, or a model trained with one, e.g. by recipe arm-contextual",
        )
    ours, theirs = asdict(config.adapter), asdict(stored)
    if differing := [key for key in ours if ours[key] != theirs[key]]:
        first = differing[0]
        settings = " ".join(f"--set adapter.{key}={theirs[key]}" for key in differing)
        raise ConfigError(
            f"adapter.{first} = {ours[first]}, but {file} was trained with {theirs[first]}",
            f"{settings}, or --set tune.adapter_init=zero",
        )
    return file


@lru_cache(maxsize=16)
def adapter_parameters(config: AdapterConfig, channels: int, context_width: int, image_width: int = 0) -> int:
    """Parameters of a :class:`ContextAdapter` of these sizes; exact, and quick for any number of blocks.

    Counted on the meta device, on adapters of one and of two blocks: each further block is like the second.
    A plan asks for the same sizes several times.
    """

    def count(blocks: int) -> int:
        with torch.device("meta"):
            adapter = ContextAdapter(replace(config, blocks=blocks), channels, context_width, image_width)
        return sum(p.numel() for p in adapter.parameters())

    one, two = count(1), count(2)
    return one + (config.blocks - 1) * (two - one)


def _no_adapter(path: Path, error: Exception) -> WeightsError:
    line = str(error).split("\n")[0][:160]
    return WeightsError(f"{path} is not a context adapter: {line}", "tune again")


def _about(metadata: Mapping[str, str], parameters: int) -> tuple[AdapterConfig, dict[str, int]]:
    """Settings and sizes from a file's metadata, held against what the file stores before anything is built.

    Raises:
        ValueError, KeyError, TypeError, ConfigError: they are none, or belong to other weights.
    """
    config = merge(AdapterConfig(), json.loads(metadata["config"]))
    validated(replace(Config(), adapter=config))
    stored = json.loads(metadata["sizes"])
    sizes = {name: stored[name] for name in ("channels", "context_width", "image_width")}
    if not all(type(size) is int and size >= 0 for size in sizes.values()):
        raise ValueError(f"sizes = {sizes}")
    if (due := adapter_parameters(config, **sizes)) != parameters:
        raise ValueError(f"its settings make {due} parameters, {parameters} are stored")
    return config, sizes


def causal_mask(frames: int, window: int, device: torch.device | str = "cpu") -> Tensor:
    """(F, F) bool: frame i sees itself and the ``window − 1`` frames before it."""
    i = torch.arange(frames, device=device)
    gap = i[:, None] - i[None]
    return (gap >= 0) & (gap < window)


def _sinusoids(values: Tensor, width: int) -> Tensor:
    """(N,) to (N, width): sines and cosines, as the UNet's timestep embedding."""
    half = width // 2
    rates = torch.exp(-math.log(10_000) * torch.arange(half, device=values.device) / half)
    angles = values.float()[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], -1)


def _positions(h: int, w: int, width: int, like: Tensor) -> Tensor:
    """(h·w, width): half the width for rows, half for columns."""
    rows = _sinusoids(torch.arange(h, device=like.device), width // 2)[:, None].expand(-1, w, -1)
    columns = _sinusoids(torch.arange(w, device=like.device), width - width // 2)[None].expand(h, -1, -1)
    return torch.cat([rows, columns], -1).flatten(0, 1).to(like)
