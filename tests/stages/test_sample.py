"""Sampling: diffusers' DDIM without extras; what fusion, masks, blending and the adapter add to it."""

import math
from collections import defaultdict

import pytest
import torch
from diffusers import DDIMScheduler
from sampling import NEW, OLD, SIDE, STEPS, VIEW, Calls, F, draw, inverted, psnr, run, shift_of, source

from ctxedit.config import AttentionConfig, FusionConfig
from ctxedit.errors import NumericsError
from ctxedit.models.backbones import load_backbone
from ctxedit.stages.edit import latent_mask
from ctxedit.stages.sample import Sampling, Source, sample, word_mask


class TestPlain:
    @pytest.mark.parametrize("head", ["stable_diffusion", "stable_diffusion_2"])
    @pytest.mark.parametrize("guidance", [1.0, 5.0])
    @pytest.mark.parametrize("zero_shift", [False, True])
    def test_is_diffusers_ddim(self, head, guidance, zero_shift, request):
        backbone = load_backbone(str(request.getfixturevalue(head)), torch.device("cpu"), torch.float64)
        scheduler = DDIMScheduler.from_config({**backbone._scheduler, "set_alpha_to_one": True})
        scheduler.set_timesteps(5)
        want, context = draw(F, 4, *SIDE), backbone.embed(["blurry", NEW])
        with backbone.attention(AttentionConfig()):
            for t in scheduler.timesteps:
                with torch.no_grad():
                    off, on = (backbone.raw(want, int(t), c[None], VIEW) for c in context)
                want = scheduler.step(off + guidance * (on - off), t, want).prev_sample
            shift = shift_of(backbone, zero=True) if zero_shift else None
            got = sample(
                backbone, draw(F, 4, *SIDE), context, backbone.levels(5), VIEW, Sampling(guidance), shift
            )
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))

    @pytest.mark.parametrize("one_by_one", [False, True])
    @pytest.mark.parametrize("guidance", [1.0, 5.0])
    def test_several_conditions_guide_by_their_weights(self, net, guidance, one_by_one):
        weights, context = (1.0, 0.5, -0.3), net.embed(["", OLD, NEW, "snow"])
        scheduler = DDIMScheduler.from_config({**net._scheduler, "set_alpha_to_one": True})
        scheduler.set_timesteps(3)
        want = draw(F, 4, *SIDE)
        for t in scheduler.timesteps:
            with torch.no_grad():
                off, *on = (net.raw(want, int(t), c[None], VIEW) for c in context)
            by_all = sum(w * (one - off) for w, one in zip(weights, on, strict=True))
            want = scheduler.step(off + guidance * by_all, t, want).prev_sample
        how = Sampling(guidance, weights=weights, one_by_one=one_by_one)
        got = sample(net, draw(F, 4, *SIDE), context, net.levels(3), VIEW, how)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))

    def test_of_several_conditions_fusion_acts_on_the_last(self, net):
        """Weighed with 0, the others change nothing of a fused edit."""
        trajectory = inverted(net, 4)
        base = source(net, trajectory)
        plain = Sampling(3.0, source=base)
        several = Sampling(3.0, source=base, weights=(0.0, 1.0))
        one, all_ = (
            sample(net, trajectory[-1], net.embed(texts), net.levels(4), VIEW, how)
            for texts, how in ((["", NEW], plain), (["", "snow", NEW], several))
        )
        torch.testing.assert_close(all_, one, rtol=1e-9, atol=1e-9)

    def test_eta_is_diffusers_and_draws_from_the_generator(self, net):
        scheduler = DDIMScheduler.from_config({**net._scheduler, "set_alpha_to_one": True})
        scheduler.set_timesteps(STEPS)
        want, generator = draw(F, 4, *SIDE), torch.Generator().manual_seed(3)
        for t in scheduler.timesteps:
            with torch.no_grad():
                out = net.raw(want, int(t), net.embed([NEW]), VIEW)
            z = torch.randn(want.shape, generator=generator).to(want)
            want = scheduler.step(out, t, want, eta=0.7, variance_noise=z).prev_sample
        got = [
            run(net, draw(F, 4, *SIDE), how=Sampling(1.0, 0.7, generator=torch.Generator().manual_seed(s)))
            for s in (3, 3, 4)
        ]
        torch.testing.assert_close(got[0], want, rtol=1e-5, atol=1e-4)
        assert torch.equal(got[0], got[1])
        assert not torch.equal(got[0], got[2])

    def test_start_takes_only_the_levels_below(self, net):
        told = []
        with Calls(net) as branches:
            run(net, draw(F, 4, *SIDE), start=2, progress=lambda *row: told.append(row))
        assert told == [(1, 2), (2, 2)]
        assert branches == [1, 1]

    def test_nan_is_said(self, net):
        x = draw(F, 4, *SIDE)
        x[0] = math.nan
        with pytest.raises(NumericsError, match=f"timestep {net.levels(STEPS).timestep(STEPS)}"):
            run(net, x)

    def test_the_adapter_changes_the_edit(self, net, trajectory):
        plain = run(net, trajectory[-1])
        assert torch.equal(run(net, trajectory[-1], shift=shift_of(net, zero=True)), plain)
        moved = run(net, trajectory[-1], shift=shift_of(net))
        assert (moved - plain).abs().mean() > 1e-3
        # It looks at the prompt, too, when the network does not.
        other = run(net, trajectory[-1], shift=shift_of(net, OLD))
        assert (other - moved).abs().max() > 1e-5


class TestWhichStepsAreFused:
    @pytest.mark.parametrize("steps", [1, 5, 6, 20])
    def test_half_is_exactly_the_first_half(self, net, trajectory, steps):
        how = Sampling(1.0, source=source(net, trajectory))
        got = [how.fused(step, steps) for step in range(steps)]
        assert got == [(step < steps // 2,) * 2 for step in range(steps)]

    @pytest.mark.parametrize("share, steps, count", [(0.0, 9, 0), (1.0, 9, 9), (0.29, 100, 29), (0.7, 10, 7)])
    def test_other_shares(self, net, trajectory, share, steps, count):
        how = Sampling(1.0, fusion=FusionConfig(self_replace_steps=share), source=source(net, trajectory))
        assert [how.fused(step, steps)[0] for step in range(steps)] == [i < count for i in range(steps)]

    def test_half_of_the_steps_is_the_noisy_half_of_time(self, net):
        """t ∈ [0.5 T, T] of the paper."""
        for steps in (10, 20, 50):
            levels = net.levels(steps)
            fused = [levels.timestep(steps - step) for step in range(steps // 2)]
            assert min(fused) >= 500
            assert levels.timestep(steps - steps // 2) < 500

    def test_without_a_source_nothing_is(self):
        assert Sampling(1.0).fused(0, 10) == (False, False)

    @pytest.mark.parametrize(
        "guidance, fusion, branches",
        [
            (1.0, {}, [2, 2, 2, 1, 1, 1]),
            (5.0, {}, [3, 3, 3, 2, 2, 2]),
            (5.0, {"self_replace_steps": 0.0, "cross_replace_steps": 0.0}, [2] * 6),
            (5.0, {"self_replace_steps": 0.0}, [3, 3, 3, 2, 2, 2]),
            (5.0, {"self_replace_steps": 0.34, "cross_replace_steps": 0.67}, [3, 3, 3, 3, 2, 2]),
            # FateZero's mask wants the source's branch once by itself, prompt-to-prompt's wants it always.
            (5.0, {"blend": "self", "mask_resolution": 1.0}, [1, 3, 1, 3, 1, 3, 2, 2, 2]),
            (5.0, {"blend": "latent", "mask_resolution": 1.0}, [3] * 6),
        ],
    )
    def test_branches(self, net, trajectory, guidance, fusion, branches):
        how = Sampling(guidance, fusion=FusionConfig(**fusion), source=source(net, trajectory))
        with Calls(net) as got:
            run(net, trajectory[-1], how=how)
        assert got == branches

    def test_the_source_branch_is_what_the_inversion_showed_the_network(self, net):
        shown, branches = defaultdict(list), defaultdict(list)

        def watch(store, take):
            return net.unet.register_forward_pre_hook(
                lambda _, args: store[int(args[1])].append(args[0][:take])
            )

        hook = watch(shown, F)
        trajectory = inverted(net, STEPS)
        hook.remove()
        hook = watch(branches, F)
        run(net, trajectory[-1], how=Sampling(1.0, source=source(net, trajectory, exact=False)))
        hook.remove()
        for level in (4, 5, 6):
            t = net.levels(STEPS).timestep(level)
            assert torch.equal(branches[t][0], shown[t][0])

    def test_after_an_exact_inversion_it_is_the_level_itself(self, net, trajectory):
        assert torch.equal(source(net, trajectory).latent(4), trajectory[4])
        assert torch.equal(source(net, trajectory, exact=False).latent(4), trajectory[3])


class TestFusion:
    def test_it_changes_the_edit(self, net, trajectory):
        plain = run(net, trajectory[-1])
        outs = [
            run(
                net,
                trajectory[-1],
                how=Sampling(1.0, fusion=FusionConfig(**f), source=source(net, trajectory)),
            )
            for f in ({}, {"self_replace_steps": 0.0}, {"cross_replace_steps": 0.0}, {"max_resolution": 0.5})
        ]
        for i, out in enumerate(outs):
            assert (out - plain).abs().max() > 1e-4
            assert all((out - other).abs().max() > 1e-5 for other in outs[:i])

    @pytest.mark.parametrize("blend", ["none", "self", "latent"])
    def test_the_source_prompt_gives_the_source_back(self, net, trajectory, blend):
        """Reconstruction, in latents: at guidance 1 the fused maps are the target's own."""
        how = Sampling(
            1.0, fusion=FusionConfig(blend=blend, mask_resolution=1.0), source=source(net, trajectory, OLD)
        )
        figure = psnr(run(net, trajectory[-1], OLD, how), trajectory[0])
        print(f"source prompt, exact inversion, blend {blend}: {figure:.0f} dB in latents")
        assert figure > 60

    def test_the_source_prompt_after_plain_ddim_inversion(self, net):
        trajectory = inverted(net, 20)
        how = Sampling(1.0, source=source(net, trajectory, OLD, exact=False))
        fused = psnr(run(net, trajectory[-1], OLD, how, steps=20), trajectory[0])
        plain = psnr(run(net, trajectory[-1], OLD, steps=20), trajectory[0])
        print(f"source prompt, DDIM inversion of 20 steps: fused {fused:.1f} dB, not fused {plain:.1f} dB")
        assert fused > 30

    def test_another_prompt_does_not(self, net, trajectory):
        how = Sampling(5.0, source=source(net, trajectory))
        assert psnr(run(net, trajectory[-1], how=how), trajectory[0]) < 50

    @pytest.mark.parametrize("where", ["fused", "everywhere"])
    def test_weights_of_words_act_in_the_steps_that_are_said(self, net, trajectory, where):
        base = source(net, trajectory, NEW)
        heavy = base.alignment.weight.clone()
        heavy[list(net.words(NEW)[1].tokens)] = 8.0
        weighted = Source(
            base.trajectory,
            base.context,
            type(base.alignment)(base.alignment.mapper, base.alignment.share, heavy),
            base.changed,
            True,
        )
        for share in (0.0, 1.0):
            fusion = FusionConfig(
                self_replace_steps=share, cross_replace_steps=share, word_weights_where=where
            )
            outs = [
                run(net, trajectory[-1], how=Sampling(3.0, fusion=fusion, source=s)) for s in (base, weighted)
            ]
            acts = share > 0 or where == "everywhere"
            assert ((outs[0] - outs[1]).abs().max() > 1e-4) == acts


class TestMasks:
    mask = (draw(F, 1, *SIDE, seed=5) > 0).double()

    @pytest.mark.parametrize("blend", ["none", "self", "latent"])
    def test_outside_a_mask_the_latents_are_the_sources_exactly(self, net, trajectory, blend):
        fusion = FusionConfig(blend=blend, mask_resolution=1.0)
        how = Sampling(5.0, fusion=fusion, source=source(net, trajectory), mask=self.mask)
        out = run(net, trajectory[-1], how=how)
        outside = (self.mask == 0).expand_as(out)
        assert torch.equal(out[outside], trajectory[0][outside])
        assert (out - trajectory[0])[~outside].abs().mean() > 1e-2

    def test_all_allowed_is_no_mask(self, net, trajectory):
        outs = [
            run(net, trajectory[-1], how=Sampling(5.0, source=source(net, trajectory), mask=mask))
            for mask in (None, torch.ones(F, 1, *SIDE))
        ]
        assert torch.equal(*outs)

    def test_blend_latent_keeps_the_source_outside_the_words(self, net, trajectory):
        fusion = FusionConfig(blend="latent", mask_threshold=0.9, mask_resolution=1.0)
        out = run(net, trajectory[-1], how=Sampling(5.0, fusion=fusion, source=source(net, trajectory)))
        kept = (out == trajectory[0]).all(1)
        assert 0.05 < kept.double().mean() < 0.95

    def test_blend_self_matters(self, net, trajectory):
        outs = [
            run(
                net,
                trajectory[-1],
                how=Sampling(
                    5.0,
                    fusion=FusionConfig(blend=b, mask_threshold=t, mask_resolution=1.0),
                    source=source(net, trajectory),
                ),
            )
            for b, t in (("none", 0.9), ("self", 0.9), ("self", 0.0))
        ]
        assert (outs[0] - outs[1]).abs().max() > 1e-5
        assert (outs[1] - outs[2]).abs().max() > 1e-5

    def test_a_mask_everywhere_is_no_self_fusion(self, net, trajectory):
        """At threshold 0 every place belongs to the changed words: self-attention stays the target's own."""
        src = source(net, trajectory)
        everywhere = Sampling(
            5.0, fusion=FusionConfig(blend="self", mask_threshold=0.0, mask_resolution=1.0), source=src
        )
        without = Sampling(5.0, fusion=FusionConfig(self_replace_steps=0.0), source=src)
        a, b = (run(net, trajectory[-1], how=how) for how in (everywhere, without))
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)

    def test_no_changed_words_nothing_to_blend_by(self, net, trajectory):
        assert (
            Sampling(
                1.0,
                fusion=FusionConfig(blend="self", mask_resolution=1.0),
                source=source(net, trajectory, OLD),
            ).blends
            == "none"
        )

    def test_word_mask(self):
        heat = torch.zeros(2, 2, 5, 5)
        heat[0, 0, 2, 2] = 4.0
        heat[1, 1, 0, 0], heat[1, 0, 4, 4] = 1.0, 0.2
        mask = word_mask(heat, 0.3)
        assert mask.shape == (2, 1, 5, 5)
        assert mask[0, 0].int().tolist() == [[0] * 5] + [[0, 1, 1, 1, 0]] * 3 + [[0] * 5]
        assert mask[1, 0].int().tolist() == [[1, 1, 0, 0, 0]] * 2 + [[0] * 5] * 3

    def test_a_latent_pixel_may_change_where_any_of_its_pixels_may(self):
        mask = torch.zeros(1, 8, 16)
        mask[0, 5, 9] = 1
        assert latent_mask(mask, (2, 4))[0, 0].tolist() == [[0, 0, 0, 0], [0, 0, 1, 0]]


def peak(call):
    """The most memory in use at once during the call, in bytes, by PyTorch's own account."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        call()
    events = [e for e in trace.profiler.kineto_results.events() if e.name() == "[memory]"]
    assert len(events) > 100
    held = top = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        top = max(top, held)
    return top


def test_peak_memory_of_a_fused_edit_does_not_grow_with_the_steps(net):
    fusion = FusionConfig(self_replace_steps=1.0, cross_replace_steps=1.0, blend="self", mask_resolution=1.0)

    def fused(steps, keep=None):
        trajectory = inverted(net, steps)
        how = Sampling(5.0, fusion=fusion, source=source(net, trajectory, exact=False))
        hooks = []
        if keep is not None:  # what FateZero does: a store of attention
            for name, module in net.unet.named_modules():
                if name.endswith(("attn1", "attn2")):
                    hooks.append(module.register_forward_hook(lambda _, __, out: keep.append(out.clone())))
        used = peak(lambda: run(net, trajectory[-1], how=how, steps=steps))
        for hook in hooks:
            hook.remove()
        return used

    fused(3)  # first calls allocate what stays
    few, many = fused(3), fused(9)
    stored = [fused(steps, []) for steps in (3, 9)]
    print(f"peak: 3 steps {few / 2**20:.2f} MiB, 9 steps {many / 2**20:.2f} MiB; stored {stored}")
    assert many <= few * 1.02
    assert stored[1] > 1.2 * stored[0]  # the account does see a store
