"""Tiny checkpoints with random weights, of diffusers' own classes."""

from pathlib import Path


def text_encoder(tokenizer, **sizes):
    """CLIP's text side for a tokenizer, random."""
    from transformers import CLIPTextConfig, CLIPTextModel

    ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return CLIPTextModel(CLIPTextConfig(**sizes, **ends))


def pipeline(tokenizer, text, unet, vae, prediction: str = "epsilon"):
    """Stable Diffusion of these parts, with its noise levels."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1, prediction_type=prediction,
    )  # fmt: skip
    return StableDiffusionPipeline(
        vae, text, tokenizer, unet, scheduler, None, None, requires_safety_checker=False
    )


def stable_diffusion_1(words: Path):
    """Stable Diffusion 1.4's own sizes with random weights, in float32; no small one."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel

    from ctxedit.training.tokenizer import build

    tokenizer = build(words, captions=2000)
    tokenizer.model_max_length = 77
    torch.manual_seed(0)
    text = text_encoder(
        tokenizer, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
        projection_dim=768,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=64,
        block_out_channels=(320, 640, 1280, 1280),
        cross_attention_dim=768,
        attention_head_dim=8,
    )
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4, layers_per_block=2, latent_channels=4, sample_size=512,
    )  # fmt: skip
    return pipeline(tokenizer, text, unet, vae)


def make_stable_diffusion(folder: Path, prediction: str = "epsilon", sample: int = 16) -> Path:
    """A Stable Diffusion pipeline folder of diffusers' own classes, small and random."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel

    from ctxedit.training.tokenizer import build

    tokenizer = build(folder / "words", captions=2000)
    torch.manual_seed(0)
    text = text_encoder(
        tokenizer, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        vocab_size=len(tokenizer), max_position_embeddings=tokenizer.model_max_length,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=sample,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=2,
        norm_num_groups=8,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 16, 16),
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=4 * sample,
    )
    pipeline(tokenizer, text, unet, vae, prediction).save_pretrained(folder / prediction)
    return folder / prediction


def make_controlnet(folder: Path, stable_diffusion: Path, zero: bool = False) -> Path:
    """A ControlNet folder of the pipeline's sizes; its zero convolutions are random unless ``zero``."""
    import torch
    from diffusers import ControlNetModel, UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(stable_diffusion, subfolder="unet")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 8, 16))
        if not zero:
            closed = (net.controlnet_cond_embedding.conv_out, net.controlnet_mid_block)
            for layer in (*closed, *net.controlnet_down_blocks):
                torch.nn.init.normal_(layer.weight, std=0.3)
    net.save_pretrained(folder)
    return folder


def make_sdxl(folder: Path) -> Path:
    """A Stable Diffusion XL pipeline folder of diffusers' own classes, small and random."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    from ctxedit.training.tokenizer import build

    tokenizer = build(folder / "words", captions=2000)
    torch.manual_seed(0)
    sizes = dict(
        intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, vocab_size=len(tokenizer),
        max_position_embeddings=tokenizer.model_max_length,
    )  # fmt: skip
    ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    second = CLIPTextModelWithProjection(
        CLIPTextConfig(hidden_size=16, projection_dim=24, hidden_act="gelu", **sizes, **ends)
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        transformer_layers_per_block=(1, 2),
        cross_attention_dim=32 + 16,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24 + 6 * 8,
        norm_num_groups=8,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 16, 16),
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
        scaling_factor=0.13025,
        force_upcast=True,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=True, steps_offset=1,
    )  # fmt: skip
    StableDiffusionXLPipeline(
        vae, text_encoder(tokenizer, hidden_size=32, **sizes), second, tokenizer, tokenizer, unet, scheduler,
        add_watermarker=False,
    ).save_pretrained(folder / "sdxl")  # fmt: skip
    return folder / "sdxl"


def make_x4_upscaler(folder: Path, in_channels: int = 7) -> Path:
    """A ``StableDiffusionUpscalePipeline`` folder of diffusers' own classes, small and random."""
    import torch
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        DDPMScheduler,
        StableDiffusionUpscalePipeline,
        UNet2DConditionModel,
    )

    from ctxedit.training.tokenizer import build

    tokenizer = build(folder / "words", captions=2000)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        text = text_encoder(
            tokenizer, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            vocab_size=len(tokenizer), max_position_embeddings=tokenizer.model_max_length,
        )  # fmt: skip
        unet = UNet2DConditionModel(
            sample_size=16,
            in_channels=in_channels,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            only_cross_attention=(True, False),
            cross_attention_dim=32,
            attention_head_dim=2,
            norm_num_groups=8,
            num_class_embeds=1000,
        )
        vae = AutoencoderKL(
            block_out_channels=(8, 8, 16),
            down_block_types=["DownEncoderBlock2D"] * 3,
            up_block_types=["UpDecoderBlock2D"] * 3,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=64,
            scaling_factor=0.08333,
        )
    scheduler = DDIMScheduler(
        beta_start=0.0001, beta_end=0.02, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1, prediction_type="v_prediction",
    )  # fmt: skip
    low = DDPMScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="scaled_linear")
    StableDiffusionUpscalePipeline(vae, text, tokenizer, unet, low, scheduler).save_pretrained(folder / "x4")
    return folder / "x4"


def make_pixel_upscaler(folder: Path, scale: float = 0.2) -> Path:
    """What ``ctxedit train upscaler`` exports, small and random; ``scale`` is of its last layer's weights."""
    import torch
    from diffusers import UNet2DConditionModel

    from ctxedit.models.upscalers import pixels

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        unet = UNet2DConditionModel(
            sample_size=64,
            in_channels=pixels.IN_CHANNELS,
            out_channels=pixels.FOLDED,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            cross_attention_dim=192,
            attention_head_dim=2,
            norm_num_groups=8,
            class_embed_type="timestep",
        )
        torch.nn.init.normal_(unet.conv_out.weight, std=scale) if scale else torch.nn.init.zeros_(
            unet.conv_out.weight
        )
        torch.nn.init.zeros_(unet.conv_out.bias)
    unet.save_pretrained(folder)
    pixels.residual_scheduler().save_pretrained(folder / "scheduler")
    pixels.augmentation_scheduler().save_pretrained(folder / "low_res_scheduler")
    return folder
