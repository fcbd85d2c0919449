"""Labelled boxes to tokens: what is painted where, what words start, what a file says."""

import numpy as np
import pytest
import torch

from ctxedit.errors import WeightsError
from ctxedit.models.condition_encoder import ConditionEncoder, EncoderConfig, hidden, paint

LAYOUT = EncoderConfig("layout", map=8, tokens=4, channels=8, blocks=1, boxes=3)


def boxes(*rows):
    return torch.tensor([rows])


def test_a_box_covers_the_share_of_each_cell_that_it_overlaps():
    found = paint(torch.tensor([[0]]), boxes((0.125, 0.0, 0.5, 0.5)), 4)
    assert torch.allclose(found.weight[0, 0, :2], torch.tensor([0.5, 1.0, 0.0, 0.0]))
    assert not found.weight[0, 0, 2:].any()
    assert torch.allclose(found.geometry[0, 4], found.weight[0].sum(0))
    width, height = found.geometry[0, 2, 0, 1], found.geometry[0, 3, 0, 1]
    assert (width, height) == (0.375, 0.5)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_smaller_box_is_in_front_in_any_order(order):
    rows = ((0.0, 0.0, 1.0, 1.0), (0.25, 0.25, 0.5, 0.5))
    found = paint(torch.tensor([[0, 1]]), boxes(*(rows[i] for i in order)), 4).weight[0]
    large, small = found[order.index(0)], found[order.index(1)]
    assert small[1, 1] == 1 and large[1, 1] == 0 and large.sum() == 15
    assert hidden(boxes(*rows)[0]) == [] and hidden(boxes(rows[1], rows[1])[0]) == [1]


def test_padding_and_the_unconditional_row_paint_nothing():
    encoder = ConditionEncoder(LAYOUT, ["cat", "dog"], 6)
    place = (0.0, 0.0, 0.5, 0.5)
    one = encoder(torch.tensor([[1, -1]]), boxes(place, place))
    assert torch.equal(one, encoder(torch.tensor([[1]]), boxes(place)))
    none = encoder(torch.tensor([[-1]]), boxes(place))
    assert torch.allclose(none, (encoder.empty + encoder.place)[None])


def test_before_training_tokens_are_the_labels_in_their_places():
    encoder = ConditionEncoder(LAYOUT, ["cat", "dog"], 6)
    encoder.start_from(torch.ones(2, 6) * torch.tensor([[1.0], [2.0]]), torch.full((6,), 9.0))
    tokens = encoder(torch.tensor([[1]]), boxes((0.0, 0.0, 0.5, 0.5)))[0].unflatten(0, (4, 4))
    assert torch.allclose(tokens[:2, :2], torch.tensor(2.0)) and torch.allclose(tokens[2:], torch.tensor(9.0))


def test_training_moves_tokens_with_the_place():
    torch.manual_seed(0)
    encoder = ConditionEncoder(LAYOUT, ["cat"], 6)
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    left, right = boxes((0.0, 0.2, 0.4, 0.8)), boxes((0.6, 0.2, 1.0, 0.8))
    label = torch.tensor([[0]])
    assert not torch.allclose(encoder(label, left), encoder(label, right), atol=1e-3)


def test_a_saved_encoder_comes_back_and_a_broken_one_is_refused(tmp_path):
    encoder = ConditionEncoder(LAYOUT, ["cat", "polar bear"], 6)
    encoder.save(tmp_path)
    again = ConditionEncoder.load(tmp_path, "layout")
    assert again.config == LAYOUT and again.labels == ("cat", "polar bear")
    assert again.number("Polar  Bear") == 1
    for key, value in again.state_dict().items():
        np.testing.assert_allclose(value, encoder.state_dict()[key], atol=1e-3)
    with pytest.raises(WeightsError, match="layout encoder, not a class encoder"):
        ConditionEncoder.load(tmp_path, "class")
    with pytest.raises(WeightsError, match="no layout encoder"):
        ConditionEncoder.load(tmp_path / "nowhere", "layout")
    with torch.no_grad():
        encoder.empty[0] = float("nan")
    encoder.save(tmp_path)
    with pytest.raises(WeightsError, match="NaN or infinity in empty"):
        ConditionEncoder.load(tmp_path, "layout")
    (tmp_path / "encoder.safetensors").write_bytes(b"no weights")
    with pytest.raises(WeightsError, match="not a condition encoder"):
        ConditionEncoder.load(tmp_path, "layout")


@pytest.mark.parametrize("wrong", [{"map": 12}, {"channels": 12}, {"blocks": 0}, {"boxes": 0}, {"tokens": 0}])
def test_sizes_that_cannot_be_built_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        EncoderConfig(**{"kind": "layout", "map": 16, "tokens": 8, "boxes": 4, **wrong}).check()
