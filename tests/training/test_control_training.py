"""The ControlNet's training: the edges, what is trained, and its initialisation."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel
from torch.utils.data import DataLoader

from ctxedit.errors import ConfigError
from ctxedit.media.edges import canny
from ctxedit.models.backbones import load_backbone
from ctxedit.models.weights import BUILTIN_FOLDER
from ctxedit.training import recipe
from ctxedit.training.checks.control import edge_score
from ctxedit.training.components import Components
from ctxedit.training.data import DataConfig
from ctxedit.training.job import Training
from ctxedit.training.tasks.control import ControlTask, edge_map


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    weights = tmp_path_factory.mktemp("weights")
    for folder in ("vae", "clip", "unet", "text_encoder", "tokenizer"):
        (weights / folder).symlink_to(BUILTIN_FOLDER / folder)
    torch.manual_seed(0)
    return Training(recipe.resolve("control"), weights / ".state", weights).build_task()


@pytest.fixture(scope="module")
def batch(task):
    return next(iter(DataLoader(task.dataset(0), batch_size=4, sampler=range(4))))


def generator():
    return torch.Generator().manual_seed(0)


def test_edges_are_where_the_picture_changes():
    image = torch.full((1, 3, 32, 32), -1.0)
    image[..., 16:] = 1.0
    edges = edge_map(image, 100, 200)
    assert edges.shape == image.shape and set(edges.unique().tolist()) == {0.0, 1.0}
    columns = edges[0, 0].amax(0).nonzero().flatten().tolist()
    assert columns and set(columns) <= {15, 16}
    assert not edge_map(torch.zeros(1, 3, 32, 32), 100, 200).any()


def test_without_a_denoiser_there_is_nothing_to_control(tmp_path):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").touch()
    with pytest.raises(ConfigError, match="no denoiser"):
        ControlTask.build(Components(tmp_path), DataConfig(), {"embedding": [16, 32]})


def test_its_folder_is_a_whole_pipeline(tmp_path):
    Training(recipe.resolve("control"), tmp_path / ".state", tmp_path).build_task()
    for name in ("model_index.json", "vocabulary.json", "scheduler/scheduler_config.json"):
        assert (tmp_path / name).read_bytes() == (BUILTIN_FOLDER / name).read_bytes()
    load_backbone(str(tmp_path), torch.device("cpu"), torch.float32)


def test_the_initial_loss_is_the_denoisers(task, batch):
    """The zero convolutions make an untrained ControlNet a no-op."""
    with_control, _ = task.loss(task.model, batch, generator())
    without, _ = task.velocity(task.unet, batch, generator())
    assert torch.equal(with_control, without)


def test_only_the_controlnet_is_trained(task, batch):
    loss, _ = task.loss(task.model, batch, generator())
    loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in task.unet.parameters())
    moved = {n for n, p in task.model.named_parameters() if p.grad is not None and p.grad.any()}
    assert {"controlnet_mid_block.weight", "controlnet_down_blocks.0.weight"} <= moved
    task.model.zero_grad(set_to_none=True)


def test_each_draw_of_a_picture_has_its_edges(task, batch, monkeypatch):
    seen = []
    monkeypatch.setattr(task.velocity, "draws", 2)
    handle = task.model.register_forward_pre_hook(lambda m, args: seen.append(args))
    task.loss(task.model, batch, generator())
    handle.remove()
    noisy, _, words, condition = seen[0]
    assert len(noisy) == len(words) == len(condition) == 8
    assert torch.equal(condition[:4], condition[4:]) and not torch.equal(condition[0], condition[1])


def test_it_is_saved_as_diffusers_reads_it(task, tmp_path: Path):
    task.export(task.model, tmp_path / "controlnet")
    back = ControlNetModel.from_pretrained(tmp_path / "controlnet")
    assert back.dtype == torch.float32
    for name, value in task.model.state_dict().items():
        assert torch.equal(back.state_dict()[name], value.half().float()), name


def test_an_images_edges_are_compared_within_a_pixel():
    image = np.zeros((32, 32, 3), np.uint8)
    image[8:24, 8:24] = 255
    wanted = canny(image[None])[0]
    assert edge_score(image, wanted) == 1
    assert edge_score(np.roll(image, 1, 1), wanted) == 1
    assert edge_score(np.roll(image, 12, 1), wanted) < 0.5
    assert edge_score(np.zeros_like(image), wanted) == 0
    assert edge_score(np.zeros_like(image), np.zeros_like(wanted)) == 1
