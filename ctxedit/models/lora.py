"""LoRA files: found, checked against the checkpoint, and merged into its weights.

Read and injected by diffusers and peft, so every format that they know works: diffusers', peft's and kohya's.
Merged before anything is tuned: the networks keep their shape, their names and their speed.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ctxedit.errors import WeightsError
from ctxedit.model_names import split_scale
from ctxedit.models.addons import locate_file
from ctxedit.models.sizes import header, read_json, weight_files
from ctxedit.models.weights import Checkpoint

#: What diffusers and peft call the file of a LoRA in a folder or repository.
NAMES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
#: Factorizations that are no LoRA; A1111 and LyCORIS load them under the same name.
_OTHERS = {
    "hada_w": "a LoHa", "lokr_w": "a LoKr", "oft_": "an OFT", "dora_scale": "a DoRA",
    "lora_magnitude_vector": "a DoRA", "lora_mid.": "a LoCon of three factors", ".a1.weight": "a GLoRA",
    ".on_input": "an (IA)³", "bundle_emb.": "a LoRA with embeddings", "lycoris_": "of LyCORIS's own format",
}  # fmt: skip
#: How the names in a checkpoint of the original code begin.
_WHOLE = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.", "conditioner.")
#: What peft puts before the names of a network that it wrapped.
_PEFT = "base_model.model."
#: How the names of the UNet's layers begin.
_BLOCKS = ("down_blocks.", "mid_block.", "up_blocks.")
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"
_SUPPORTED = "LoRA files in diffusers', peft's and kohya's formats are supported"
#: Which checkpoints have text encoders of such a width.
_WIDTHS = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "Stable Diffusion XL"}


@dataclass(frozen=True)
class Lora:
    """A LoRA file, read and converted to peft's names.

    Attributes:
        file: its path.
        scale: what its products are multiplied by; alpha over rank is in the matrices already.
        layers: (down, up) of each layer, by network (its folder's name) and layer.
    """

    file: Path
    scale: float
    layers: dict[str, dict[str, tuple[Tensor, Tensor]]]

    @property
    def label(self) -> str:
        """For messages."""
        return f"{self.file.name} at {self.scale:g}"

    def tensors(self, network: str) -> dict[str, Tensor]:
        """One network's tensors, as diffusers' loader takes them."""
        out = {}
        for name, (down, up) in self.layers.get(network, {}).items():
            out[f"{network}.{name}.lora_A.weight"], out[f"{network}.{name}.lora_B.weight"] = down, up
        return out


def read_lora(setting: str, family: Any, checkpoint: Checkpoint, offline: bool = False) -> Lora:
    """A LoRA by its setting, ``FILE_OR_ID[:SCALE]``, checked to fit a checkpoint, not merged.

    Args:
        setting: a file, a folder with one, a hub id, or a file of a repository (``owner/name/file``).
        family: of the checkpoint.
        checkpoint: what it is to be merged into.
        offline: do not contact the hub.

    Raises:
        ConfigError: the scale is not a number.
        WeightsError: nothing there, a pickle, no LoRA, one for another kind of checkpoint, or a checkpoint
            that takes none.
    """
    name, scale = split_scale(setting)
    file = locate_file(name, "LoRA", NAMES, offline)
    if family.lora_loader is None:
        raise WeightsError(f"{checkpoint.name} does not support LoRAs", "leave out --lora")
    tensors = _numbers(load_file(file), file) if header([file]) else {}
    broken = next((k for k, v in tensors.items() if not bool(torch.isfinite(v).all())), None)
    if broken:
        raise WeightsError(f"{file}: NaN or infinity in {broken}", "the LoRA is broken; fetch it again")
    if any(key.startswith(_WHOLE) for key in tensors):
        raise WeightsError(f"{file} is a whole checkpoint, not a LoRA", "edit with it: --model FILE")
    other = next((said for part, said in _OTHERS.items() if any(part in key for key in tensors)), None)
    if any(key.endswith((".diff", ".diff_b")) for key in tensors):
        other = other or "a file of whole differences"
    if other is not None:
        raise WeightsError(f"{file} is {other}, not a LoRA", _SUPPORTED)
    tensors = _prefixed(tensors, file)
    try:
        config = family.unet_config(checkpoint)
        named = _mixin(family).lora_state_dict(_scaled(tensors), unet_config=config)[0]
        networks = [part for part in family.networks_in if part != "vae"]
        layers = {part: _pairs(named, part) for part in networks}
    except Exception as error:  # each format breaks in its own way
        line = (" ".join(str(error).split()) or type(error).__name__)[:160]
        raise WeightsError(f"{file} is not a LoRA that can be read ({line})", _SUPPORTED) from error
    if not any(layers.values()):
        raise WeightsError(f"{file} is not a LoRA for Stable Diffusion", _SUPPORTED)
    for part, found in layers.items():  # diffusers tells the format by these
        if part != "unet" and found and not any("_proj" in name for name in found):
            raise WeightsError(f"{file} has no attention layers of the {part}", _SUPPORTED)
    lora = Lora(file, scale, layers)
    _check_fit(lora, family, checkpoint)
    return lora


def _numbers(tensors: Mapping[str, Tensor], file: Path) -> dict[str, Tensor]:
    """The tensors, those of eight bits in float32; raises WeightsError for integers (quantized files)."""
    whole = next((k for k, v in tensors.items() if not v.is_floating_point() and ".alpha" not in k), None)
    if whole:
        raise WeightsError(f"{file}: {whole} holds {tensors[whole].dtype}, not floating point", _SUPPORTED)
    return {key: value.float() if value.itemsize == 1 else value for key, value in tensors.items()}


def _prefixed(tensors: Mapping[str, Tensor], file: Path) -> dict[str, Tensor]:
    """The tensors under their network's name, which peft's files and diffusers' first ones leave out.

    peft keeps alpha in ``adapter_config.json`` beside the file; it is multiplied in.
    """
    peft = any(_PEFT in key for key in tensors)
    plain = {key.replace(_PEFT, ""): value for key, value in tensors.items()}
    ratio = _peft_ratio(file) if any(key.startswith(_PEFT) for key in tensors) else 1.0
    if any(key.startswith(_BLOCKS) for key in plain):
        plain = {f"unet.{key}": value for key, value in plain.items()}
    elif peft and any(key.startswith("text_model.") for key in plain):
        plain = {f"text_encoder.{key}": value for key, value in plain.items()}
    return {key: value * ratio if key.endswith(_UP) else value for key, value in plain.items()}


def _peft_ratio(file: Path) -> float:
    """What a product of peft's is multiplied by: alpha over rank, or over its root (rsLoRA)."""
    beside = file.with_name("adapter_config.json")
    if not beside.is_file():
        raise WeightsError(
            f"{file} has no alpha: peft stores it in adapter_config.json",
            "put that file beside it",
        )
    config = read_json(beside)
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise WeightsError(f"{beside} has no r and lora_alpha", "copy it again")
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        raise WeightsError(f"{beside} has ranks that differ from layer to layer", _SUPPORTED)
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def _scaled(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with kohya's alphas multiplied in.

    diffusers' loader takes alphas by patterns of names, which miss text encoders with alphas that differ.
    """
    out = dict(tensors)
    for key in [key for key in out if key.endswith(".alpha")]:
        layer, alpha = key.removesuffix(".alpha"), float(out.pop(key))
        down, up = out.get(f"{layer}.lora_down.weight"), out.get(f"{layer}.lora_up.weight")
        if down is not None and up is not None:
            out[f"{layer}.lora_up.weight"] = up * (alpha / down.shape[0])
    return out


def _pairs(named: Mapping[str, Tensor], network: str) -> dict[str, tuple[Tensor, Tensor]]:
    """The (down, up) matrices of one network's layers; raises ValueError for tensors of anything else."""
    from diffusers.utils import convert_state_dict_to_peft, convert_unet_state_dict_to_peft
    from diffusers.utils.state_dict_utils import StateDictType, convert_state_dict_to_diffusers

    own = {k.removeprefix(f"{network}."): v for k, v in named.items() if k.startswith(f"{network}.")}
    if own and not all(".lora_A." in key or ".lora_B." in key for key in own):
        if network == "unet":
            own = convert_unet_state_dict_to_peft(own)
        else:
            if any("_lora." in key for key in own):  # diffusers would look for all four projections
                own = convert_state_dict_to_diffusers(own, StateDictType.DIFFUSERS_OLD)
            own = convert_state_dict_to_peft(own, StateDictType.DIFFUSERS)
    downs = {k.removesuffix(_DOWN): v for k, v in own.items() if k.endswith(_DOWN)}
    ups = {k.removesuffix(_UP): v for k, v in own.items() if k.endswith(_UP)}
    if len(downs) + len(ups) != len(own) or set(downs) != set(ups):
        strange = [k for k in own if not k.endswith((_DOWN, _UP))] or sorted(set(downs) ^ set(ups))
        raise ValueError(f"{len(strange)} tensors are not pairs of matrices: {network}.{strange[0]}, ...")
    for name, down in downs.items():
        if down.ndim < 2 or ups[name].ndim < 2 or not 0 < down.shape[0] == ups[name].shape[1]:
            raise ValueError(
                f"matrices of {tuple(down.shape)} and {tuple(ups[name].shape)}: {network}.{name}"
            )
    return {name: (down, ups[name]) for name, down in downs.items()}


def _check_fit(lora: Lora, family: Any, checkpoint: Checkpoint) -> None:
    """Refuse layers that the checkpoint lacks or has in another size, as far as its headers tell."""
    for network, layers in lora.layers.items():
        if not layers:
            continue
        known = checkpoint.form == "folder" and checkpoint.has_weights
        shapes = _shapes(checkpoint.path / network) if known else None
        for name, (down, up) in layers.items():
            if name.endswith("attn2.to_k") and down.shape[1] != family.sizes(checkpoint).context_width:
                raise _misfit(lora, checkpoint, name, down.shape[1], family.sizes(checkpoint).context_width)
            if shapes is None:
                continue
            shape = shapes.get(name.removeprefix("text_model."))
            if shape is None:
                raise _misfit(lora, checkpoint, name, None, 0)
            if (up.shape[0], down.shape[1]) != shape[:2]:
                raise _misfit(lora, checkpoint, name, down.shape[1], shape[1])


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of a network's weights, by layer."""
    return {
        name.removesuffix(".weight").removeprefix("text_model."): tuple(entry["shape"])
        for name, entry in header(weight_files(folder)).items()
        if name.endswith(".weight")
    }


def _misfit(lora: Lora, checkpoint: Checkpoint, layer: str, has: int | None, wants: int) -> WeightsError:
    said = "is not in the model" if has is None else f"takes {has} values, the model's takes {wants}"
    kinds = {_WIDTHS[width] for n, (down, _) in lora.layers["unet"].items()
             if n.endswith("attn2.to_k") and (width := int(down.shape[1])) in _WIDTHS}  # fmt: skip
    kind = f"it was trained for {kinds.pop()}: " if len(kinds) == 1 else ""
    return WeightsError(
        f"the LoRA {lora.file.name} does not fit {checkpoint.name}: {layer} {said}",
        f"{kind}take a LoRA that was trained on this kind of model, or another --model",
    )


def merge_lora(lora: Lora, family: Any, networks: Mapping[str, nn.Module]) -> None:
    """Add a LoRA's products to the weights of a checkpoint's networks, in place.

    Args:
        lora: checked with :func:`read_lora`.
        family: of the checkpoint.
        networks: its UNet and text encoders by their folder's names.
    """
    from diffusers.utils.peft_utils import recurse_remove_peft_layers
    from peft.tuners.tuners_utils import BaseTunerLayer

    mixin: Any = _mixin(family)
    for name, network in networks.items():
        tensors = lora.tensors(name)
        if not tensors:
            continue
        trained = {key: p.requires_grad for key, p in network.named_parameters()}
        with _quiet():
            if name == "unet":
                mixin.load_lora_into_unet(tensors, None, network, "merged")
            else:
                mixin.load_lora_into_text_encoder(tensors, None, network, prefix=name, adapter_name="merged")
        injected: list[Any] = [layer for layer in network.modules() if isinstance(layer, BaseTunerLayer)]
        for layer in injected:
            layer.scale_layer(lora.scale)
            layer.merge()
        recurse_remove_peft_layers(network)
        for mark in ("peft_config", "_hf_peft_config_loaded"):
            with contextlib.suppress(AttributeError):
                delattr(network, mark)
        for key, parameter in network.named_parameters():
            parameter.requires_grad_(trained[key])


def _mixin(family: Any) -> Any:
    from diffusers import loaders

    return getattr(loaders, family.lora_loader)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """transformers reports every weight that is not the LoRA's as missing."""
    from transformers.utils import logging as transformers_logging

    logger = logging.getLogger("transformers")
    level, bars = logger.level, transformers_logging.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(level)
        if bars:
            transformers_logging.enable_progress_bar()
