"""Heat maps: what is watched is the edit itself, and words look at what they name."""

import numpy as np
import pytest
import torch

from ctxedit.config import AttentionConfig, Config, EditConfig, FusionConfig, InvertConfig
from ctxedit.errors import InputError
from ctxedit.inspection.heatmaps import overlay, recorded_edit
from ctxedit.models.attention import FrameView
from ctxedit.models.backbones import load_backbone
from ctxedit.patterns import attended_frames
from ctxedit.stages.edit import InvertedClip, edit
from ctxedit.stages.invert import invert
from ctxedit.stages.report import heatmap_files
from ctxedit.synthetic import scenes
from ctxedit.synthetic.scenes import Actor

PROMPT, TARGET, STEPS = "a tiger walking on the beach", "a panda walking on the beach", 4


def settings(**fusion):
    return Config(
        edit=EditConfig(steps=STEPS, guidance=3.0),
        invert=InvertConfig(steps=STEPS),
        fusion=FusionConfig(**({"mask_resolution": 1.0} | fusion)),
    )


def inverted(backbone, latents):
    view = FrameView(attended_frames(AttentionConfig(), len(latents)), tuple(latents.shape[-2:]))
    levels = backbone.levels(STEPS)
    trajectory = invert(backbone, latents, backbone.embed([PROMPT]), levels, view)
    return InvertedClip(backbone, PROMPT, trajectory, levels, view)


@pytest.fixture()
def scene(backbone):
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with backbone.attention(AttentionConfig()):
        yield inverted(backbone, latents)


@pytest.mark.parametrize(
    "fusion", [{}, {"self_replace_steps": 0.0, "cross_replace_steps": 0.0}, {"blend": "latent"}]
)
def test_recording_changes_nothing(scene, fusion):
    config = settings(**fusion)
    latents, maps = recorded_edit(scene, TARGET, config)
    assert torch.equal(latents, edit(scene, TARGET, config))
    assert list(maps) == ["panda", "walking", "beach"]
    assert all(m.shape == (2, 16, 16) and m.min() >= 0 and m.max() <= 1 for m in maps.values())


def test_the_map_is_the_mean_of_the_attention_to_that_word(scene, monkeypatch):
    """Against plain softmax maps, caught in the layers: conditional branch, every step, finest layers."""
    from ctxedit.models import attention

    caught = []

    def slow(self, attn, hidden_states, encoder_hidden_states=None, **_):
        if self.site.kind == "cross" and hidden_states.shape[1] == 256:
            q, k = (
                f(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
                for f, x in ((attn.to_q, hidden_states), (attn.to_k, encoder_hidden_states))
            )
            probabilities = (q @ k.transpose(-1, -2) * attn.scale).softmax(-1).mean(1)
            caught.append(probabilities[-2:])  # the last branch is the conditional one
        return real(self, attn, hidden_states, encoder_hidden_states, **_)

    real = attention.FrameAttention.__call__
    monkeypatch.setattr(attention.FrameAttention, "__call__", slow)
    _, maps = recorded_edit(scene, TARGET, settings())
    (panda,) = [w for w in scene.backbone.words(TARGET) if w.text == "panda"]
    expected = torch.stack(caught)[..., list(panda.tokens)].sum(-1).mean(0).reshape(2, 16, 16)
    torch.testing.assert_close(maps["panda"].double(), expected, rtol=0, atol=1e-6)


def test_a_word_said_twice_has_two_maps_and_a_prompt_of_nothing_is_refused(scene):
    _, maps = recorded_edit(scene, "a panda and a panda", settings())
    assert list(maps) == ["panda", "panda (2)"]
    with pytest.raises(InputError, match="no content word to draw"):
        recorded_edit(scene, "on the", settings())


def test_the_built_in_words_look_at_their_objects():
    drawn = scenes.Scene(
        (Actor("tiger", None, 0.5, 0.86, 0.56),), "beach", "plain", "walk", 1, 1.0, (0.5,) * 8
    )
    frames, mask = scenes.render(drawn, 2, 64)
    backbone = load_backbone("builtin", torch.device("cpu"), torch.float32)
    with backbone.attention(AttentionConfig()):
        _, maps = recorded_edit(inverted(backbone, backbone.encode(frames)), PROMPT, settings())
    inside = torch.from_numpy(mask).unflatten(-1, (16, 4)).unflatten(1, (16, 4)).mean((2, 4)) > 0.5
    share = {word: float(heat[inside].mean() / heat[~inside].mean()) for word, heat in maps.items()}
    assert share["tiger"] > 1.5 and share["tiger"] > 1.2 * share["beach"]


def test_colours_run_from_black_to_the_hottest_place():
    frames = np.full((2, 8, 8, 3), 100, np.uint8)
    heat = torch.zeros(2, 8, 8)
    heat[1, 2, 3] = 0.02
    shown = overlay(frames, heat)
    assert shown.shape == frames.shape and (shown[0] <= 45).all()
    assert shown[1, 2, 3].sum() == shown.sum(-1).max() and shown[1, 2, 3, 0] > shown[1, 2, 3, 2]


def test_maps_lie_beside_the_edit(tmp_path):
    files = heatmap_files(tmp_path / "panda.mp4")
    assert (files.sheet.name, files.video.name) == ("panda-heatmaps.png", "panda-heatmaps.mp4")
