"""What the served repositories are called, and what of them ctxedit needs."""

SD14 = "CompVis/stable-diffusion-v1-4"
CLIP = "openai/clip-vit-base-patch32"


def halved(data: bytes) -> bytes:
    """The same tensors in float16."""
    from safetensors.torch import load, save

    return save({name: tensor.half() for name, tensor in load(data).items()}, {"format": "pt"})


def needed(files, half=False):
    """Of SD 1.4's files what ctxedit loads, by hand."""
    dot = ".fp16" if half else ""
    weights = [
        f"unet/diffusion_pytorch_model{dot}.safetensors",
        f"vae/diffusion_pytorch_model{dot}.safetensors",
        f"text_encoder/model{dot}.safetensors",
    ]
    parts = ("unet/", "vae/", "text_encoder/", "tokenizer/", "scheduler/")
    settings = [n for n in files if n.startswith(parts) and n.endswith((".json", ".txt"))]
    return {*weights, *settings, "model_index.json"}
