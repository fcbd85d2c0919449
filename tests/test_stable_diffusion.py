"""The real thing's size: a Stable Diffusion 1.4 folder, random weights, through tune, edit and eval.

Slow (gigabytes of weights): ``pytest -m slow tests/test_stable_diffusion.py``.
"""

from fractions import Fraction

import numpy as np
import pytest
from tiny import stable_diffusion_1

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Stable Diffusion 1.4's own configuration, in diffusers' classes, as a folder (half precision)."""
    import torch

    place = tmp_path_factory.mktemp("sd14")
    stable_diffusion_1(place / "words").to(torch.float16).save_pretrained(place / "sd")
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
