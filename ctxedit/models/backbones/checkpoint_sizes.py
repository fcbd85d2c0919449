"""Sizes of a Stable Diffusion checkpoint, from its config files or from the header of its single file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ctxedit.errors import WeightsError
from ctxedit.models.sizes import Sizes, Weight, folder_weight, header, read_json, tensor_weight, weight_files

#: What Stable Diffusion 1.x and 2.x share; for single files, which carry no config.
_CHANNELS, _DEPTH, _VAE_CHANNELS = (320, 640, 1280, 1280), (1, 1, 1, 0), (128, 256, 512, 512)
_PREFIXES = {"unet": "model.diffusion_model.", "vae": "first_stage_model.", "text_encoder": "cond"}


def sizes_of_folder(path: Path, networks: Sequence[str]) -> Sizes:
    """Sizes of a checkpoint in diffusers' format; raises WeightsError for broken config files.

    Args:
        path: the checkpoint's folder.
        networks: subfolders with weights; those called ``text_encoder…`` are counted together.
    """
    unet, vae = read_json(path / "unet/config.json"), read_json(path / "vae/config.json")
    tokenizer = read_json(path / "tokenizer/tokenizer_config.json")
    scheduler = read_json(path / "scheduler/scheduler_config.json")
    encoder = read_json(path / "text_encoder/config.json")
    try:
        kinds, layers = unet["down_block_types"], unet.get("layers_per_block", 2)
        depth = unet.get("transformer_layers_per_block", 1)
        depth = depth if isinstance(depth, list) else [depth] * len(kinds)
        text = Weight()
        for part in networks:
            text = text + folder_weight(path / part) if part.startswith("text_encoder") else text
        return Sizes(
            folder_weight(path / "unet"),
            folder_weight(path / "vae"),
            text,
            _widths(unet["block_out_channels"]),
            tuple(int(d) if "Attn" in kind else 0 for kind, d in zip(kinds, depth, strict=True)),
            largest(layers),
            _widths(vae["block_out_channels"]),
            int(unet["in_channels"]),
            int(unet["cross_attention_dim"]),
            min(
                int(tokenizer.get("model_max_length", 77)),
                int(encoder.get("max_position_embeddings", 77)),
            ),
            2 ** (len(vae["block_out_channels"]) - 1) * largest(unet["sample_size"]),
            *_attention(unet),
            frozenset(header(weight_files(path / "unet"))),
            int(scheduler.get("num_train_timesteps", 1000)),
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise WeightsError(
            f"{path}: its config files are not a Stable Diffusion's ({error!r})", "fetch or save it again"
        ) from error


def sizes_of_file(path: Path) -> Sizes:
    """A single file holds all parts under prefixes, and no config: width and resolution from a shape."""
    table = header([path])
    found = dict.fromkeys(_PREFIXES, Weight())
    for name, entry in table.items():
        part = next((p for p, prefix in _PREFIXES.items() if name.startswith(prefix)), None)
        if part:
            found[part] = found[part] + tensor_weight(entry)
    key = f"{_PREFIXES['unet']}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    if key not in table:
        raise WeightsError(
            f"{path} is not a Stable Diffusion 1.x or 2.x checkpoint", "only these are supported as one file"
        )
    width = int(table[key]["shape"][1])
    levels = frozenset(range(len(_CHANNELS)))  # the lowest resolution is the middle block's
    return Sizes(
        found["unet"], found["vae"], found["text_encoder"], _CHANNELS, _DEPTH, 2, _VAE_CHANNELS,
        4, width, 77, 512, levels,
    )  # fmt: skip


def largest(value: int | Sequence[int]) -> int:
    """A setting that is one number, or one for each level: the largest."""
    return value if isinstance(value, int) else max(value)


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
    lowest = {len(down) - 1} if "CrossAttn" in middle else set()
    return frozenset(levels | lowest), bool(levels)
