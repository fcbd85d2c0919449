"""An edit from a source and a target prompt: how it is sampled, what it starts from, what it refuses."""

import pytest
import torch
from sampling import NEW, OLD, STEPS, VIEW, Calls, F, run, source

from ctxedit.config import Config, merge
from ctxedit.errors import ConfigError, InputError
from ctxedit.stages.edit import InvertedClip, edit
from ctxedit.stages.sample import Sampling


class TestEdit:
    def inverted(self, net, trajectory):
        return InvertedClip(net, OLD, trajectory, net.levels(STEPS), VIEW)

    def config(self, **tables):
        steps = {
            "invert": {"steps": STEPS, "fixed_point_iterations": 1},
            "edit": {"steps": STEPS, "guidance": 5.0},
        }
        return merge(merge(Config(), steps), tables)

    def test_it_is_the_sampling_with_the_aligned_source(self, net, trajectory):
        got = edit(self.inverted(net, trajectory), NEW, self.config())
        want = run(net, trajectory[-1], how=Sampling(5.0, source=source(net, trajectory)))
        assert torch.equal(got, want)

    def test_the_negative_prompt_is_the_unconditional_branch(self, net, trajectory):
        inverted = self.inverted(net, trajectory)
        negative = self.config(edit={"negative_prompt": "a panda"})
        assert not torch.equal(edit(inverted, NEW, negative), edit(inverted, NEW, self.config()))

    def test_from_noise_the_strength_says_how_far(self, net, trajectory):
        inverted, distances = self.inverted(net, trajectory), []
        for strength in (0.17, 0.5, 1.0):
            config = self.config(edit={"start": "noise", "strength": strength})
            with Calls(net) as branches:
                out = edit(inverted, NEW, config)
            assert len(branches) == round(STEPS * strength)
            distances.append(float((out - trajectory[0]).norm()))
        assert distances == sorted(distances)

    def test_from_noise_the_seed_draws(self, net, trajectory):
        inverted = self.inverted(net, trajectory)
        outs = [edit(inverted, NEW, self.config(seed=s, edit={"start": "noise"})) for s in (1, 1, 2)]
        assert torch.equal(outs[0], outs[1])
        assert not torch.equal(outs[0], outs[2])

    def test_replace_with_other_word_counts_is_refused(self, net, trajectory):
        config = self.config(fusion={"cross": "replace"})
        with pytest.raises(ConfigError, match="as many words"):
            edit(self.inverted(net, trajectory), "a panda", config)

    @pytest.mark.parametrize("start", ["inversion", "noise"])
    def test_prompts_that_are_too_long_are_refused(self, net, trajectory, start):
        for target, negative in (("cat " * 99, ""), (NEW, "cat " * 99)):
            config = self.config(edit={"negative_prompt": negative, "start": start})
            with pytest.raises(InputError, match="tokens"):
                edit(self.inverted(net, trajectory), target, config)

    def test_inverted_with_the_empty_prompt_the_source_branch_has_it(self, net, trajectory):
        seen = []
        hook = net.unet.register_forward_pre_hook(
            lambda _, args: seen.append(args[2][0]) if len(args[0]) == 3 * F else None
        )
        edit(self.inverted(net, trajectory), NEW, self.config(invert={"prompt": "empty"}))
        hook.remove()
        assert torch.equal(seen[0], net.embed([""])[0])
