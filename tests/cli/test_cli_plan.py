"""Figures of the plan against the real thing, progress, and the Python API."""

import io
from dataclasses import replace

import numpy as np
import pytest
from asking import FEW, TARGET, call

import ctxedit as package
from ctxedit.cli.output import Screen
from ctxedit.config import AdapterConfig, load
from ctxedit.costs import edit_evaluations
from ctxedit.errors import ConfigError, WeightsError
from ctxedit.models import sizes, weights
from ctxedit.pipeline import Session


@pytest.mark.parametrize("image", [0, 48])
def test_adapter_parameters_are_exact(image):
    from ctxedit.models.adapter import ContextAdapter, adapter_parameters

    config = AdapterConfig(width=32, heads=4, blocks=3, patch=3)
    adapter = ContextAdapter(config, 4, 24, image)
    assert adapter_parameters(config, 4, 24, image) == sum(p.numel() for p in adapter.parameters())


def test_anatomy_is_the_backbones(stable_diffusion):
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
            sizes.weigh(tmp_path)


@pytest.mark.parametrize("preset", ["contextdiff", "fatezero", "ddim", "sdedit"])
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_evaluations_are_those_that_are_made(preset, guidance, clip, stable_diffusion, tmp_path, monkeypatch):
    """Lanes that the network sees in one edit, counted at the network."""
    from ctxedit.models.backbones.stable_diffusion import StableDiffusion
    from ctxedit.pipeline import Options, Session

    flags = {
        "model": str(stable_diffusion), "clip": {"frames": 2, "stride": 1}, "tune": {"steps": 0},
        "adapter": {"enabled": False}, "invert": {"steps": 5}, "edit": {"steps": 5, "guidance": guidance},
        "fusion": {"mask_layers": 1.0},
    }  # fmt: skip
    config = load(preset, flags=flags, environ={})
    lanes = []
    real = StableDiffusion.raw

    def counted(self, x, timestep, condition, view):
        lanes.append(len(condition))
        return real(self, x, timestep, condition, view)

    options = Options(prompt="a tiger walking", runs=tmp_path)
    with Session(clip, config, preset, options) as session:
        trajectory = session.invert()
        monkeypatch.setattr(StableDiffusion, "raw", counted)
        session.edited_frames("a panda walking", trajectory)
    assert sum(lanes) == edit_evaluations(config)


def test_memory_grows_with_what_it_should(clip, tmp_path):
    from ctxedit import plan
    from ctxedit.pipeline import Options, Session

    def peak(stage, **changes):
        config = load(
            environ={}, flags={"clip": {"frames": 4, "stride": 1, "size": 256}, "edit": {}, "tune": {}}
        )
        for table, values in changes.items():
            config = replace(config, **{table: replace(getattr(config, table), **values)})
        made = plan.make(Session(clip, config, "contextdiff", Options(runs=tmp_path)), ["a cat"])
        return next(s.peak_bytes for s in made.stages if s.name.startswith(stage))

    assert peak("tune", clip={"frames": 8}) > 1.5 * peak("tune")
    assert peak("edit", clip={"size": 512}) > 3 * peak("edit")
    assert peak("tune", tune={"checkpointing": True}) < peak("tune")
    assert peak("edit", edit={"steps": 50}, invert={"steps": 50}) == peak("edit"), "no store of maps"


def test_bars_on_a_terminal_and_lines_elsewhere():
    from rich.console import Console

    from ctxedit.cli.progress import Teller

    def said(terminal, quiet=False):
        screen, stream = Screen(quiet), io.StringIO()
        screen.console = Console(file=stream, force_terminal=terminal, width=100)
        with Teller(screen).task("tune", 4) as step:
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
    picture = package.generate("a cat", config={"edit": {"steps": 2}, "invert": {"steps": 2}}, count=2)
    assert picture.shape == (2, 64, 64, 3) and picture.dtype == np.uint8
    figures = package.evaluate(clip, TARGET, frames=2)
    assert figures.clip_model == "builtin" and figures.clip_temp is not None


def test_a_caption_is_made_anew_only_where_its_choice_is_another(clip, monkeypatch):
    """Under a vote the CLIP does not matter; ``auto`` is ``clip`` for the built-in models."""

    def key(**settings):
        few = {"clip": {"frames": 2, "stride": 1}, **settings}
        return Session(clip, package.settings("contextdiff", few), "contextdiff").caption_key()

    assert key() == key(caption_by="auto") == key(caption_by="clip") != key(caption_by="vote")
    assert key(caption_by="vote") == key(caption_by="vote", clip_model="org/clip")
    assert key(caption_by="clip") != key(caption_by="clip", clip_model="org/clip")
    before = key()
    monkeypatch.setattr(weights, "_version", lambda folder, names: "trained anew")
    assert key() != before


def test_a_tuning_knows_the_clip_that_its_adapter_looks_through(clip):
    def identity(image, name):
        few = {"adapter": {"image": image}, "clip_model": name}
        return Session(clip, package.settings("contextdiff", few), "contextdiff").identity

    assert identity("clip", "org/one") != identity("clip", "org/two")
    assert identity("latent", "org/one") == identity("latent", "org/two")
