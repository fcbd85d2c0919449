"""The real thing's size: a Stable Diffusion 1.4 folder, random weights, through tune, edit and eval.

Slow (gigabytes of weights): ``pytest -m slow tests/test_stable_diffusion.py``.
"""

from fractions import Fraction

import numpy as np
import pytest
from tiny import pipeline, text_encoder

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Stable Diffusion 1.4's own configuration, in diffusers' classes, as a folder (half precision)."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel

    from ctxedit.training.tokenizer import build

    place = tmp_path_factory.mktemp("sd14")
    tokenizer = build(place / "words", captions=2000)
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
        block_out_channels=(128, 256, 512, 512),
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        layers_per_block=2,
        latent_channels=4,
        sample_size=512,
    )
    pipeline(tokenizer, text, unet, vae).to(torch.float16).save_pretrained(place / "sd")
    return place / "sd"


def test_full_size_checkpoint_goes_through_all_stages(folder, tmp_path):
    from ctxedit import config
    from ctxedit.editing.request import Request
    from ctxedit.editing.session import Session
    from ctxedit.media.write import write_clip

    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (6, 96, 128, 3), dtype=np.uint8)
    write_clip(tmp_path / "clip.mp4", frames, Fraction(10))
    flags = {
        "model": str(folder),
        "clip_model": "builtin",
        "clip": {"frames": 3, "stride": 2, "size": 128},
        "tune": {"steps": 2},
        "invert": {"steps": 2},
        "edit": {"steps": 2},
    }
    settings = config.load("contextdiff", flags=flags, environ={})
    request = Request(
        tmp_path / "clip.mp4", settings, prompt="a tiger on the beach", runs=tmp_path / "runs"
    )  # fmt: skip
    with Session(request) as session:
        (result,) = session.edit_all(["a panda on the beach"])
        parameters = sum(p.numel() for p in session.parts.backbone.unet.parameters())
    assert parameters == pytest.approx(859.5e6, rel=1e-3)
    assert result.files.video.exists() and result.figures.clip_text is not None
    assert (session.run.folder / "tune" / "adapter.safetensors").exists()
