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


#: Large files of repositories by short name, after the hub's listings (written without access to the hub);
#: what is needed is marked with "+" (full precision) and "=" (half).
LARGE = {
    "sd15": """
        v1-5-pruned-emaonly.ckpt v1-5-pruned-emaonly.safetensors v1-5-pruned.ckpt v1-5-pruned.safetensors
        safety_checker/model.safetensors safety_checker/model.fp16.safetensors
        safety_checker/pytorch_model.bin safety_checker/pytorch_model.fp16.bin
        text_encoder/pytorch_model.bin text_encoder/pytorch_model.fp16.bin
        +text_encoder/model.safetensors =text_encoder/model.fp16.safetensors
        unet/diffusion_pytorch_model.bin unet/diffusion_pytorch_model.fp16.bin
        unet/diffusion_pytorch_model.non_ema.bin unet/diffusion_pytorch_model.non_ema.safetensors
        +unet/diffusion_pytorch_model.safetensors =unet/diffusion_pytorch_model.fp16.safetensors
        vae/diffusion_pytorch_model.bin vae/diffusion_pytorch_model.fp16.bin
        +vae/diffusion_pytorch_model.safetensors =vae/diffusion_pytorch_model.fp16.safetensors""",
    "sd21": """
        v2-1_768-ema-pruned.ckpt v2-1_768-ema-pruned.safetensors v2-1_768-nonema-pruned.ckpt
        v2-1_768-nonema-pruned.safetensors text_encoder/pytorch_model.bin text_encoder/pytorch_model.fp16.bin
        +text_encoder/model.safetensors =text_encoder/model.fp16.safetensors
        unet/diffusion_pytorch_model.bin unet/diffusion_pytorch_model.fp16.bin
        +unet/diffusion_pytorch_model.safetensors =unet/diffusion_pytorch_model.fp16.safetensors
        vae/diffusion_pytorch_model.bin vae/diffusion_pytorch_model.fp16.bin
        +vae/diffusion_pytorch_model.safetensors =vae/diffusion_pytorch_model.fp16.safetensors""",
    "sdxl": """
        sd_xl_base_1.0.safetensors sd_xl_base_1.0_0.9vae.safetensors sd_xl_offset_example-lora_1.0.safetensors
        text_encoder/flax_model.msgpack text_encoder/model.onnx text_encoder/openvino_model.bin
        +text_encoder/model.safetensors =text_encoder/model.fp16.safetensors
        text_encoder_2/flax_model.msgpack text_encoder_2/model.onnx text_encoder_2/model.onnx_data
        text_encoder_2/openvino_model.bin
        +text_encoder_2/model.safetensors =text_encoder_2/model.fp16.safetensors
        unet/diffusion_flax_model.msgpack unet/model.onnx unet/model.onnx_data unet/openvino_model.bin
        +unet/diffusion_pytorch_model.safetensors =unet/diffusion_pytorch_model.fp16.safetensors
        vae/diffusion_flax_model.msgpack
        +vae/diffusion_pytorch_model.safetensors =vae/diffusion_pytorch_model.fp16.safetensors
        vae_1_0/diffusion_pytorch_model.safetensors vae_1_0/diffusion_pytorch_model.fp16.safetensors
        vae_decoder/model.onnx vae_decoder/openvino_model.bin vae_encoder/model.onnx
        vae_encoder/openvino_model.bin""",
}
