"""Sizes of a Stable Diffusion checkpoint, from its config files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ctxedit.errors import WeightsError
from ctxedit.models.sites import sites_of_config
from ctxedit.models.sizes import Sizes, Weight, header, read_config, read_json, weight_files


def sizes_of(path: Path, weights: Mapping[str, Weight], names: frozenset[str]) -> Sizes:
    """Sizes of a checkpoint in diffusers' format; raises WeightsError for broken config files.

    Args:
        path: the folder of its config files.
        weights: of each network; those called ``text_encoder…`` are counted together.
        names: of the UNet's tensors, as far as they are known by diffusers' names.
    """
    unet, vae = read_config(path / "unet"), read_config(path / "vae")
    tokenizer = read_json(path / "tokenizer/tokenizer_config.json")
    scheduler = read_json(path / "scheduler/scheduler_config.json")
    encoder = read_config(path / "text_encoder")
    try:
        kinds, layers = unet["down_block_types"], unet.get("layers_per_block", 2)
        depth = unet.get("transformer_layers_per_block", 1)
        depth = depth if isinstance(depth, list) else [depth] * len(kinds)
        return Sizes(
            weights["unet"],
            weights["vae"],
            sum((found for part, found in weights.items() if part.startswith("text_encoder")), Weight()),
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
            sites_of_config(unet),
            names,
            int(scheduler.get("num_train_timesteps", 1000)),
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise WeightsError(
            f"{path}: its config files are not a Stable Diffusion's ({error!r})", "fetch or save it again"
        ) from error


#: A part of a tensor's name in each network, as diffusers and transformers write it and others do not.
_MARKS = {"unet": "up_blocks.0.", "vae": "decoder.up_blocks.0.", "text_encoder": "token_embedding.weight"}


def tensors_of(path: Path, parts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The headers of a folder's networks, by subfolder.

    Raises:
        WeightsError: broken files, or tensors under other names: a file of the original code, say, that was
            renamed to what diffusers looks for.
    """
    found = {part: header(weight_files(path / part)) for part in parts}
    for part, tensors in found.items():
        mark = _MARKS[part.removesuffix("_2")]
        if not any(mark in name for name in tensors):
            raise WeightsError(
                f"{path / part}: its weights do not have diffusers' names (none has {mark!r} in it)",
                "save it again with diffusers (from_single_file, then save_pretrained)",
            )
    return found


def largest(value: int | Sequence[int]) -> int:
    """A setting that is one number, or one for each level: the largest."""
    return value if isinstance(value, int) else max(value)


def _widths(channels: Any) -> tuple[int, ...]:
    """Channels of a network's levels, checked to be plausible."""
    found = tuple(channels)
    if not 1 <= len(found) <= 8 or not all(type(c) is int and 1 <= c <= 1 << 16 for c in found):
        raise ValueError(f"block_out_channels = {channels!r}")
    return found
