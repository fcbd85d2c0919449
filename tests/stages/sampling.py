"""Sampling on the tiny Stable Diffusion folder, for the tests of sampling and editing."""

import math

import torch

from ctxedit.config import AdapterConfig, AttentionConfig
from ctxedit.models.adapter import ContextAdapter
from ctxedit.models.alignment import align, changed
from ctxedit.models.attention import FrameView
from ctxedit.models.shift import ContextShift
from ctxedit.patterns import attended_frames
from ctxedit.stages.invert import invert
from ctxedit.stages.sample import Sampling, Source, sample

F, SIDE, STEPS = 2, (8, 8), 6
VIEW = FrameView(attended_frames(AttentionConfig(), F), SIDE)
OLD, NEW = "a tiger walking on the beach", "a panda walking on the beach"


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inverted(net, steps, fixed_point_iterations=0, shift=None):
    x = draw(F, 4, *SIDE)
    return invert(net, x, net.embed([OLD]), net.levels(steps), VIEW, shift, fixed_point_iterations)


def source(net, trajectory, target=NEW, exact=True, how="auto"):
    old, new = net.words(OLD), net.words(target)
    alignment = align(old, new, net.context_length, how)
    return Source(trajectory, net.embed([OLD]), alignment, changed(old, new), exact)


def run(net, x, target=NEW, how=None, shift=None, steps=STEPS, **more):
    context = net.embed(["", target])
    return sample(net, x, context, net.levels(steps), VIEW, how or Sampling(1.0), shift, **more)


def shift_of(net, prompt=NEW, zero=False):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        adapter = ContextAdapter(AdapterConfig(width=32, blocks=1, heads=4, bound=0.5), 4, net.context_width)
        if not zero:
            torch.nn.init.normal_(adapter.out.weight)
    return ContextShift(adapter.requires_grad_(False), net.embed([prompt]), F)


def psnr(a, b):
    """In latents, against the range of b."""
    return 10 * math.log10(float((b.max() - b.min()) ** 2 / ((a - b) ** 2).mean()))


class Calls:
    """Counts the branches of every call of the network."""

    def __init__(self, net):
        self.branches = []
        self._hook = net.unet.register_forward_pre_hook(
            lambda _, args: self.branches.append(len(args[0]) // F)
        )

    def __enter__(self):
        return self.branches

    def __exit__(self, *_):
        self._hook.remove()
