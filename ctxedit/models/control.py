"""ControlNets (Zhang et al. 2023): finding, checking, loading and running them.

ControlVideo (Zhao et al. 2023) runs it in tuning, inversion and sampling, for the unconditional branch
of guidance as for the conditional one; here also for the source's branch of a fused step. Its frames attend
to the same frames as the denoiser's; fusion, heat maps and word weights are the denoiser's alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel
from torch import Tensor

from ctxedit.config import ControlConfig
from ctxedit.errors import ConfigError, ResourceError, WeightsError
from ctxedit.models.attention import FrameView
from ctxedit.models.clip import checkpoint_folder
from ctxedit.models.control_maps import check_library, computed_map
from ctxedit.models.sizes import read_config
from ctxedit.models.weights import check_finite, network

#: The one on Canny edges for Stable Diffusion 1.x, whose text encoder is so wide.
CANNY_SD1 = "lllyasviel/sd-controlnet-canny"
SD1_WIDTH = 768


@dataclass(frozen=True)
class Denoiser:
    """What a ControlNet must fit.

    Attributes:
        name: for errors.
        own: folder of the models, if they are ctxedit's own.
        channels: of the UNet, finest level first.
        layers: residual blocks at each level of the encoder half.
        latent_channels: that it takes.
        context_width: of the text encoder.
        factor: pixels a latent, in each direction.
    """

    name: str
    own: Path | None
    channels: tuple[int, ...]
    layers: int
    latent_channels: int
    context_width: int
    factor: int


def check_settings(config: ControlConfig, own: bool) -> None:
    """Raise ConfigError for a control that lacks its map, or a map without its ControlNet.

    ``own``: whether the model is one of ctxedit's own, which have one ControlNet for all maps.
    """
    if config.kind != "video":
        return
    if not config.map and computed_map(config.model):
        check_library(config.model)
    elif not config.map:
        raise ConfigError(
            "the settings need a control map, and none was given",
            "give one with --control FILE (depth, pose or edges of each frame), or use the clip's edges: "
            "--set control.kind=canny",
        )
    if config.model == "auto" and not own:
        raise ConfigError(
            "no ControlNet is named for the control map",
            "name the one for its kind, e.g. --set control.model=lllyasviel/sd-controlnet-depth",
        )


def locate_control(
    config: ControlConfig, denoiser: Denoiser | None, offline: bool = False, half: bool = False
) -> Path:
    """The folder of the settings' ControlNet, checked to fit; a hub id is fetched into the cache.

    ``denoiser`` is None for a model that takes no ControlNet.

    Raises:
        ConfigError: no ControlNet is known for the denoiser, or this one does not fit it.
        WeightsError: nothing there, weights that are not safetensors, a broken config.
    """
    if denoiser is None:
        raise ConfigError(
            "this kind of model does not support ControlNets",
            "choose a preset without one, or set control.kind = none",
        )
    check_settings(config, denoiser.own is not None)
    if config.model == "auto" and denoiser.own is not None:
        folder = denoiser.own / "controlnet"
        if not any(folder.glob("*.safetensors")):
            raise WeightsError(
                f"{denoiser.name} has no ControlNet",
                f"`ctxedit train control --out {denoiser.own}` makes it; or name one: "
                "--set control.model=FOLDER",
            )
    elif config.model == "auto" and denoiser.context_width != SD1_WIDTH:
        raise ConfigError(
            f"no ControlNet is known for {denoiser.name}",
            "name one that was trained with it: --set control.model=ID",
        )
    else:
        folder = checkpoint_folder(CANNY_SD1 if config.model == "auto" else config.model, offline, half)
    check_fit(folder, denoiser)
    return folder


def check_fit(folder: Path, denoiser: Denoiser) -> None:
    """Raise ConfigError where a ControlNet's sizes are not the denoiser's; reads its config alone."""
    try:
        config = read_config(folder)
        named = str(config.get("_class_name", "model of no name"))
        steps = len(config.get("conditioning_embedding_out_channels") or (16, 32, 96, 256)) - 1
        channels = tuple(config.get("block_out_channels", ()))
    except (TypeError, AttributeError) as error:
        raise WeightsError(f"{folder}/config.json cannot be read: {error}", "fetch it again") from error
    if named != "ControlNetModel":
        raise ConfigError(
            f"{folder} is a {named}, not a ControlNetModel",
            "control.model takes a ControlNet for Stable Diffusion in diffusers' format",
        )
    sizes = {
        "cross-attention width": (config.get("cross_attention_dim", 1280), denoiser.context_width),
        "channels": (channels, denoiser.channels),
        "layers": (config.get("layers_per_block", 2), denoiser.layers),
        "latent channels": (config.get("in_channels", 4), denoiser.latent_channels),
        "pixels a latent": (2**steps, denoiser.factor),
        "channels of the map": (config.get("conditioning_channels", 3), 3),
    }
    for what, (has, wants) in sizes.items():
        if has != wants:
            raise ConfigError(
                f"the ControlNet {folder} does not fit {denoiser.name}: {what} {has}, not {wants}",
                "take one that was trained with this model (--set control.model=…), or another --model",
            )


@dataclass
class Control:
    """A loaded ControlNet, frozen; ``scale`` multiplies what it adds."""

    net: ControlNetModel
    scale: float

    @classmethod
    def load(cls, folder: Path, scale: float, device: torch.device, dtype: torch.dtype) -> Control:
        """From a checked folder.

        Raises:
            WeightsError: broken files, weights missing, NaN in weights.
            ResourceError: not enough memory.
        """
        try:
            net = network(ControlNetModel, folder.parent, folder.name, dtype)
            net = net.to(device).eval().requires_grad_(False)
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise ResourceError(f"not enough memory for {folder}", "take a smaller model or dtype") from error
        except WeightsError:
            raise
        except Exception as error:
            line = str(error).strip().split("\n")[0][:200]
            raise WeightsError(f"{folder} cannot be loaded: {line}", "fetch or save it again") from error
        check_finite(net, str(folder))
        return cls(net, scale)

    def __call__(
        self,
        x: Tensor,
        timestep: int | float | Tensor,
        tokens: Tensor,
        view: FrameView,
        added: dict[str, Tensor] | None = None,
    ) -> dict[str, Any]:
        """What the denoiser is to add, as its own keyword arguments.

        Args:
            x: noisy latents (branches·frames, C, h, w).
            timestep: the denoiser's.
            tokens: (branches·frames, L, D).
            view: the denoiser's; its ``control`` is shown to every branch.
            added: what else the denoiser's time embedding is conditioned on, for Stable Diffusion XL.
        """
        assert view.control is not None
        plain = replace(view, fusion=None, recorders=(), weight=None, keep=None)
        shown = view.control.to(x).repeat(len(x) // view.frames, 1, 1, 1)
        with plain.in_effect():
            down, middle = self.net(
                x, timestep, tokens, shown, conditioning_scale=self.scale, added_cond_kwargs=added,
                return_dict=False,
            )  # fmt: skip
        return {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
