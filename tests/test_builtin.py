"""What the built-in models can do: a clip comes back, and an edit goes the right way."""

from dataclasses import replace
from pathlib import Path

import pytest

from ctxedit import config
from ctxedit.editing.request import Request
from ctxedit.editing.session import Session
from ctxedit.metrics.formulas import psnr

SAMPLES = Path(__file__).parents[1] / "samples"
PROMPT = "a tiger walking on the beach"


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """The preset contextdiff on a sample, tuned for a few steps."""
    settings = config.load(flags={"clip": {"frames": 4, "stride": 4}, "tune": {"steps": 8}}, environ={})
    runs = tmp_path_factory.mktemp("runs")
    with Session(Request(SAMPLES / "tiger-beach.mp4", settings, prompt=PROMPT, runs=runs)) as opened:
        opened.tune()
        yield opened


def test_the_source_prompt_gives_the_source_back(session):
    """Against the autoencoder's own reconstruction; ctxedit/bundled/README.md states what this prints."""
    trajectory = session.invert()
    own = session.parts.prepared.unpad(session.parts.backbone.decode(session.parts.latents))
    settings, figures = session.config, {}
    cases = {
        "no guidance": replace(settings.edit, guidance=1.0),
        "guided away from the source prompt": replace(settings.edit, negative_prompt="{source}"),
        "guided": settings.edit,
    }
    for name, edit in cases.items():
        session.parts.request = replace(session.request, config=replace(settings, edit=edit))
        figures[name] = psnr(session.edited_frames(PROMPT, trajectory), own)
        print(f"source prompt, {name}: {figures[name]:.1f} dB against the autoencoder's own")
    session.parts.request = replace(session.request, config=settings)
    assert figures["no guidance"] > 28
    assert figures["guided away from the source prompt"] > 28
    assert figures["guided"] > 17


@pytest.mark.parametrize(
    "target",
    ["a panda walking on the beach", "a tiger walking in the snow", f"{PROMPT}, watercolor style"],
    ids=["object", "background", "style"],
)
def test_edits_go_where_they_are_told(session, target):
    result = session.edit(target)
    figures = session.evaluate(session.key("edit", target)[0])
    assert result.files.sheet.exists()
    assert figures.frame_accuracy == 1.0, "every frame is closer to the target than to the source prompt"
    assert figures.clip_temp > 0.8
