"""Structure distance against values by hand, and on drawn frames with the built-in CLIP."""

import math

import numpy as np
import pytest
import torch

from ctxedit.errors import NumericsError
from ctxedit.metrics.structure import patch_descriptors, self_similarity, structure_distance
from ctxedit.models.clip import ClipScorer
from ctxedit.models.weights import BUILTIN_FOLDER
from ctxedit.synthetic import scenes
from ctxedit.synthetic.scenes import Actor, Scene


def test_by_hand():
    # Two patches at a right angle against two at 60°: matrices differ by 1/2 off the diagonal.
    source = torch.tensor([[[1.0, 0.0], [0.0, 3.0]]])
    edit = torch.tensor([[[2.0, 0.0], [math.cos(math.pi / 3), math.sin(math.pi / 3)]]])
    assert self_similarity(source)[0].tolist() == [[1, 0], [0, 1]]
    assert structure_distance(source, edit) == pytest.approx((0.25 + 0.25) / 4)


def test_length_and_rotation_of_descriptors_do_not_matter():
    torch.manual_seed(0)
    tokens = torch.randn(3, 7, 5)
    turn, _ = torch.linalg.qr(torch.randn(5, 5))
    assert structure_distance(tokens, 4 * tokens @ turn) == pytest.approx(0, abs=1e-12)
    assert structure_distance(tokens, tokens.flip(1)) > 0.01


def test_bad_descriptors():
    with pytest.raises(NumericsError):
        self_similarity(torch.full((1, 2, 3), float("nan")))
    with pytest.raises(ValueError, match="as many"):
        structure_distance(torch.ones(1, 4, 2), torch.ones(1, 5, 2))


def drawn(x):
    scene = Scene((Actor("car", "red", x, 0.86, 0.5),), "desert", "plain", "turn", 1, 0.0, (0.5,) * 8)
    return scenes.render(scene, 2, 64)[0]


def test_another_place_is_further_than_another_light():
    scorer = ClipScorer(BUILTIN_FOLDER / "clip")
    source, moved = drawn(0.3), patch_descriptors(scorer, drawn(0.7))
    darker = patch_descriptors(scorer, (source * 0.9).astype(np.uint8))
    tokens = patch_descriptors(scorer, source)
    assert structure_distance(tokens, tokens) == 0
    assert 0 < 3 * structure_distance(tokens, darker) < structure_distance(tokens, moved) < 4


def test_descriptors_are_the_last_layers_keys_of_the_patches():
    scorer = ClipScorer(BUILTIN_FOLDER / "clip")
    frames = np.concatenate([drawn(x) for x in np.linspace(0.2, 0.8, 9)])  # more than one batch
    network = scorer._model.vision_model
    with torch.no_grad():
        states = network(pixel_values=scorer._prepare(list(frames)), output_hidden_states=True).hidden_states
        layer = network.encoder.layers[-1]
        expected = layer.self_attn.k_proj(layer.layer_norm1(states[-2]))[:, 1:]
    found = patch_descriptors(scorer, frames)
    assert found.shape == (18, 64, expected.shape[-1]) and torch.allclose(found, expected, atol=1e-4)
    assert not layer.self_attn.k_proj._forward_hooks
