"""A served hub with the file listings of real repositories; tiny random weights are in the files."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "cli"))
sys.path.insert(0, str(Path(__file__).parents[1]))

from hub_server import files_of, serving
from listings import halved


@pytest.fixture(scope="session")
def server():
    with serving() as found:
        yield found


@pytest.fixture()
def hub(server, tmp_path, monkeypatch):
    """The served hub, empty, as the only one that ``huggingface_hub`` knows; an empty cache."""
    from huggingface_hub import constants

    from ctxedit.models import transfer

    served, address = server
    served.__init__()
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(transfer, "_PAUSE", 0.0)
    return served


@pytest.fixture(scope="session")
def sd14_files(stable_diffusion):
    """CompVis/stable-diffusion-v1-4 as the hub lists it, the weights tiny."""
    real = files_of(stable_diffusion)
    weights = {
        "unet/diffusion_pytorch_model": real["unet/diffusion_pytorch_model.safetensors"],
        "vae/diffusion_pytorch_model": real["vae/diffusion_pytorch_model.safetensors"],
        "text_encoder/model": real["text_encoder/model.safetensors"],
    }
    unneeded = [
        "README.md", ".gitattributes", "v1-variants-scores.jpg", "feature_extractor/preprocessor_config.json",
        "safety_checker/config.json", "safety_checker/model.safetensors",
        "safety_checker/model.fp16.safetensors", "safety_checker/pytorch_model.bin",
        "unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.fp16.bin",
        "unet/diffusion_pytorch_model.non_ema.safetensors", "vae/diffusion_pytorch_model.bin",
        "text_encoder/pytorch_model.bin", "text_encoder/pytorch_model.fp16.bin", "sd-v1-4.ckpt",
    ]  # fmt: skip
    files = {name: data for name, data in real.items() if not name.endswith(".safetensors")}
    for stem, data in weights.items():
        files[f"{stem}.safetensors"] = data
        files[f"{stem}.fp16.safetensors"] = halved(data)
    return files | {name: b"not needed: " + name.encode() for name in unneeded}


@pytest.fixture(scope="session")
def clip_files():
    """openai/clip-vit-base-patch32, the revision with safetensors."""
    from ctxedit.models.weights import BUILTIN_FOLDER

    files = {k: v for k, v in files_of(BUILTIN_FOLDER / "clip").items() if k != "training.json"}
    return files | {"pytorch_model.bin": b"pickle", "flax_model.msgpack": b"flax", "tf_model.h5": b"tf"}


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    """A clip for a model without a preset of its own."""
    from fractions import Fraction

    import numpy as np

    from ctxedit.media.write import write_clip

    frames = np.random.default_rng(0).integers(0, 255, (24, 32, 32, 3), dtype=np.uint8)
    return write_clip(tmp_path_factory.mktemp("hub clip") / "noise.mp4", frames, Fraction(8))
