"""From the setting ``upscale.model`` to an upscaler on disk, its size, and the loaded networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch

from ctxedit.config import Config
from ctxedit.errors import ConfigError, ResourceError, WeightsError
from ctxedit.files import expanded
from ctxedit.models import layout
from ctxedit.models.backbones.scheduler import check_scheduler
from ctxedit.models.clip import check_special_tokens, load_model, load_tokenizer
from ctxedit.models.families import register_layout
from ctxedit.models.sizes import Sizes, Weight, folder_weight, read_config
from ctxedit.models.upscalers import pixels
from ctxedit.models.upscalers.base import SCALE, Upscaler, UpscaleSampling
from ctxedit.models.upscalers.networks import LatentUpscaler, PixelUpscaler
from ctxedit.models.weights import (
    BUILTIN_FOLDER,
    Checkpoint,
    check_finite,
    is_half,
    network,
    own_folder,
    own_part,
    pipeline_folder,
    pipeline_of,
)

#: Beside real checkpoints, where the settings name none.
X4_UPSCALER = "stabilityai/stable-diffusion-x4-upscaler"
PIPELINE = "StableDiffusionUpscalePipeline"
_PART = "upscaler"
_KINDS = "an upscaler is one that `ctxedit train upscaler` made, or a diffusers x4 upscaler, by id or folder"


@register_layout(PIPELINE)
class X4Layout:
    """The folders of a ``StableDiffusionUpscalePipeline``, and what is refused."""

    networks_in: ClassVar[tuple[str, ...]] = ("vae", "unet", "text_encoder")
    others_in: ClassVar[tuple[str, ...]] = ("tokenizer", "scheduler", "low_res_scheduler")

    @classmethod
    def check(cls, checkpoint: Checkpoint) -> None:
        """Raise WeightsError for networks that do not fit each other; config files alone are read."""
        path = checkpoint.path
        unet, vae = (read_config(path / part) for part in ("unet", "vae"))
        inner, outer = unet.get("in_channels", 4), vae.get("latent_channels", 4) + 3
        if inner != outer:
            raise WeightsError(
                f"{checkpoint.name}: the UNet takes {inner} channels, not {outer} (latents and RGB)",
                _KINDS,
            )
        if (factor := 2 ** (len(vae.get("block_out_channels", ())) - 1)) != SCALE:
            raise WeightsError(f"{checkpoint.name} upscales {factor} times, not {SCALE}", _KINDS)
        if unet.get("num_class_embeds") is None and unet.get("class_embed_type") is None:
            raise WeightsError(f"{checkpoint.name}: the UNet does not take a noise level", _KINDS)
        check_scheduler(checkpoint)


@dataclass(frozen=True)
class Found:
    """An upscaler on disk. ``own``: one that ``ctxedit train upscaler`` made."""

    name: str
    path: Path
    own: bool

    @property
    def kind(self) -> type[Upscaler]:
        """Its class."""
        return PixelUpscaler if self.own else LatentUpscaler

    @property
    def defaults(self) -> UpscaleSampling:
        """Its defaults."""
        return self.kind.defaults

    @property
    def texts(self) -> Path:
        """The folder that holds its text encoder and tokenizer."""
        if not self.own:
            return self.path
        parent = self.path.parent
        return parent if (parent / "text_encoder").is_dir() else BUILTIN_FOLDER


def locate_upscaler(setting: str, own: Path | None, offline: bool = False, half: bool = False) -> Found:
    """Find an upscaler without loading it; a hub id is fetched unless ``offline``.

    Args:
        setting: ``auto``, ``builtin``, a hub id or a folder. ``auto`` is the one next to the model in
            ``own``, else the built-in one; for checkpoints from elsewhere :data:`X4_UPSCALER`.
        own: the folder of the models, if they are ctxedit's own.
        offline: look into the hub's cache only.
        half: fp16 files are enough.

    Raises:
        WeightsError: nothing there, or something that is no upscaler.
    """
    if found := own_part(setting, own, _PART):
        return _own(found[1], found[0])
    name = X4_UPSCALER if setting == "auto" else setting
    path = expanded(name)
    if path.is_dir():
        for folder in (path, path / _PART):
            if (folder / "config.json").is_file() and not (folder / "model_index.json").is_file():
                return _own(f"{folder.parent.name}/{folder.name}", folder)
        if (path / "model_index.json").is_file() and (kind := pipeline_of(path)) != PIPELINE:
            raise WeightsError(f"{path} is a {kind}, not an upscaler", _KINDS)
    folder = pipeline_folder(name, offline, half)
    checkpoint = Checkpoint(path.name if path.is_dir() else name, folder, "folder")
    if (kind := pipeline_of(folder)) != PIPELINE:
        raise WeightsError(f"{name} is a {kind}, not an upscaler", _KINDS)
    X4Layout.check(checkpoint)
    return Found(checkpoint.name, folder, False)


def defaults_of(setting: str, own: Path | None) -> UpscaleSampling:
    """Defaults of the upscaler that a setting names, without downloading it."""
    path = expanded(setting)
    if own_part(setting, own, _PART) or (path.is_dir() and not (path / "model_index.json").is_file()):
        return PixelUpscaler.defaults
    return LatentUpscaler.defaults


def _own(name: str, folder: Path) -> Found:
    if not (folder / "config.json").is_file():
        raise WeightsError(
            f"{folder.parent} has no upscaler",
            "`ctxedit train upscaler --out DIR` makes one: then --upscaler DIR, or one of diffusers' by id",
        )
    config = read_config(folder)
    channels = (config.get("in_channels"), config.get("out_channels"))
    if channels != (pixels.IN_CHANNELS, pixels.FOLDED):
        raise WeightsError(f"{folder} is not an upscaler: its network maps {channels} channels", _KINDS)
    layout.require([file.name for file in folder.iterdir()], str(folder))
    return Found(name, folder, True)


def sizes_of(found: Found, half: bool = False) -> Sizes:
    """What planning needs to know; raises WeightsError for broken config files."""
    unet_folder = found.path if found.own else found.path / "unet"
    unet = read_config(unet_folder)
    try:
        kinds, layers = unet["down_block_types"], unet.get("layers_per_block", 2)
        return Sizes(
            folder_weight(unet_folder, half),
            Weight() if found.own else folder_weight(found.path / "vae", half),
            folder_weight(found.texts / "text_encoder", half),
            tuple(unet["block_out_channels"]),
            tuple(int("Attn" in kind) for kind in kinds),
            max(layers) if isinstance(layers, list) else int(layers),
            # Folded pixels take a few maps of RGB; they have no autoencoder.
            (3, 3, 3) if found.own else tuple(read_config(found.path / "vae")["block_out_channels"]),
            int(unet["out_channels"]),
            int(unet["cross_attention_dim"]),
            77,
            0,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{found.path}: its config files are not an upscaler's ({error!r})", "fetch or save it again"
        ) from error


def upscaler_of(config: Config, offline: bool, device: torch.device, dtype: torch.dtype) -> Upscaler:
    """The settings' upscaler, loaded; errors as of :func:`locate_upscaler` and :func:`open_upscaler`."""
    found = locate_upscaler(config.upscale.model, own_folder(config.model), offline, is_half(dtype))
    return open_upscaler(found, device, dtype)


def open_upscaler(found: Found, device: torch.device, dtype: torch.dtype) -> Upscaler:
    """Load an upscaler's networks, frozen, in eval mode.

    Raises:
        WeightsError: broken files, weights missing, NaN in weights.
        ResourceError: not enough memory.
    """
    loaded = _guarded(partial(_load, found, dtype), found)
    for name in ("unet", "vae", "text_encoder"):
        if name in loaded:
            module = loaded[name]
            loaded[name] = _guarded(partial(module.to, device), found)
            loaded[name].eval().requires_grad_(False)
            check_finite(loaded[name], f"{found.name}/{name}")
    return found.kind(found.name, loaded, device, dtype)


def _load(found: Found, dtype: torch.dtype) -> dict[str, Any]:
    from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    path = found.path
    root, part = (path.parent, path.name) if found.own else (path, "unet")
    loaded = {
        "unet": network(UNet2DConditionModel, root, part, dtype),
        "text_encoder": load_model(CLIPTextModel, found.texts / "text_encoder", "cpu", dtype),
        "tokenizer": load_tokenizer(found.texts / "tokenizer", CLIPTokenizer),
        "scheduler": DDIMScheduler.from_pretrained(path, subfolder="scheduler"),
        "low_res_scheduler": DDPMScheduler.from_pretrained(path, subfolder="low_res_scheduler"),
    }
    check_special_tokens(loaded["tokenizer"], loaded["text_encoder"].config.vocab_size, found.name)
    if not found.own:
        loaded["vae"] = network(AutoencoderKL, path, "vae", dtype)
    return loaded


def _guarded(load: Callable[[], Any], found: Found) -> Any:
    try:
        return load()
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise ResourceError(f"not enough memory for {found.name}", "upscale fewer frames") from error
    except (WeightsError, ConfigError):
        raise
    except Exception as error:
        line = str(error).strip().split("\n")[0][:200]
        raise WeightsError(f"{found.name} cannot be loaded: {line}", "fetch or save it again") from error
