"""Fusion against FateZero's way: every map of the inversion kept, then put in place of the edit's own.

The equality is quick. The comparison of time and memory over steps, frames and size takes minutes:
``pytest -m slow -s tests/stages/test_store.py`` prints its table.
"""

import json
import subprocess
import sys
import time

import pytest
import torch

from ctxedit.config import AttentionConfig, FusionConfig
from ctxedit.diffusion.ddim import ddim
from ctxedit.diffusion.guidance import guide
from ctxedit.models.alignment import align, changed
from ctxedit.models.attention import FrameView
from ctxedit.models.backbones import load_backbone
from ctxedit.patterns import attended_frames
from ctxedit.stages.invert import invert
from ctxedit.stages.sample import Sampling, Source, fused_steps, sample

OLD, NEW = "a tiger walking on the beach", "a panda walking on the beach"
HALF = FusionConfig(self_replace_steps=0.5, cross_replace_steps=0.5)
GUIDANCE = 5.0
ATTENTION = AttentionConfig(frames="sparse-causal")


class Store:
    """Keeps explicit maps of every layer while ``recording``, uses them in the last lane afterwards."""

    def __init__(self, backbone, view, alignment):
        self.view, self.alignment = view, alignment
        self.maps, self.level, self.recording = {}, 0, True
        names = list(backbone.unet.attn_processors)
        backbone.unet.set_attn_processor({n: self.processor(n, "attn2" in n) for n in names})

    def processor(self, name, cross):
        def call(attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None, view=None):
            context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
            q, k, v = (
                f(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
                for f, x in ((attn.to_q, hidden_states), (attn.to_k, context), (attn.to_v, context))
            )
            frames = self.view.frames
            k, v = (x if cross else self.across(x) for x in (k, v))
            maps = (q @ k.transpose(-1, -2) * attn.scale).softmax(-1)
            out = maps @ v
            if self.recording:
                self.maps[self.level, name] = maps
            elif (self.level, name) in self.maps:
                out[-frames:] = self.replaced(self.maps[self.level, name], maps[-frames:], v[-frames:], cross)
            return attn.to_out[0](out.transpose(1, 2).flatten(2))

        return call

    def across(self, x):
        """Keys or values of the frames that each frame sees, side by side; as long for each."""
        lanes = x.unflatten(0, (-1, self.view.frames))
        longest = max(len(s) for s in self.view.seen)
        # A frame that sees one other sees it twice: each key twice is each key once to a softmax.
        index = torch.tensor([list(s) + [s[-1]] * (longest - len(s)) for s in self.view.seen])
        return lanes[:, index].transpose(2, 3).flatten(3, 4).flatten(0, 1)

    def replaced(self, stored, own, v, cross):
        if not cross:
            return stored @ v
        how = self.alignment
        value = how.weight.to(v)[:, None] * v
        share = how.share.to(v)[:, None]
        return stored @ (how.mapper.to(v) @ (share * value)) + own @ ((1 - share) * value)


@torch.no_grad()
def with_store(backbone, latents, steps, view):
    """Invert, storing the maps of the fused half; sample with them."""
    levels = backbone.levels(steps)
    alignment = align(backbone.words(OLD), backbone.words(NEW), backbone.context_length)
    store = Store(backbone, view, alignment)
    first = steps - fused_steps(steps, 0.5)

    def told(done, _):
        store.level, store.recording = done + 1, done + 1 > first

    told(0, 0)
    trajectory = invert(backbone, latents, backbone.embed([OLD]), levels, view, progress=told)
    store.recording = False
    x, context = trajectory[-1], backbone.embed(["", NEW])
    lanes = FrameView(view.seen, view.side, 2)
    for high in range(steps, 0, -1):
        store.level = high
        a, s = levels.at(high)
        parts = backbone.predict_x0(x.repeat(2, 1, 1, 1), levels.timestep(high), context, a, s, lanes)
        x = ddim(x, guide(*parts.chunk(2), GUIDANCE), a, s, *levels.at(high - 1))
    return x


def without_store(backbone, latents, steps, view):
    """The same, as ctxedit does it."""
    levels = backbone.levels(steps)
    old, new = backbone.words(OLD), backbone.words(NEW)
    with backbone.attention(ATTENTION):
        trajectory = invert(backbone, latents, backbone.embed([OLD]), levels, view)
        alignment = align(old, new, backbone.context_length)
        source = Source(trajectory, backbone.embed([OLD]), alignment, changed(old, new))
        how = Sampling(GUIDANCE, fusion=HALF, source=source)
        return sample(backbone, trajectory[-1], backbone.embed(["", NEW]), levels, view, how)


def draw(frames, side, dtype):
    view = FrameView(attended_frames(ATTENTION, frames), (side, side))
    generator = torch.Generator().manual_seed(0)
    return torch.randn(frames, 4, side, side, generator=generator, dtype=dtype), view


def test_an_edit_equals_the_stored_maps_edit(backbone):
    """Sparse-causal attention over four frames: two of them see one frame, two see two."""
    latents, view = draw(4, 8, torch.float64)
    ours = without_store(backbone, latents, 6, view)
    stored = with_store(backbone, latents, 6, view)
    torch.testing.assert_close(ours, stored, rtol=0, atol=1e-9)


def measure(how, steps, frames, side):
    """In a process of its own, so that its peak is its own: seconds, and MiB above what loading took."""
    call = f"import test_store; test_store.child({how!r}, {steps}, {frames}, {side})"
    here = __file__.rpartition("/")[0]
    done = subprocess.run([sys.executable, "-c", call], cwd=here, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def child(how, steps, frames, side):
    import resource

    backbone = load_backbone("builtin", torch.device("cpu"), torch.float32)
    latents, view = draw(frames, side, torch.float32)
    call = {"stored": with_store, "ours": without_store}[how]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    call(backbone, latents, steps, view)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"seconds": time.perf_counter() - began, "mib": (after - before) / 1024}))


@pytest.mark.slow
def test_time_and_memory_beside_a_store():
    """One thing varied at a time; ratios, since the machine's speed is not ours to know."""
    cases = [(4, 4, 16), (8, 4, 16), (16, 4, 16), (8, 8, 16), (8, 16, 16), (8, 4, 24), (8, 4, 32)]
    rows = {c: {how: measure(how, *c) for how in ("ours", "stored")} for c in cases}
    print("\n| steps | frames | latent side | seconds, stored / ours | MiB ours | MiB stored |")
    print("|---|---|---|---|---|---|")
    for (steps, frames, side), row in rows.items():
        ours, stored = row["ours"], row["stored"]
        ratio = stored["seconds"] / ours["seconds"]
        print(f"| {steps} | {frames} | {side} | {ratio:.2f} | {ours['mib']:.0f} | {stored['mib']:.0f} |")
    assert rows[16, 4, 16]["stored"]["mib"] > 2 * rows[4, 4, 16]["stored"]["mib"]
    assert rows[16, 4, 16]["ours"]["mib"] < 1.3 * rows[4, 4, 16]["ours"]["mib"] + 20
    assert all(row["ours"]["mib"] < row["stored"]["mib"] for row in rows.values())
