"""Networks of diffusers' classes under the names of the original Stable Diffusion code.

Written from the original code's module names, apart from the conversion that it tests.
"""

import re
from pathlib import Path

_RESIDUAL = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
_AROUND = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip
_OPEN_CLIP = {
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}  # fmt: skip


def unet_name(name, layers, attentive):
    """``attentive``: for each level on the way up, whether it has attention."""
    for ours, theirs in _AROUND.items():
        if name.startswith(f"{ours}."):
            return theirs + name.removeprefix(ours)
    parts = name.split(".")
    if parts[0] == "mid_block":
        place = {"resnets.0": 0, "attentions.0": 1, "resnets.1": 2}[".".join(parts[1:3])]
        head, rest = f"middle_block.{place}", parts[3:]
        return _inside(head, parts[1], rest)
    level, kind, number = int(parts[1]), parts[2], int(parts[3])
    if parts[0] == "down_blocks":
        if kind == "downsamplers":
            return f"input_blocks.{(level + 1) * (layers + 1)}.0.op.{parts[-1]}"
        head = f"input_blocks.{1 + level * (layers + 1) + number}.{int(kind == 'attentions')}"
    else:
        first = level * (layers + 1)
        if kind == "upsamplers":
            return f"output_blocks.{first + layers}.{1 + attentive[level]}.conv.{parts[-1]}"
        head = f"output_blocks.{first + number}.{int(kind == 'attentions')}"
    return _inside(head, kind, parts[4:])


def _inside(head, kind, rest):
    if kind == "resnets":
        return f"{head}.{_RESIDUAL[rest[0]]}.{rest[1]}"
    return ".".join([head, *rest])


def vae_tensors(state, levels):
    found = {}
    for name, value in state.items():
        if "attentions" in name and name.endswith("weight") and value.ndim == 2:
            value = value[:, :, None, None]
        name = re.sub(r"up_blocks\.(\d)", lambda m: f"up.{levels - 1 - int(m[1])}", name)
        for ours, theirs in (
            (r"down_blocks\.", "down."), (r"resnets\.(\d)", r"block.\1"), (r"downsamplers\.0", "downsample"),
            (r"upsamplers\.0", "upsample"), ("conv_shortcut", "nin_shortcut"), ("conv_norm_out", "norm_out"),
            (r"mid_block\.block\.0", "mid.block_1"), (r"mid_block\.block\.1", "mid.block_2"),
            (r"mid_block\.attentions\.0", "mid.attn_1"), ("group_norm", "norm"), (r"to_([qkv])", r"\1"),
            (r"to_out\.0", "proj_out"),
        ):  # fmt: skip
            name = re.sub(ours, theirs, name)
        found[f"first_stage_model.{name}"] = value
    return found


def clip_tensors(state, prefix):
    return {f"{prefix}text_model.{name.removeprefix('text_model.')}": value for name, value in state.items()}


def open_clip_tensors(state, prefix):
    import torch

    state = {name.removeprefix("text_model."): value for name, value in state.items()}
    found = {
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "ln_final.weight": state["final_layer_norm.weight"], "ln_final.bias": state["final_layer_norm.bias"],
    }  # fmt: skip
    if "text_projection.weight" in state:
        found["text_projection"] = state["text_projection.weight"].T
    layers = 1 + max(int(m[1]) for name in state if (m := re.match(r"encoder\.layers\.(\d+)", name)))
    for n in range(layers):
        ours, theirs = f"encoder.layers.{n}.", f"transformer.resblocks.{n}."
        for end in ("weight", "bias"):
            each = [state[f"{ours}self_attn.{p}_proj.{end}"] for p in "qkv"]
            found[f"{theirs}attn.in_proj_{end}"] = torch.cat(each)
            for a, b in _OPEN_CLIP.items():
                found[f"{theirs}{b}.{end}"] = state[f"{ours}{a}.{end}"]
    return {f"{prefix}{name}": value for name, value in found.items()}


def original_tensors(pipe):
    """All tensors of a pipeline, under original names."""
    config = pipe.unet.config
    attentive = ["CrossAttn" in kind for kind in config.up_block_types]
    found = {
        f"model.diffusion_model.{unet_name(name, config.layers_per_block, attentive)}": value
        for name, value in pipe.unet.state_dict().items()
    }
    found |= vae_tensors(pipe.vae.state_dict(), len(pipe.vae.config.block_out_channels))
    text = pipe.text_encoder.state_dict()
    if hasattr(pipe, "text_encoder_2"):
        found |= clip_tensors(text, "conditioner.embedders.0.transformer.")
        found |= open_clip_tensors(pipe.text_encoder_2.state_dict(), "conditioner.embedders.1.model.")
    elif config.use_linear_projection:
        found |= open_clip_tensors(text, "cond_stage_model.model.")
    else:
        found |= clip_tensors(text, "cond_stage_model.transformer.")
    return {name: value.contiguous() for name, value in found.items()}


def save_single(pipe, path: Path, metadata=None, **more) -> Path:
    """One file of a pipeline's weights, and ``more`` tensors beside them."""
    from safetensors.torch import save_file

    save_file({**original_tensors(pipe), **more}, path, metadata)
    return path


def _pairs():
    """As many merges as CLIP has, of two signs each."""
    from itertools import islice, product

    signs = [chr(n) for n in [*range(33, 127), *range(161, 173), *range(174, 256)]]
    signs += [chr(256 + n) for n in range(256 - len(signs))]
    return [f"{a} {b}" for a, b in islice(product(signs, signs), 49408 - 512 - 2)]


MERGES = _pairs()


def write_merges(folder: Path) -> Path:
    """A package of the name that CLIP's merges come in, with these; its parent goes on ``sys.path``."""
    import gzip

    package = folder / "open_clip"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    text = "\n".join(["#version", *MERGES, "more merges", "that CLIP leaves out"])
    (package / "bpe_simple_vocab_16e6.txt.gz").write_bytes(gzip.compress(text.encode()))
    return folder


def _tokenizer(padding: str):
    """CLIP's, with other merges."""
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    lines = MERGES
    signs = list(bytes_to_unicode().values())
    tokens = [*signs, *(s + "</w>" for s in signs), *("".join(line.split()) for line in lines)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: n for n, token in enumerate(tokens)}
    merges = [tuple(line.split()) for line in lines]
    return CLIPTokenizer(vocabulary, merges, model_max_length=77, pad_token=padding)


def _encoder(cls, width, layers, act, heads=1, **sizes):
    from transformers import CLIPTextConfig

    return cls(
        CLIPTextConfig(
            hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers, vocab_size=49408,
            num_attention_heads=heads, hidden_act=act, bos_token_id=49406, eos_token_id=49407,
            pad_token_id=49407 if act == "quick_gelu" else 0, **sizes,
        )
    )  # fmt: skip


def make_pipeline(kind: str, prediction: str = "epsilon", in_channels: int = 4):
    """A tiny random ``sd1``, ``sd2`` or ``sdxl`` with CLIP's own tokenizer."""
    import torch
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionPipeline,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(4)
    linear, xl = kind != "sd1", kind == "sdxl"
    more = dict(
        addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24 + 6 * 8, transformer_layers_per_block=(1, 2),
    ) if xl else {}  # fmt: skip
    attentive, plain = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D"), ("DownBlock2D", "UpBlock2D")
    finest = plain if xl else attentive
    unet = UNet2DConditionModel(
        sample_size=96 if prediction == "v_prediction" else 128 if xl else 64, in_channels=in_channels,
        block_out_channels=(64, 128) if linear else (32, 64), layers_per_block=1,
        down_block_types=(finest[0], attentive[0]), up_block_types=(attentive[1], finest[1]),
        cross_attention_dim=32 + 24 * xl, attention_head_dim=(1, 2) if linear else 8,
        use_linear_projection=linear, **more,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(32, 64), down_block_types=["DownEncoderBlock2D"] * 2, layers_per_block=1,
        up_block_types=["UpDecoderBlock2D"] * 2, latent_channels=4, force_upcast=xl,
        scaling_factor=0.13025 if xl else 0.18215,
    )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1, prediction_type=prediction,
    )  # fmt: skip
    first, second = _tokenizer("<|endoftext|>"), _tokenizer("!")
    if xl:
        text_2 = _encoder(CLIPTextModelWithProjection, 24, 2, "gelu", projection_dim=24)
        text = _encoder(CLIPTextModel, 32, 2, "quick_gelu")
        return StableDiffusionXLPipeline(
            vae, text, text_2, first, second, unet, scheduler, add_watermarker=False
        )
    text = _encoder(CLIPTextModel, 32, 23 if linear else 2, "gelu" if linear else "quick_gelu")
    return StableDiffusionPipeline(
        vae, text, second if linear else first, unet, scheduler, None, None, requires_safety_checker=False
    )
