"""The configuration of a Stable Diffusion checkpoint, derived from its tensors' names and shapes.

The names are those of the original code (CompVis' latent-diffusion, Stability AI's generative-models), which
checkpoints on model sites have kept. What shapes do not tell, heads and activations, is the same in every
checkpoint of a family.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ctxedit.errors import WeightsError

UNET, VAE = "model.diffusion_model.", "first_stage_model."
#: CLIP's text side in transformers' names and in OpenCLIP's: of Stable Diffusion 1.x and 2.x, and of SDXL.
CLIP, OPEN_CLIP = "cond_stage_model.transformer.", "cond_stage_model.model."
XL_CLIP, XL_OPEN_CLIP = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."
_REFINER = "conditioner.embedders.0.model."
#: Of CLIP's tokenizer, which all of them use.
TOKENS, LENGTH, BOS, EOS = 49408, 77, 49406, 49407
#: Layers of Stable Diffusion 2.x's text encoder that are used: OpenCLIP's last one is not.
OPEN_CLIP_LAYERS = 23
_HEAD = 64

Shapes = Mapping[str, tuple[int, ...]]
Prediction = Literal["epsilon", "v_prediction"]


@dataclass(frozen=True)
class Original:
    """A checkpoint's configuration.

    Attributes:
        pipeline: diffusers' class that it is for.
        configs: by folder, as diffusers and transformers write them.
        prefixes: of each network's tensors.
        tokenizers: the token that each tokenizer pads with.
    """

    pipeline: str
    configs: dict[str, dict[str, Any]]
    prefixes: dict[str, str]
    tokenizers: dict[str, str]


def describe(shapes: Shapes, name: str, prediction: Prediction, zero_snr: bool = False) -> Original:
    """The configuration of a checkpoint.

    Args:
        shapes: of all tensors, by name.
        name: of the file, for errors.
        prediction: what the denoiser was trained to predict.
        zero_snr: whether its noise levels end at zero signal.

    Raises:
        WeightsError: it is no whole Stable Diffusion 1.x, 2.x or XL base.
    """
    prefixes = _prefixes(shapes, name)
    xl = "text_encoder_2" in prefixes
    try:
        unet = _unet(_under(shapes, UNET), prediction)
        vae = _vae(_under(shapes, prefixes["vae"]), xl)
        encoders = {p: _text_encoder(_under(shapes, prefixes[p]), p) for p in prefixes if p[:4] == "text"}
    except (KeyError, IndexError) as error:
        raise WeightsError(f"{name} lacks weights, including {error}", "fetch or save it again") from error
    if xl:
        unet["addition_embed_type"] = "text_time"
        pooled = encoders["text_encoder_2"]["projection_dim"]
        unet["addition_time_embed_dim"] = (unet["projection_class_embeddings_input_dim"] - pooled) // 6
    elif "projection_class_embeddings_input_dim" in unet:
        unet["class_embed_type"] = "projection"  # refused by the family
    small = [part for part, config in encoders.items() if config["vocab_size"] < TOKENS]
    if small:
        raise WeightsError(
            f"{name}: its {small[0]} knows {encoders[small[0]]['vocab_size']} tokens, not CLIP's {TOKENS}",
            "use the checkpoint's diffusers folder",
        )
    configs = {"unet": unet, "vae": vae, **encoders, "scheduler": _scheduler(prediction, zero_snr)}
    pipeline = "StableDiffusionXLPipeline" if xl else "StableDiffusionPipeline"
    return Original(pipeline, configs, prefixes, _tokenizers(prefixes))


def is_second(shapes: Shapes) -> bool:
    """Whether it is a Stable Diffusion 2.x, some of which predict the noise and others the velocity."""
    return any(name.startswith(OPEN_CLIP) for name in shapes)


def _prefixes(shapes: Shapes, name: str) -> dict[str, str]:
    """Where each network's tensors are."""

    def has(prefix: str) -> bool:
        return any(key.startswith(prefix) for key in shapes)

    if not has(UNET) and (what := _alone(shapes)) is not None:
        raise WeightsError(
            f"{name} holds only {what}",
            "fetch the whole checkpoint; of a diffusers folder, give the folder with model_index.json",
        )
    if not has(UNET):
        raise WeightsError(
            f"{name} is not a complete Stable Diffusion 1.x, 2.x or XL checkpoint: no UNet under {UNET}*",
            "a LoRA goes to --lora, an embedding to --embedding; other kinds as a diffusers folder",
        )
    if not has(f"{UNET}input_blocks."):
        raise WeightsError(
            f"{name} is not a Stable Diffusion 1.x, 2.x or XL checkpoint: its denoiser is another network",
            "flow transformers (Stable Diffusion 3, Flux, video models) are not supported yet",
        )
    if has(_REFINER):
        raise WeightsError(
            f"{name} is the SDXL refiner, which only refines the base model's latents",
            "use the base model, --model sdxl",
        )
    if not has(VAE):
        raise WeightsError(
            f"{name} holds no autoencoder ({VAE}*)", "fetch the variant with a VAE, or a diffusers folder"
        )
    found = {"unet": UNET, "vae": VAE}
    if has(XL_OPEN_CLIP) and has(XL_CLIP):
        return {**found, "text_encoder": XL_CLIP, "text_encoder_2": XL_OPEN_CLIP}
    encoder = next((prefix for prefix in (CLIP, OPEN_CLIP) if has(prefix)), None)
    if encoder is None:
        raise WeightsError(
            f"{name} holds no text encoder of Stable Diffusion 1.x, 2.x or XL",
            "fetch the whole checkpoint, not the pruned UNet, or a diffusers folder",
        )
    return {**found, "text_encoder": encoder}


def _alone(shapes: Shapes) -> str | None:
    """What a file holds that has only a part of a checkpoint, by its tensors' names."""
    kinds = {
        "model_ema.": "averaged weights (model_ema.*)",
        "input_blocks.": "a UNet",
        "down_blocks.": "a UNet",
        "encoder.down_blocks.": "an autoencoder",
        "encoder.down.": "an autoencoder",
        "encoder.layers.": "a text encoder",
    }
    names = [name.removeprefix("text_model.") for name in shapes]
    return next((kind for prefix, kind in kinds.items() if any(n.startswith(prefix) for n in names)), None)


def _under(shapes: Shapes, prefix: str) -> dict[str, tuple[int, ...]]:
    return {key.removeprefix(prefix): shape for key, shape in shapes.items() if key.startswith(prefix)}


def _unet(shapes: Shapes, prediction: Prediction) -> dict[str, Any]:
    """Walk the encoder half: residual blocks with or without attention, and downsamplers."""
    channels, depth, counts = [0], [0], [0]
    number = 1
    while any(key.startswith(f"input_blocks.{number}.") for key in shapes):
        block, count = f"input_blocks.{number}.", rf"input_blocks\.{number}\.1\.transformer_blocks\.(\d+)\."
        if f"{block}0.op.weight" in shapes:
            channels.append(0)
            depth.append(0)
            counts.append(0)
        else:
            channels[-1] = shapes[f"{block}0.out_layers.3.weight"][0]
            depth[-1] = max(depth[-1], _numbered(shapes, count))
            counts[-1] += 1
        number += 1
    attention = [key for key in shapes if key.endswith("attn2.to_k.weight")]
    inside = [key for key in shapes if re.fullmatch(r".*\.1\.proj_in\.weight", key)]
    linear = len(shapes[inside[0]]) == 2
    down = tuple("CrossAttnDownBlock2D" if each else "DownBlock2D" for each in depth)
    up = tuple("CrossAttnUpBlock2D" if each else "UpBlock2D" for each in reversed(depth))
    config: dict[str, Any] = {
        "_class_name": "UNet2DConditionModel", "block_out_channels": channels, "down_block_types": down,
        "up_block_types": up, "layers_per_block": counts[0],
        "in_channels": shapes["input_blocks.0.0.weight"][1], "out_channels": shapes["out.2.weight"][0],
        "cross_attention_dim": shapes[attention[0]][1],
        "transformer_layers_per_block": [each or 1 for each in depth], "use_linear_projection": linear,
        # diffusers' name for the number of heads; with linear projections they are 64 wide.
        "attention_head_dim": [max(1, c // _HEAD) for c in channels] if linear else 8,
        "sample_size": 96 if prediction == "v_prediction" else 64,
    }  # fmt: skip
    if "label_emb.0.0.weight" in shapes:
        config["projection_class_embeddings_input_dim"] = shapes["label_emb.0.0.weight"][1]
        config["sample_size"] = 128
    if "time_embed.cond_proj.weight" in shapes:
        config["time_cond_proj_dim"] = shapes["time_embed.cond_proj.weight"][1]
    return config


def _vae(shapes: Shapes, xl: bool) -> dict[str, Any]:
    levels = _numbered(shapes, r"encoder\.down\.(\d+)\.")
    channels = [shapes[f"encoder.down.{level}.block.0.conv1.weight"][0] for level in range(levels)]
    return {
        "_class_name": "AutoencoderKL", "block_out_channels": channels,
        "down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": _numbered(shapes, r"encoder\.down\.0\.block\.(\d+)\."),
        "latent_channels": shapes["decoder.conv_in.weight"][1], "sample_size": 1024 if xl else 512,
        "scaling_factor": 0.13025 if xl else 0.18215, "force_upcast": xl,
    }  # fmt: skip


def _text_encoder(shapes: Shapes, part: str) -> dict[str, Any]:
    """Of CLIP in transformers' names, or of OpenCLIP."""
    theirs = "token_embedding.weight" in shapes
    if theirs:
        tokens, places = shapes["token_embedding.weight"], shapes["positional_embedding"]
        layers = _numbered(shapes, r"transformer\.resblocks\.(\d+)\.")
        inner = shapes["transformer.resblocks.0.mlp.c_fc.weight"][0]
        if part == "text_encoder":
            layers = min(layers, OPEN_CLIP_LAYERS)
    else:
        tokens = shapes["text_model.embeddings.token_embedding.weight"]
        places = shapes["text_model.embeddings.position_embedding.weight"]
        layers = _numbered(shapes, r"text_model\.encoder\.layers\.(\d+)\.")
        inner = shapes["text_model.encoder.layers.0.mlp.fc1.weight"][0]
    width = tokens[1]
    projected = shapes["text_projection"][1] if part == "text_encoder_2" else width
    return {
        "architectures": ["CLIPTextModelWithProjection" if part == "text_encoder_2" else "CLIPTextModel"],
        "model_type": "clip_text_model", "hidden_size": width, "vocab_size": tokens[0],
        "max_position_embeddings": places[0], "num_hidden_layers": layers, "intermediate_size": inner,
        "num_attention_heads": max(1, width // _HEAD), "hidden_act": "gelu" if theirs else "quick_gelu",
        "projection_dim": projected, "bos_token_id": BOS, "eos_token_id": EOS,
        "pad_token_id": 0 if theirs else EOS, "layer_norm_eps": 1e-5,
    }  # fmt: skip


def _tokenizers(prefixes: Mapping[str, str]) -> dict[str, str]:
    """OpenCLIP's text encoders were trained on prompts that are filled with token 0."""
    padding = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
    open_clip = (OPEN_CLIP, XL_OPEN_CLIP)
    return {
        tokenizer: "!" if prefixes[part] in open_clip else "<|endoftext|>"
        for part, tokenizer in padding.items()
        if part in prefixes
    }


def _scheduler(prediction: Prediction, zero_snr: bool) -> dict[str, Any]:
    return {
        "_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000,
        "beta_schedule": "scaled_linear", "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1,
        "prediction_type": prediction, "rescale_betas_zero_snr": zero_snr,
        "timestep_spacing": "trailing" if zero_snr else "leading",
    }  # fmt: skip


def _numbered(shapes: Shapes, pattern: str) -> int:
    """How many there are of what a pattern numbers from 0."""
    found = re.compile(pattern)
    return max((int(m[1]) + 1 for key in shapes if (m := found.match(key))), default=0)
