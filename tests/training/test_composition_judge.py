"""The composition judge: its verdicts by hand, what it learns from, how right it is about drawn scenes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ctxedit.errors import ConfigError, WeightsError
from ctxedit.models.weights import BUILTIN_FOLDER
from ctxedit.synthetic import compositions
from ctxedit.synthetic.composition_judge import GRID, HUES, NAMES, CompositionJudge, load, side_of, split
from ctxedit.synthetic.composition_verdict import DetectedObject, detect, holds, judge
from ctxedit.synthetic.compositions import Composition, Group
from ctxedit.training import recipe
from ctxedit.training.check import check
from ctxedit.training.checks.base import CheckConfig
from ctxedit.training.checks.compositions import held_out
from ctxedit.training.components import Components
from ctxedit.training.composition_data import MOST, Frames, targets
from ctxedit.training.data import DataConfig
from ctxedit.training.tasks import composition_judge
from ctxedit.training.tasks.composition_judge import CompositionJudgeTask


def a_task(width):
    return CompositionJudgeTask(Components(BUILTIN_FOLDER), DataConfig(), width=width)


def found(name, x, y, colour=None, side=0.4, hidden=False):
    return DetectedObject(name, colour, x, y, side, hidden, 0.9)


CAT, DOG = found("cat", 0.27, 0.7), found("dog", 0.73, 0.7)
RED, BLUE = found("car", 0.3, 0.7, "red"), found("car", 0.7, 0.7, "blue")
TWO = Composition((Group("car", "red"), Group("car", "blue")), "left of")


@pytest.mark.parametrize(
    ("composition", "objects", "groups", "extra", "relation"),
    [
        (TWO, [RED, BLUE], (True, True), False, True),
        (TWO, [BLUE, RED], (True, True), False, True),
        (replace(TWO, relation="right of"), [RED, BLUE], (True, True), False, False),
        (TWO, [RED, replace(BLUE, colour="red")], (False, False), False, False),
        (TWO, [RED], (True, False), False, False),
        (TWO, [RED, BLUE, CAT], (True, True), True, True),
        (Composition((Group("cat", None, 2),)), [CAT, replace(CAT, x=0.8)], (True,), False, True),
        (Composition((Group("cat", None, 3),)), [CAT, replace(CAT, x=0.8)], (False,), False, True),
        (Composition((Group("cat", size="tiny"),)), [CAT], (False,), False, True),
        (Composition((Group("cat", size="tiny"),)), [replace(CAT, side=0.25)], (True,), False, True),
        (Composition((Group("cat", size="huge"),)), [replace(CAT, side=0.8)], (True,), False, True),
        (Composition((Group("cat"), Group("dog"))), [], (False, False), False, True),
    ],
)
def test_verdicts(composition, objects, groups, extra, relation):
    said = judge(composition, objects)
    assert (said.groups, said.extra, said.relation) == (groups, extra, relation)
    assert said.all_right == (all(groups) and not extra and relation)


@pytest.mark.parametrize(
    ("a", "b", "relations"),
    [
        (CAT, DOG, {"left of"}),
        (DOG, CAT, {"right of"}),
        (found("owl", 0.5, 0.25), found("cat", 0.55, 0.75), {"above"}),
        (found("cat", 0.55, 0.75), found("owl", 0.5, 0.25), {"below"}),
        (found("cat", 0.45, 0.55, side=0.5, hidden=True), found("dog", 0.55, 0.75), {"behind"}),
        (found("dog", 0.55, 0.75), found("cat", 0.45, 0.55, side=0.5), {"in front of"}),
        # What is higher but hides the other is not behind it.
        (found("cat", 0.45, 0.55, side=0.5), found("dog", 0.55, 0.75, hidden=True), set()),
        (CAT, replace(CAT, x=0.3), set()),
    ],
)
def test_relations(a, b, relations):
    assert {r for r in compositions.RELATIONS if holds(r, a, b)} == relations


def painted(*objects):
    """A judge's output that shows these objects, as if it had detected them: heat, colour, place, hidden."""
    dense = torch.zeros(1, len(NAMES) + len(HUES) + 4, GRID, GRID)
    heat, colour, offset, side, hidden = split(dense)
    heat -= 6
    for one in objects:
        column, row = int(one.x * GRID), int(one.y * GRID)
        at = (0, slice(None), row, column)
        heat[0, NAMES.index(one.name), row, column] = np.log(one.confidence / (1 - one.confidence))
        colour[at][HUES.index(one.colour or "none")] = 5.0
        offset[at] = torch.tensor([one.x * GRID - column - 0.5, one.y * GRID - row - 0.5])
        side[at] = float(np.log(one.side / float(side_of(torch.zeros(())))))
        hidden[at] = 3.0 if one.hidden else -3.0
    return dense, torch.zeros(1, 12)


def test_reading_gives_back_what_was_painted():
    objects = (RED, replace(BLUE, hidden=True), found("owl", 0.5, 0.2, side=0.25))
    frame = np.zeros((1, 64, 64, 3), np.uint8)
    (detected,) = detect(lambda images: painted(*objects), frame)
    assert {(o.name, o.colour, o.hidden) for o in detected.objects} == {
        (o.name, o.colour, o.hidden) for o in objects
    }
    for one in objects:
        same = next(o for o in detected.objects if (o.name, o.colour) == (one.name, one.colour))
        assert (same.x, same.y, same.side) == pytest.approx((one.x, one.y, one.side), abs=1e-4)


def test_one_object_seen_as_two_classes_is_the_surer_one():
    sure, unsure = found("cat", 0.5, 0.5), replace(found("dog", 0.53, 0.52), confidence=0.6)
    (detected,) = detect(lambda images: painted(unsure, sure), np.zeros((1, 64, 64, 3), np.uint8))
    assert [o.name for o in detected.objects] == ["cat"]
    (apart,) = detect(
        lambda images: painted(replace(unsure, x=0.8), sure), np.zeros((1, 64, 64, 3), np.uint8)
    )
    assert [o.name for o in apart.objects] == ["cat", "dog"]


def test_targets_are_where_the_objects_are():
    composed = held_out(5, 1)[4]
    _, visible = compositions.render_objects(composed.scene, 0.5)
    given = targets(visible, composed.scene)
    for i, one in enumerate(visible):
        assert NAMES[given["name"][i]] == one.actor.name and given["valid"][i] == 1
        assert given["place"][i].tolist() == pytest.approx([one.x, one.y, one.scale])
        left, top, right, bottom = (edge / 64 for edge in one.box)
        assert left <= one.x <= right and top <= one.y <= bottom
    assert given["valid"].sum() == len(visible) <= MOST


def test_target_heatmaps_are_highest_at_the_objects():
    batch = torch.utils.data.default_collate([Frames(0)[i] for i in range(6)])
    cell = (batch["place"][..., :2] * GRID).long().clamp(0, GRID - 1)
    heatmaps = composition_judge._target_heatmaps(batch, cell)
    for i in range(6):
        peaks = {(int(n), int(r), int(c)) for n, r, c in (heatmaps[i] > 0.999).nonzero()}
        objects = zip(batch["name"][i], cell[i], batch["valid"][i], strict=True)
        meant = {(int(name), int(at[1]), int(at[0])) for name, at, valid in objects if valid}
        assert peaks == meant
    assert heatmaps.min() >= 0 and heatmaps.max() <= 1


def test_a_step_of_its_training_lowers_the_loss_of_the_batch():
    torch.manual_seed(0)
    task = a_task(16)
    batch = torch.utils.data.default_collate([task.dataset(0)[i] for i in range(8)])
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=2e-3)
    losses = []
    for _ in range(12):
        loss, _ = task.loss(task.model, batch, torch.Generator())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert all(p.grad is not None for p in task.model.parameters())


def test_it_comes_back_from_its_file(tmp_path):
    task = a_task(16)
    task.export(task.model, tmp_path)
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        assert torch.allclose(load(tmp_path)(image)[0], task.model.eval()(image)[0], atol=0.05)
    with pytest.raises(WeightsError, match="no composition judge"):
        load(tmp_path / "none")
    (tmp_path / "judge.safetensors").write_bytes(b"x")
    with pytest.raises(WeightsError, match="no composition judge"):
        load(tmp_path)


def test_it_learns_from_drawn_scenes_alone():
    with pytest.raises(ConfigError, match="drawn scenes of 64"):
        CompositionJudgeTask(Components(BUILTIN_FOLDER), DataConfig(source="folder", path="x"), width=16)
    one = recipe.resolve("composition-judge")
    built = one.task_type.build(Components(BUILTIN_FOLDER), one.data, one.task)
    assert isinstance(built.model, CompositionJudge)


def test_it_is_right_about_drawn_held_out_scenes():
    rows = {r.figure: r for r in check(CheckConfig(count=15, seed=11), ["composition-judge"])}
    assert rows["all right"].count == 150 and rows["all right"].value >= 0.94
    assert rows["a composition that differs in one thing is refused"].value >= 0.97


def test_pictures_of_compositions_are_judged():
    few = {"clip": {"frames": 3}, "invert": {"steps": 2}, "edit": {"steps": 2}}
    rows = {r.figure: r for r in check(CheckConfig(count=2, settings=few), ["compositions"])}
    assert 0 <= rows["all right"].value <= rows["objects, colours, numbers and sizes right"].value <= 1
    assert rows["all right"].count == 2
