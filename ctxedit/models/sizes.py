"""Size of a checkpoint, from its config files and safetensors headers, without loading it."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctxedit import files as files_of
from ctxedit.errors import WeightsError
from ctxedit.models import layout
from ctxedit.models.sites import AttentionSite

#: Frames that an autoencoder takes at a time, unless memory is short.
AT_ONCE = 4
_HEADER_LIMIT = 100 << 20
_NO_HEADER = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error)
#: Endings of the names of scale factors, which belong to integer weights and 8-bit floats.
_QUANTISED = (".scale_weight", ".weight_scale", ".SCB", ".absmax", "scaled_fp8")
_WIDTHS = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
}  # fmt: skip


@dataclass(frozen=True)
class Weight:
    """Parameters of a network, and their bytes as stored."""

    parameters: int = 0
    bytes: int = 0

    def __add__(self, other: Weight) -> Weight:
        return Weight(self.parameters + other.parameters, self.bytes + other.bytes)


@dataclass(frozen=True)
class Sizes:
    """What planning needs to know of a checkpoint.

    Attributes:
        unet, vae, text_encoder: their weights (all text encoders together).
        channels: of the denoiser, highest resolution first.
        depth: transformer blocks of each attention stack at these resolutions; 0 is no attention.
        layers: residual blocks at each resolution of the encoder half (one more in the decoder half).
        vae_channels: of the autoencoder, highest resolution first.
        latent_channels, context_width, context_length, resolution: as ``Backbone`` has them.
        sites: the denoiser's attention layers.
        unet_names: of the denoiser's tensors; empty where they are not known by diffusers' names.
        train_steps: noise levels that the model was trained on.
        takes_control: whether a ControlNet can run beside the denoiser.
    """

    unet: Weight
    vae: Weight
    text_encoder: Weight
    channels: tuple[int, ...]
    depth: tuple[int, ...]
    layers: int
    vae_channels: tuple[int, ...]
    latent_channels: int
    context_width: int
    context_length: int
    resolution: int
    sites: tuple[AttentionSite, ...] = ()
    unet_names: frozenset[str] = frozenset()
    train_steps: int = 1000
    takes_control: bool = True

    @property
    def parameters(self) -> int:
        """All of it."""
        return self.unet.parameters + self.vae.parameters + self.text_encoder.parameters

    @property
    def factor(self) -> int:
        """Pixels per latent, in each direction."""
        return int(2 ** (len(self.vae_channels) - 1))

    @property
    def multiple(self) -> int:
        """Frame sides are multiples of this."""
        return self.factor * int(2 ** (len(self.channels) - 1))


def folder_weight(folder: Path, half: bool = False) -> Weight:
    """The network of a folder: the files that are loaded, without other copies."""
    return weight_of(header(weight_files(folder, half)))


def weight_files(folder: Path, half: bool = False) -> list[Path]:
    """The safetensors files of a folder that are loaded; all of them where none has a known name."""
    files = sorted(folder.glob("*.safetensors"))
    names = [file.name for file in folder.iterdir()] if files else []
    found = layout.choose(names, half)
    return files if found is None else [folder / name for name in found.files]


def weight_of(table: dict[str, dict[str, Any]]) -> Weight:
    """All tensors of a header together."""
    return sum((tensor_weight(entry) for entry in table.values()), Weight())


def header(files: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Names, shapes and types of safetensors files' tensors; raises WeightsError for other files.

    Quantised weights are refused as well.
    """
    table: dict[str, dict[str, Any]] = {}
    for file in files:
        try:
            files_of.check_file(file, "checkpoint", error=WeightsError)
            with file.open("rb") as stream:
                (length,) = struct.unpack("<Q", stream.read(8))
                if not 2 <= length <= _HEADER_LIMIT:
                    raise ValueError("no header")
                found = json.loads(stream.read(length))
            found.pop("__metadata__", None)
            if not all(_fits(entry) for entry in found.values()):
                raise ValueError("a tensor's shape and bytes disagree")
            end = 8 + length + max((e["data_offsets"][1] for e in found.values()), default=0)
            if file.stat().st_size < end:
                raise ValueError("cut off")
        except _NO_HEADER as error:
            if (said := _instead(file)) is not None:
                raise WeightsError(*said) from error
            raise WeightsError(
                f"{file} is not a complete safetensors file ({error})", "fetch or save it again"
            ) from error
        _check_not_quantised(found, file)
        table |= found
    return table


def _check_not_quantised(found: dict[str, dict[str, Any]], file: Path) -> None:
    """Raise WeightsError for integer weights and floats with a scale factor, which unscaled are noise."""
    for name, entry in found.items():
        whole = str(entry["dtype"]) in ("I8", "U8") and name.endswith(".weight")
        if whole or name.endswith(_QUANTISED):
            raise WeightsError(
                f"{file}: its weights are quantised ({name})",
                "take the version in float16, bfloat16 or float32",
            )


def _instead(file: Path) -> tuple[str, str] | None:
    """What a file without a header is that people often have in its place: the error and the hint."""
    try:
        with file.open("rb") as stream:
            begin = stream.read(64).lstrip().lower()
    except OSError:
        return None
    if begin.startswith(b"version https://git-lfs"):
        hint = "run `git lfs pull` in its repository, or fetch the file from its page"
        return f"{file} is a Git LFS pointer: its content was not fetched", hint
    if begin.startswith(b"gguf"):
        return f"{file} is a GGUF file, whatever its name", "take the version in safetensors"
    if begin.startswith((b"<!doctype", b"<html")):
        return f"{file} is a web page, not weights", "fetch it again: its site may ask you to log in first"
    return None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; raises WeightsError when it is missing or none."""
    table = files_of.read_json(path, "JSON object", error=WeightsError)
    if not isinstance(table, dict):
        raise WeightsError(f"{path} is not a JSON object", "fetch or save the model again")
    return table


def read_config(folder: Path) -> dict[str, Any]:
    """A network's ``config.json``; raises WeightsError when it is missing, none, or has counts that are none.

    diffusers and transformers do not check counts: a wrong one fails in the middle of a pass.
    """
    table = read_json(folder / "config.json")
    _check_counts(table, folder / "config.json")
    return table


#: Entries of a network's configuration that are counts, or lists of counts.
_COUNTS = frozenset(
    [
        "attention_head_dim",
        "block_out_channels",
        "cross_attention_dim",
        "hidden_size",
        "in_channels",
        "intermediate_size",
        "latent_channels",
        "layers_per_block",
        "max_position_embeddings",
        "norm_num_groups",
        "num_attention_heads",
        "num_hidden_layers",
        "out_channels",
        "projection_dim",
        "sample_size",
        "transformer_layers_per_block",
        "vocab_size",
    ]
)


def _check_counts(table: dict[str, Any], path: Path) -> None:
    """Raise WeightsError if a count is not a whole number from 1 up; null and missing ones pass."""

    def is_count(value: Any) -> bool:
        if isinstance(value, list):
            return bool(value) and all(map(is_count, value))
        return isinstance(value, int) and not isinstance(value, bool) and value >= 1

    for key, value in table.items():
        if isinstance(value, dict):  # text_config, vision_config
            _check_counts(value, path)
        elif key in _COUNTS and value is not None and not is_count(value):
            raise WeightsError(f"{path}: {key} = {json.dumps(value)[:60]}", "fetch or save the model again")


def tensor_weight(entry: dict[str, Any]) -> Weight:
    """Parameters and bytes of one tensor, from its entry in a header."""
    count = 1
    for side in entry["shape"]:
        count *= int(side)
    return Weight(count, count * _WIDTHS.get(str(entry["dtype"]), 1))


def _fits(entry: dict[str, Any]) -> bool:
    """Whether a tensor's bytes are as many as its shape and type say; unknown types pass."""
    begin, end = entry["data_offsets"]
    width = _WIDTHS.get(str(entry["dtype"]))
    sides = [int(side) for side in entry["shape"]]
    return 0 <= begin <= end and (width is None or end - begin == math.prod(sides) * width)
