"""Figures of the plan against the real thing, progress, and the Python API."""

import io
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from asking import FEW, TARGET, call

import ctxedit as package
from ctxedit.cli.output import Screen
from ctxedit.config import AdapterConfig, load, preset_names
from ctxedit.editing import plan
from ctxedit.editing.keys import Keys
from ctxedit.editing.reporter import Reporter
from ctxedit.editing.request import Request
from ctxedit.editing.session import Session
from ctxedit.errors import ConfigError, InputError, WeightsError
from ctxedit.models import sizes, weights


@pytest.mark.parametrize("image", [0, 48])
def test_adapter_parameters_are_exact(image):
    from ctxedit.models.adapter import ContextAdapter, adapter_parameters

    config = AdapterConfig(width=32, heads=4, blocks=3, patch=3)
    adapter = ContextAdapter(config, 4, 24, image)
    assert adapter_parameters(config, 4, 24, image) == sum(p.numel() for p in adapter.parameters())


def test_sizes_are_the_backbones(stable_diffusion):
    import torch

    from ctxedit.models.backbones import family_of, load_backbone
    from ctxedit.models.weights import locate

    body = family_of(checkpoint := locate(str(stable_diffusion))).sizes(checkpoint)
    backbone = load_backbone(str(stable_diffusion), torch.device("cpu"), torch.float32)
    for name in ("factor", "multiple", "resolution", "latent_channels", "context_width", "context_length"):
        assert getattr(body, name) == getattr(backbone, name), name
    assert body.unet.parameters == sum(p.numel() for p in backbone.unet.parameters())


def test_a_broken_header_is_refused(tmp_path):
    file = tmp_path / "x.safetensors"
    for content in (b"", b"\x00" * 8, b"\xff" * 64, b"\x05" + b"\0" * 7 + b"[1,2]"):
        file.write_bytes(content)
        with pytest.raises(WeightsError, match="safetensors"):
            sizes.folder_weight(tmp_path)


class Passes(Reporter):
    """Counts the denoiser's passes over the clip by stage."""

    def __init__(self):
        self.now, self.counted = "", {"tune": 0, "invert": 0, "edit": 0}

    @contextmanager
    def task(self, name, total, unit="step"):
        self.now = name.split()[0]
        yield lambda done, note="": None
        self.now = ""

    def hook(self, module, args, kwargs):
        """One call of the denoiser."""
        if self.now in self.counted:
            self.counted[self.now] += len(args[0]) / 2


@pytest.mark.parametrize(
    ("preset", "keep"),
    [*((name, "off") for name in preset_names()), ("contextdiff", "on"), ("fatezero-shape", "on")],
)
def test_planned_passes_are_those_that_are_made(preset, keep, clip, stable_diffusion, controlnet, tmp_path):
    """Every preset's, with each word changed, words only added, and nothing changed."""
    flags = {
        "model": str(stable_diffusion), "clip_model": "builtin", "clip": {"frames": 2, "stride": 1},
        "adapter": {"width": 16, "heads": 2, "blocks": 1}, "control": {"model": str(controlnet)},
        "invert": {"steps": 5}, "edit": {"steps": 5}, "fusion": {"mask_resolution": 1.0},
        "attention": {"min_channels": 0}, "keep_source": keep,
    }  # fmt: skip
    config = load(preset, flags=flags, environ={})
    config = replace(config, tune=replace(config.tune, steps=min(2, config.tune.steps)))
    targets = ("a panda walking", "a tiger walking, snow", "a tiger walking")
    request = Request(clip, config, preset, "a tiger walking", targets, overwrite=True, runs=tmp_path)
    planned = {stage.name: stage.evaluations for stage in plan.make(request).stages}
    passes = Passes()
    with Session(request, passes) as session:
        session.parts.backbone.networks[0].register_forward_pre_hook(passes.hook, with_kwargs=True)
        assert (session.parts.kept_source is not None) == (keep == "on")
        session.tune()
        session.invert()
        assert (passes.counted["tune"], passes.counted["invert"]) == (planned["tune"], planned["invert"])
        for target in targets:
            passes.counted["edit"] = 0
            session.edited_frames(target, session.invert())
            assert passes.counted["edit"] == planned[f"edit “{target}”"], target


@pytest.mark.parametrize("changes", [{"edit": {"guidance": 1.0}}, {"invert": {"fixed_point_iterations": 2}}])
def test_planned_passes_follow_the_settings(changes, clip, stable_diffusion, tmp_path):
    flags = {"model": str(stable_diffusion), "clip_model": "builtin", "tune": {"steps": 0}}
    flags["clip"] = {"frames": 2, "stride": 1}
    for table in ("invert", "edit"):
        flags[table] = {"steps": 4} | changes.get(table, {})
    config = load("ddim", flags=flags, environ={})
    request = Request(clip, config, "ddim", "a tiger walking", ("a panda walking",), runs=tmp_path)
    planned = {stage.name: stage.evaluations for stage in plan.make(request).stages}
    passes = Passes()
    with Session(request, passes) as session:
        session.parts.backbone.networks[0].register_forward_pre_hook(passes.hook, with_kwargs=True)
        session.edited_frames("a panda walking", session.invert())
    assert passes.counted["invert"] == planned["invert"]
    assert passes.counted["edit"] == planned["edit “a panda walking”"]


def test_memory_grows_with_what_it_should(clip, tmp_path):
    def peak(stage, **changes):
        config = load(
            environ={}, flags={"clip": {"frames": 4, "stride": 1, "size": 256}, "edit": {}, "tune": {}}
        )
        for table, values in changes.items():
            config = replace(config, **{table: replace(getattr(config, table), **values)})
        made = plan.make(Request(clip, config, targets=("a cat",), runs=tmp_path))
        return next(s.peak_bytes for s in made.stages if s.name.startswith(stage))

    assert peak("tune", clip={"frames": 8}) > 1.5 * peak("tune")
    assert peak("edit", clip={"size": 512}) > 3 * peak("edit")
    assert peak("tune", tune={"gradient_checkpointing": True}) < peak("tune")
    assert peak("edit", edit={"steps": 50}, invert={"steps": 50}) == peak("edit"), "no store of maps"


def test_bars_on_a_terminal_and_lines_elsewhere():
    from rich.console import Console

    from ctxedit.cli.progress import CommandReporter

    def said(terminal, quiet=False):
        screen, stream = Screen(quiet), io.StringIO()
        screen.console = Console(file=stream, force_terminal=terminal, width=100)
        with CommandReporter(screen).task("tune", 4) as step:
            step(2, "loss 0.5")
            step(4, "loss 0.25")
        screen.warn("once")
        screen.warn("once")
        return stream.getvalue()

    assert "\x1b[" in said(True) and "4/4" in said(True)
    plain = said(False)
    assert "\x1b" not in plain and plain.splitlines()[0] == "tune: 4 steps" and plain.count("once") == 1
    assert "loss 0.25" in plain
    assert said(True, quiet=True) == ""


def test_the_api_does_what_the_commands_do(clip, tmp_path):
    said = package.caption(clip, config={"clip": {"frames": 4, "stride": 1}})
    assert said == call("caption", clip, *FEW[:4]).out.strip()
    few = {
        "clip": {"frames": 2, "stride": 1},
        "tune": {"steps": 1},
        "invert": {"steps": 2},
        "edit": {"steps": 2},
    }
    run = package.tune(clip, "a tiger", config=few, runs=tmp_path)
    result = package.edit(run, "a panda", output=tmp_path / "panda.gif")
    assert result.files.video.exists() and not result.reused
    (row,) = package.evaluate_run(run)
    assert row["target"] == "a panda" and (run.folder / "metrics.json").exists()
    with pytest.raises(ConfigError, match="tuned with"):
        package.edit(run, "a panda", {"clip": {"frames": 3}})
    short = {"edit": {"steps": 2}, "invert": {"steps": 2}}
    picture = package.generate("a cat", config=short, count=2)
    assert picture.shape == (2, 64, 64, 3) and picture.dtype == np.uint8
    assert np.array_equal(package.generate({"a cat": 1.0}, config=short, count=2), picture)
    assert not np.array_equal(
        package.generate({"a cat": 1.0, "a tiger": 0.5}, config=short, count=2), picture
    )
    with pytest.raises(InputError, match="empty"):
        package.generate({})
    with pytest.raises(ConfigError, match="finite"):
        package.generate({"a cat": float("nan")})
    with pytest.raises(ConfigError, match="one prompt"):
        package.generate({"a cat": 1.0, "a tiger": 0.5}, adapter=tmp_path / "adapter.safetensors")
    figures = package.evaluate(clip, TARGET, frames=2)
    assert figures.clip_model == "builtin" and figures.clip_temp is not None


def test_a_caption_is_made_anew_only_where_its_choice_is_another(clip, monkeypatch):
    """Under a vote the CLIP does not matter; ``auto`` is ``clip`` for the built-in models."""

    def key(**settings):
        few = {"clip": {"frames": 2, "stride": 1}, **settings}
        return Keys(Request(clip, package.settings("contextdiff", few))).caption()

    assert key() == key(caption_by="auto") == key(caption_by="clip") != key(caption_by="vote")
    assert key(caption_by="vote") == key(caption_by="vote", clip_model="org/clip")
    assert key(caption_by="clip") != key(caption_by="clip", clip_model="org/clip")
    before = key()
    monkeypatch.setattr(weights, "_version", lambda folder, names: "trained anew")
    assert key() != before


def test_a_tuning_knows_the_clip_that_its_adapter_looks_through(clip):
    def identity(image, name):
        few = {"adapter": {"image": image}, "clip_model": name}
        return Keys(Request(clip, package.settings("contextdiff", few))).identity(None)

    assert identity("clip", "org/one") != identity("clip", "org/two")
    assert identity("latent", "org/one") == identity("latent", "org/two")
