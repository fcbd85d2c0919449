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

from ctxedit.bench.speed.store import edit_with_store
from ctxedit.config import AttentionConfig, FusionConfig
from ctxedit.models.alignment import align, changed
from ctxedit.models.attention import FrameView
from ctxedit.models.backbones import load_backbone
from ctxedit.patterns import attended_frames
from ctxedit.stages.invert import invert
from ctxedit.stages.sample import Sampling, Source, sample

OLD, NEW = "a tiger walking on the beach", "a panda walking on the beach"
HALF = FusionConfig(self_replace_steps=0.5, cross_replace_steps=0.5)
GUIDANCE = 5.0
ATTENTION = AttentionConfig(frames="sparse-causal")


def with_store(backbone, latents, steps, view, fusion=HALF):
    """Invert, storing the maps of the fused half; sample with them."""
    with backbone.attention(ATTENTION):  # puts the processors back
        return edit_with_store(backbone, latents, (OLD, NEW), steps, view, fusion, GUIDANCE)


def without_store(backbone, latents, steps, view, fusion=HALF):
    """The same, as ctxedit does it."""
    levels = backbone.levels(steps)
    old, new = backbone.words(OLD), backbone.words(NEW)
    with backbone.attention(ATTENTION):
        trajectory = invert(backbone, latents, backbone.embed([OLD]), levels, view)
        alignment = align(old, new, backbone.context_length, fusion.cross)
        source = Source(trajectory, backbone.embed([OLD]), alignment, changed(old, new))
        how = Sampling(GUIDANCE, fusion=fusion, source=source)
        return sample(backbone, trajectory[-1], backbone.embed(["", NEW]), levels, view, how)


def draw(frames, side, dtype, attention=ATTENTION):
    view = FrameView(attended_frames(attention, frames), (side, side), min_channels=attention.min_channels)
    generator = torch.Generator().manual_seed(0)
    return torch.randn(frames, 4, side, side, generator=generator, dtype=dtype), view


@pytest.mark.parametrize(
    ("attention", "fusion"),
    [
        (ATTENTION, HALF),  # over four frames: two of them see one frame, two see two
        # as the preset fatezero: a key frame in wide layers alone, and other shares for either attention
        (
            AttentionConfig(frames="key-frame", key_frame=-1, min_channels=32),
            FusionConfig(
                self_replace_steps=0.34, cross_replace_steps=0.84, cross="refine", max_resolution=0.5
            ),
        ),
    ],
)
def test_an_edit_equals_the_stored_maps_edit(backbone, attention, fusion):
    latents, view = draw(4, 8, torch.float64, attention)
    ours = without_store(backbone, latents, 6, view, fusion)
    stored = with_store(backbone, latents, 6, view, fusion)
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
