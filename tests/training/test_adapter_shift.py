"""The adapter's task trains with the shift that its settings ask for."""

import pytest
import torch

from ctxedit.errors import ConfigError
from ctxedit.training.components import Components
from ctxedit.training.data import DataConfig
from ctxedit.training.tasks.adapter import AdapterTask

SMALL = {"width": 32, "blocks": 1, "heads": 2, "patch": 2}


@pytest.fixture(scope="module")
def components(tmp_path_factory):
    return Components(tmp_path_factory.mktemp("models"))


def trained(components, **own):
    """The task after one backward pass, with its figures; the adapter's output is far from zero."""
    torch.manual_seed(0)
    task = AdapterTask(components, DataConfig(), adapter={**SMALL, **own}, train=["attn2"])
    if own.get("enabled", True):
        torch.nn.init.normal_(task.adapter.out.weight, std=0.5)
    batch = torch.utils.data.default_collate([task.dataset(0)[i] for i in range(2)])
    loss, row = task.loss(task.model, batch, torch.Generator().manual_seed(1))
    loss.backward()
    return task, row


def test_a_bounded_shift_and_one_that_keeps_the_norm_are_smaller_than_a_free_one(components):
    free, bounded, kept = (trained(components, **own)[1] for own in ({}, {"bound": 0.1}, {"norm": "kept"}))
    assert free["shift"] > kept["shift"] > 0 and free["shift"] > bounded["shift"] > 0
    assert len({round(row["loss"], 6) for row in (free, bounded, kept)}) == 3


def test_without_the_adapter_the_denoiser_is_trained_alone(components):
    task, row = trained(components, enabled=False)
    assert row["shift"] == 0 and all(p.grad is None for p in task.adapter.parameters())
    assert any(p.grad is not None for p in task.unet.parameters())


def test_nothing_to_train_is_refused(components):
    with pytest.raises(ConfigError, match="nothing to train"):
        AdapterTask(components, DataConfig(), adapter={**SMALL, "enabled": False}, train=[])
