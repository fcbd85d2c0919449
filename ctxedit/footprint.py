"""How large a model is and what it needs to run, from its config files and safetensors headers alone.

Memory figures are estimates. Parameters are counted exactly; activations by the formulas below, which were
set against the built-in model on a CPU (8 frames at 192², 12 at 128²) and were then within a quarter of it.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctxedit import files as files_of
from ctxedit.config import AdapterConfig
from ctxedit.errors import WeightsError
from ctxedit.models.weights import Checkpoint

_HEADER_LIMIT = 100 << 20
_NO_HEADER = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error)
_WIDTHS = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
}  # fmt: skip
#: What Stable Diffusion 1.x and 2.x share; for single files, which carry no config.
_STABLE_DIFFUSION = {"channels": (320, 640, 1280, 1280), "vae": (128, 256, 512, 512), "layers": 2}


@dataclass(frozen=True)
class Weight:
    """Parameters of a network, and their bytes as stored."""

    parameters: int = 0
    bytes: int = 0

    def __add__(self, other: Weight) -> Weight:
        return Weight(self.parameters + other.parameters, self.bytes + other.bytes)


@dataclass(frozen=True)
class Anatomy:
    """A Stable Diffusion checkpoint's sizes.

    Attributes:
        unet, vae, text_encoder: their weights.
        channels: of the UNet, finest level first; ``attends``: which levels have attention.
        layers: residual blocks at each level on the way down (one more on the way up).
        vae_channels: of the autoencoder, finest level first.
        latent_channels, context_width, context_length, resolution: as ``Backbone`` has them.
        attention_levels: at which halvings of the latent the UNet has cross-attention, its middle included.
        attends_outside_middle: whether there is any on the way down or up.
        unet_names: of the UNet's tensors; empty where they are not known by diffusers' names.
        train_steps: noise levels that the model was trained on.
    """

    unet: Weight
    vae: Weight
    text_encoder: Weight
    channels: tuple[int, ...]
    attends: tuple[bool, ...]
    layers: int
    vae_channels: tuple[int, ...]
    latent_channels: int
    context_width: int
    context_length: int
    resolution: int
    attention_levels: frozenset[int] = frozenset()
    attends_outside_middle: bool = True
    unet_names: frozenset[str] = frozenset()
    train_steps: int = 1000

    @property
    def parameters(self) -> int:
        """All of it."""
        return self.unet.parameters + self.vae.parameters + self.text_encoder.parameters

    @property
    def factor(self) -> int:
        """Pixels a latent, in each direction."""
        return int(2 ** (len(self.vae_channels) - 1))

    @property
    def multiple(self) -> int:
        """Frame sides are multiples of this."""
        return self.factor * int(2 ** (len(self.channels) - 1))


def anatomy(checkpoint: Checkpoint) -> Anatomy:
    """Read a checkpoint's sizes; raises WeightsError for broken files."""
    if checkpoint.form == "file":
        return _anatomy_of_file(checkpoint.path)
    path = checkpoint.path
    unet, vae = read_json(path / "unet/config.json"), read_json(path / "vae/config.json")
    tokenizer = read_json(path / "tokenizer/tokenizer_config.json")
    scheduler = read_json(path / "scheduler/scheduler_config.json")
    text = read_json(path / "text_encoder/config.json")
    try:
        channels, vae_channels = (_widths(table["block_out_channels"]) for table in (unet, vae))
        sample, layers = unet["sample_size"], unet.get("layers_per_block", 2)
        return Anatomy(
            weigh(path / "unet"),
            weigh(path / "vae"),
            weigh(path / "text_encoder"),
            channels,
            tuple("Attn" in kind for kind in unet["down_block_types"]),
            layers if isinstance(layers, int) else max(layers),
            vae_channels,
            int(unet["in_channels"]),
            int(unet["cross_attention_dim"]),
            min(int(tokenizer.get("model_max_length", 77)), int(text.get("max_position_embeddings", 77))),
            2 ** (len(vae_channels) - 1) * (sample if isinstance(sample, int) else max(sample)),
            *_attention(unet),
            frozenset(header(_plain(path / "unet"))),
            int(scheduler.get("num_train_timesteps", 1000)),
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise WeightsError(
            f"{path}: its config files are not a Stable Diffusion's ({error!r})", "fetch or save it again"
        ) from error


def _widths(channels: Any) -> tuple[int, ...]:
    """Channels of a network's levels; nonsense would make sizes that nothing holds."""
    found = tuple(channels)
    if not 1 <= len(found) <= 8 or not all(type(c) is int and 1 <= c <= 1 << 16 for c in found):
        raise ValueError(f"block_out_channels = {channels!r}")
    return found


def _attention(unet: dict[str, Any]) -> tuple[frozenset[int], bool]:
    """Levels with cross-attention, and whether some of it is outside the middle block."""
    down, up = unet["down_block_types"], unet["up_block_types"]
    middle = unet.get("mid_block_type", "UNetMidBlock2DCrossAttn") or ""
    levels = {level for level, kind in enumerate(down) if "CrossAttn" in kind}
    levels |= {len(up) - 1 - place for place, kind in enumerate(up) if "CrossAttn" in kind}
    coarsest = {len(down) - 1} if "CrossAttn" in middle else set()
    return frozenset(levels | coarsest), bool(levels)


def _anatomy_of_file(path: Path) -> Anatomy:
    """A single file holds all parts under prefixes, and no config: width and resolution from a shape."""
    table = header([path])
    parts = {"model.diffusion_model.": Weight(), "first_stage_model.": Weight(), "cond": Weight()}
    for name, entry in table.items():
        prefix = next((p for p in parts if name.startswith(p)), None)
        if prefix:
            parts[prefix] = parts[prefix] + _weight(entry)
    unet, vae, text = parts.values()
    key = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    if key not in table:
        raise WeightsError(
            f"{path} is not a Stable Diffusion 1.x or 2.x checkpoint", "only these are supported as one file"
        )
    s = _STABLE_DIFFUSION
    channels: Any = s["channels"]
    vae_channels: Any = s["vae"]
    width = int(table[key]["shape"][1])
    attends = (True, True, True, False)
    levels = frozenset(range(len(channels)))  # the coarsest is the middle block's
    return Anatomy(unet, vae, text, channels, attends, 2, vae_channels, 4, width, 77, 512, levels)


def weigh(folder: Path) -> Weight:
    """The network of a folder, its half-precision copies not counted twice; nothing is loaded."""
    return weight_of(header(_plain(folder)))


def _plain(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.safetensors"))
    return [f for f in files if ".fp16." not in f.name and "non_ema" not in f.name] or files


def weight_of(table: dict[str, dict[str, Any]]) -> Weight:
    """All tensors of a header together."""
    return sum((_weight(entry) for entry in table.values()), Weight())


def header(files: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Names, shapes and types of safetensors files' tensors; raises WeightsError for what is none."""
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
            raise WeightsError(
                f"{file} is no whole safetensors file ({error})", "fetch or save it again"
            ) from error
        table |= found
    return table


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; raises WeightsError when it is missing or none."""
    table = files_of.read_json(path, "JSON object", error=WeightsError)
    if not isinstance(table, dict):
        raise WeightsError(f"{path} is not a JSON object", "fetch or save the model again")
    return table


def _fits(entry: dict[str, Any]) -> bool:
    """Whether a tensor's bytes are as many as its shape and type say; types we do not know pass."""
    begin, end = entry["data_offsets"]
    width = _WIDTHS.get(str(entry["dtype"]))
    sides = [int(side) for side in entry["shape"]]
    return 0 <= begin <= end and (width is None or end - begin == math.prod(sides) * width)


def _weight(entry: dict[str, Any]) -> Weight:
    count = 1
    for side in entry["shape"]:
        count *= int(side)
    return Weight(count, count * _WIDTHS.get(str(entry["dtype"]), 1))


def adapter_parameters(config: AdapterConfig, channels: int, context_width: int, image_width: int = 0) -> int:
    """Parameters of a ``ContextAdapter`` of these sizes; exact."""
    w, cells = config.width, channels * config.patch**2
    attention = 4 * w * w + 8 * w
    feed_forward = 8 * w * w + 7 * w
    ends = (cells + 1) * w + (context_width + 1) * w + 2 * w + (w + 1) * cells + 2 * (w + 1) * w
    image = (image_width + 1) * w if image_width else 0
    blocks = config.blocks * (4 * attention + 2 * feed_forward) - attention - feed_forward  # the last's text
    return blocks + ends + image


def forward_bytes(a: Anatomy, side: tuple[int, int], images: int, window: int, width: int) -> int:
    """Activations at the peak of one pass of the UNet over ``images`` frames (frames × lanes), no gradient.

    The skips of every level, and at the widest level about 60 maps of its channels (measured): the
    feed-forward's hidden halves, keys and values of ``window`` frames, convolutions' copies.
    """
    levels = list(zip(a.channels, a.attends, _sides(side, len(a.channels)), strict=True))
    peak = max(c * h * w * (max(60, 24 + 8 * window) if attends else 30) for c, attends, (h, w) in levels)
    return images * peak * width + skip_bytes(a, side, images, width)


def skip_bytes(a: Anatomy, side: tuple[int, int], images: int, width: int) -> int:
    """What the way down keeps for the way up; a ControlNet hands over as much."""
    sides = _sides(side, len(a.channels))
    return (
        images * width * sum((a.layers + 1) * c * h * w for c, (h, w) in zip(a.channels, sides, strict=True))
    )


def backward_bytes(
    a: Anatomy, side: tuple[int, int], images: int, window: int, width: int, checkpointing: bool
) -> int:
    """Activations kept for the gradient, and the pass itself; checkpointing keeps only the blocks' inputs."""
    kept = 0
    for c, attends, (h, w) in zip(a.channels, a.attends, _sides(side, len(a.channels)), strict=True):
        block = (2 + attends) if checkpointing else (10 + (26 + 2 * window) * attends)
        kept += (2 * a.layers + 1) * block * c * h * w
    return images * kept * width + 2 * forward_bytes(a, side, images, window, width)


def adapter_bytes(config: AdapterConfig, side: tuple[int, int], images: int, gradient: bool) -> int:
    """Activations of the context adapter, float32: about 45 maps of its tokens in each block."""
    tokens = -(-side[0] // config.patch) * -(-side[1] // config.patch)
    return images * tokens * config.width * 45 * (config.blocks if gradient else 1) * 4


def autoencoder_bytes(a: Anatomy, side: tuple[int, int], images: int, width: int) -> int:
    """Activations of decoding ``images`` frames at once: a few maps of the finest level's channels."""
    pixels = side[0] * side[1] * a.factor**2
    return (
        images
        * pixels
        * (6 * a.vae_channels[0] + 2 * a.vae_channels[min(1, len(a.vae_channels) - 1)])
        * width
    )


def _sides(side: tuple[int, int], levels: int) -> list[tuple[int, int]]:
    return [(-(-side[0] // 2**i), -(-side[1] // 2**i)) for i in range(levels)]
