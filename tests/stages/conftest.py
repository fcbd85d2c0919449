"""What the tests of sampling and editing share: the network, and a clip inverted on it."""

import pytest
import torch
from sampling import STEPS, inverted

from ctxedit.config import AttentionConfig
from ctxedit.models.backbones import load_backbone


@pytest.fixture(scope="module")
def net(stable_diffusion):
    backbone = load_backbone(str(stable_diffusion), torch.device("cpu"), torch.float64)
    # Nearby levels predict nearly alike, as in a trained network.
    backbone.unet.conv_out.weight.data.mul_(0.1)
    with backbone.attention(AttentionConfig()):
        yield backbone


@pytest.fixture(scope="module")
def trajectory(net):
    """The source's: inverted exactly, six steps."""
    return inverted(net, STEPS, fixed_point_iterations=8)
