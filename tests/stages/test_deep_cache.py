"""Deep features reused between steps: what is skipped, what it costs, and that nothing else changes."""

from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from sampling import STEPS, VIEW, draw, run, source

from ctxedit.bench.meter import CostMeter
from ctxedit.config import AttentionConfig, Config, FusionConfig, merge, validated
from ctxedit.editing.needs import check_cache
from ctxedit.editing.reporter import Reporter
from ctxedit.errors import ConfigError
from ctxedit.models.backbones import Backbone
from ctxedit.models.control import Control
from ctxedit.models.deep_cache import REUSED_SHARE, DeepBlocks
from ctxedit.stages import passes
from ctxedit.stages.sample import Sampling

BOTH = FusionConfig(self_replace_steps=0.5, cross_replace_steps=0.5)


@pytest.fixture()
def net(backbone):
    with backbone.attention(AttentionConfig()):
        yield backbone


@contextmanager
def counted(net):
    """Branches of each pass of the whole network, and of each on kept features."""
    whole, all_passes = [], []
    frames = VIEW.frames
    handles = [
        net.unet.conv_in.register_forward_pre_hook(lambda _, args: all_passes.append(len(args[0]) // frames)),
        net.unet.mid_block.resnets[0].register_forward_pre_hook(
            lambda _, args: whole.append(len(args[0]) // frames)
        ),
    ]
    yield whole, all_passes
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("beside", [False, True])
def test_on_its_own_features_a_pass_is_the_whole_pass(net, controlnet, beside):
    if beside:
        net.control = Control.load(controlnet, 1.0, net.device, net.dtype)
    with net.attention(AttentionConfig()):
        pixels = torch.rand(2, 3, 8 * net.factor, 8 * net.factor, dtype=torch.float64)
        view = replace(VIEW, control=pixels if beside else None)
        x, other, condition = draw(2, 4, 8, 8), draw(2, 4, 8, 8, seed=1), net.condition(["a panda"])
        blocks = net.deep_blocks()
        with blocks.kept() as features:
            whole = net.raw(x, 500, condition, view)
        with counted(net) as (ran, _), blocks.replaced_by(features[0]):
            assert torch.equal(net.raw(x, 500, condition, view), whole)
            moved = net.raw(other, 480, condition, view)
        assert not ran and not torch.equal(moved, whole)
        # Afterwards the network is what it was.
        assert torch.equal(net.raw(x, 500, condition, view), whole) and len(features) == 1


@pytest.mark.parametrize("more", [{}, {"guidance_interval": (0.0, 0.7)}, {"guidance": 1.0}])
def test_as_many_passes_as_are_foretold(net, more):
    """By the plan, and counted by the bench's meter."""
    trajectory = draw(STEPS + 1, 2, 4, 8, 8)
    for interval in (1, 2, STEPS):
        table = {"guidance": 2.0, **more, "steps": STEPS, "cache_interval": interval}
        config = merge(Config(), {"edit": table, "invert": {"steps": STEPS}, "fusion": {"blend": "none"}})
        how = Sampling.of(config, torch.Generator(), fusion=BOTH, source=source(net, trajectory))
        meter, costs = CostMeter(Reporter()), []
        with (
            counted(net) as (whole, everything),
            meter.watch(net.unet, VIEW.frames, net.device),
            meter.noting("edit", costs.append),
            meter.task("edit", STEPS),
        ):
            run(net, trajectory[-1], how=how)
        reused = sum(everything) - sum(whole)
        assert bool(reused) == (interval > 1)
        spared = int((1 - REUSED_SHARE) * reused)
        assert passes.network_passes(config) == sum(everything) - spared
        assert costs[0].evaluations == sum(everything) - (1 - REUSED_SHARE) * reused


def test_fused_steps_are_whole_and_an_interval_of_one_changes_nothing(net):
    trajectory = draw(STEPS + 1, 2, 4, 8, 8)

    def edited(fusion, interval, **more):
        how = Sampling(
            2.0, fusion=fusion, source=source(net, trajectory), cache_interval=interval, **more
        )  # fmt: skip
        return run(net, trajectory[-1], how=how)

    always = FusionConfig(self_replace_steps=1.0, cross_replace_steps=0.5)
    assert torch.equal(edited(always, 5), edited(always, 1))
    whole, kept = edited(BOTH, 1), edited(BOTH, 3)
    assert not torch.equal(whole, kept)
    # Branches run singly share nothing with those that run together, and give the same.
    assert torch.allclose(edited(BOTH, 3, one_by_one=True), kept, atol=1e-9)


def test_what_cannot_be_reused_is_refused(net):
    with pytest.raises(ConfigError, match=r"edit\.cache_interval = 0"):
        validated(merge(Config(), {"edit": {"cache_interval": 0}}))
    with pytest.raises(ConfigError, match="no deep features"):
        Backbone.deep_blocks(net)
    asked = merge(Config(), {"edit": {"cache_interval": 2}})
    with pytest.raises(ConfigError, match=r"edit\.cache_interval = 2"):
        check_cache(asked, SimpleNamespace(channels=(8, 16)), Backbone)
    check_cache(asked, SimpleNamespace(channels=(8, 16)), type(net))
    net.unet.up_blocks = net.unet.up_blocks[:1]
    with pytest.raises(ConfigError, match="one level"):
        DeepBlocks(net.unet)
