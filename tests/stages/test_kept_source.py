"""The source's branch run once for several edits: equal results, the passes that are foretold, bytes."""

from dataclasses import replace

import pytest
import torch
from sampling import NEW, OLD, SIDE, STEPS, VIEW, Calls, draw, run, source

from ctxedit.config import AttentionConfig, Config, merge
from ctxedit.editing.needs import check_kept_source
from ctxedit.errors import ConfigError
from ctxedit.models.backbones import load_backbone
from ctxedit.stages import passes
from ctxedit.stages.invert import invert
from ctxedit.stages.kept_source import KeptSource, keeps_source, kept_bytes
from ctxedit.stages.sample import Sampling

HALF = {"self_replace_steps": 0.5, "cross_replace_steps": 0.5, "mask_resolution": 1.0}
LONGER = "a panda slowly walking on the beach"  # as many words as the source has not: refinement
SETTINGS = [
    {},
    {"blend": "self"},
    {"blend": "latent"},
    {"blend": "self", "self_replace_steps": 0.8, "max_resolution": 0.5, "mask_resolution": 0.5},
    {"blend": "latent", "self_replace_steps": 0.0, "cross_replace_steps": 0.34},
]


def config_of(fusion, guidance=2.0, **more):
    table = {"edit": {"steps": STEPS, "guidance": guidance}, "invert": {"steps": STEPS}, "fusion": fusion}
    return merge(Config(), {**table, **more})


def edited(net, trajectory, config, kept=None, target=NEW, exact=True, one_by_one=False):
    """Latents of an edit, and its passes."""
    if kept is not None:
        kept.bind(trajectory)
    begin = replace(source(net, trajectory, target, exact), kept=kept)
    how = Sampling(config.edit.guidance, fusion=config.fusion, source=begin, one_by_one=one_by_one)
    with Calls(net) as branches:
        return run(net, trajectory[-1], target, how), sum(branches)


@pytest.mark.parametrize("fusion", SETTINGS)
@pytest.mark.parametrize("guidance", [2.0, 1.0])
def test_edits_with_the_source_kept_are_those_without(net, trajectory, fusion, guidance):
    config = config_of({**HALF, **fusion}, guidance)
    kept = KeptSource(config)
    for number, target in enumerate((NEW, LONGER)):
        plain, before = edited(net, trajectory, config, target=target)
        found, now = edited(net, trajectory, config, kept, target)
        assert torch.allclose(found, plain, rtol=0, atol=1e-10)
        assert before == passes.network_passes(config)
        assert now == passes.network_passes(config, kept="before" if number else "now")
        assert kept.whole and now <= before
    assert now == STEPS * (1 if guidance == 1 else 2) < before
    single, _ = edited(net, trajectory, config, kept, LONGER, one_by_one=True)
    assert torch.allclose(single, found, rtol=0, atol=1e-10)


@pytest.mark.parametrize("blend", ["none", "self", "latent"])
def test_an_inversion_keeps_the_source_for_all_edits(net, blend):
    config = config_of({**HALF, "blend": blend})
    kept = KeptSource(config)
    trajectory = invert(net, draw(2, 4, *SIDE), net.embed([OLD]), net.levels(STEPS), VIEW, kept=kept)
    assert kept.whole
    found, now = edited(net, trajectory, config, kept, exact=False)
    plain, _ = edited(net, trajectory, config, exact=False)
    assert torch.allclose(found, plain, rtol=0, atol=1e-10)
    assert now == passes.network_passes(config, kept="before") == 2 * STEPS


def test_what_is_kept_is_of_one_inversion(net, trajectory):
    config = config_of(HALF)
    kept = KeptSource(config)
    edited(net, trajectory, config, kept)
    kept.bind(trajectory.clone())
    assert kept.whole  # the same inversion, read again
    other = trajectory + 0.1
    found, _ = edited(net, other, config, kept)
    assert torch.allclose(found, edited(net, other, config)[0], rtol=0, atol=1e-10)
    kept.clear()
    assert kept.bytes == 0 and not kept.whole


@pytest.mark.parametrize("fusion", SETTINGS)
def test_bytes_are_foretold(net, trajectory, fusion):
    config = config_of({**HALF, **fusion})
    kept = KeptSource(config)
    edited(net, trajectory, config, kept)
    sites = net.attention_sites(net.unet)
    assert kept.bytes == kept_bytes(config, sites, SIDE, 2, net.context_length, 8)


def test_in_bfloat16_not_a_bit_changes(stable_diffusion):
    """On a CPU a branch does not depend on how many are in its batch: ``auto`` rests on it."""
    net = load_backbone(str(stable_diffusion), torch.device("cpu"), torch.bfloat16)
    config = config_of({**HALF, "blend": "self"})
    kept = KeptSource(config)
    with net.attention(AttentionConfig()):
        latents = draw(2, 4, *SIDE).float()
        trajectory = invert(net, latents, net.embed([OLD]), net.levels(STEPS), VIEW)
        for target in (NEW, LONGER):
            plain, _ = edited(net, trajectory, config, target=target, exact=False)
            assert torch.equal(edited(net, trajectory, config, kept, target, exact=False)[0], plain)


def test_where_it_is_kept():
    config, size = config_of(HALF), 1 << 20

    def keeps(config=config, edits=2, size=size, windows=1, device="cpu", dtype=torch.bfloat16):
        return keeps_source(config, edits, size, windows, device, dtype)

    assert keeps() and not keeps(edits=1) and not keeps(windows=2) and not keeps(size=1 << 30)
    assert not keeps(device="cuda") and not keeps(dtype=torch.float32) and not keeps(size=0)
    assert keeps(config_of({**HALF, "blend": "self"}), edits=1)
    assert not keeps(replace(config, low_memory=True)) and not keeps(replace(config, keep_source="off"))
    asked = replace(config, keep_source="on")
    assert keeps(asked, edits=1, size=1 << 30, device="cuda") and not keeps(asked, windows=2)


@pytest.mark.parametrize(
    ("config", "windows", "said"),
    [
        (config_of(HALF), 3, "3 windows"),
        (config_of({"self_replace_steps": 0.0, "cross_replace_steps": 0.0}), 1, "no steps with"),
        (config_of(HALF, edit={"start": "noise", "steps": STEPS}), 1, "no steps with"),
    ],
)
def test_it_is_refused_where_nothing_could_be_kept(config, windows, said):
    check_kept_source(config, windows)
    with pytest.raises(ConfigError, match=said):
        check_kept_source(replace(config, keep_source="on"), windows)
    check_kept_source(replace(config_of(HALF), keep_source="on"), 1)
