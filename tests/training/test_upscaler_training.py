"""The upscaler's training: crops at both resolutions, and where a new network begins."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from ctxedit.errors import ConfigError
from ctxedit.models.upscalers.checkpoints import locate_upscaler, open_upscaler
from ctxedit.models.weights import BUILTIN_FOLDER
from ctxedit.training.components import Components
from ctxedit.training.data import DataConfig
from ctxedit.training.tasks.upscaler import UpscalerTask, random_crops

SMALL = {"channels": [16, 32], "layers": [1, 1], "head": 16}
DATA = DataConfig(size=128)


def build(tmp_path, **settings):
    for folder in ("vae", "text_encoder", "tokenizer"):
        if not (tmp_path / folder).exists():
            (tmp_path / folder).symlink_to(BUILTIN_FOLDER / folder)
    return UpscalerTask.build(Components(tmp_path), DATA, {**SMALL, **settings})


@pytest.fixture()
def task(tmp_path):
    torch.manual_seed(0)
    return build(tmp_path, crop=8, crops=3)


def generator():
    return torch.Generator().manual_seed(0)


def test_crops_of_both_resolutions_show_the_same_places():
    large = torch.randn(2, 3, 128, 128)
    image, low = random_crops(large, F.avg_pool2d(large, 4), 8, 3, generator())
    assert image.shape == (6, 3, 32, 32) and low.shape == (6, 3, 8, 8)
    torch.testing.assert_close(F.avg_pool2d(image, 4), low)
    assert len({tuple(crop.flatten()[:2].tolist()) for crop in low}) == 6


def test_a_crop_of_the_whole_size_is_the_image():
    large = torch.randn(2, 3, 128, 128)
    low = F.avg_pool2d(large, 4)
    image, same = random_crops(large, low, 32, 1, generator())
    assert torch.equal(image, large) and torch.equal(same, low)


def test_it_begins_as_bicubic_and_learns(task, tmp_path):
    batch = next(iter(DataLoader(task.data.dataset(0), batch_size=4, sampler=range(4))))
    loss, figures = task.loss(task.model, batch, generator())
    assert figures["psnr"] == pytest.approx(figures["bicubic"], abs=1e-3)
    optimizer = torch.optim.Adam(task.model.parameters(), 3e-3)
    for _ in range(12):
        optimizer.zero_grad()
        task.loss(task.model, batch, generator())[0].backward()
        optimizer.step()
    assert task.loss(task.model, batch, generator())[0] < 0.9 * loss
    task.export(task.model, tmp_path / "upscaler")
    found = locate_upscaler(str(tmp_path), None)
    assert open_upscaler(found, torch.device("cpu"), torch.float32).unet.config.class_embed_type == "timestep"


@pytest.mark.parametrize(
    ("settings", "key"),
    [({"crop": 7}, "crop"), ({"crop": 34}, "crop"), ({"crops": 0}, "crops"), ({"augment": 1000}, "augment")],
)
def test_impossible_settings_are_refused(tmp_path, settings, key):
    with pytest.raises(ConfigError, match=f"task.{key} = "):
        build(tmp_path, **settings)
