"""The harder split: what is drawn is what is said, wherever it moves; edits change one thing."""

import re
from collections import Counter

import numpy as np
import pytest

from ctxedit.synthetic import composition_captions, composition_changes, compositions, scenes
from ctxedit.synthetic.composition_captions import (
    RELATION_WORDS,
    plural,
)
from ctxedit.synthetic.composition_pairs import draw_pairs
from ctxedit.synthetic.compositions import HUGE, KINDS, RELATIONS, TINY, Composition, Group
from ctxedit.synthetic.vocabulary import BY_NAME


def some(count: int, seed: int = 0, **how):
    rng = np.random.default_rng(seed)
    return [compositions.draw(rng, **how) for _ in range(count)]


def of(one):
    return one.actor.name, one.actor.colour


def test_the_same_seed_draws_the_same_and_another_something_else():
    assert some(5) == some(5) != some(5, seed=1)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_drawn_is_what_is_said_at_any_time(kind):
    for composed in some(12, kind=kind):
        said = composed.composition
        assert 1 <= len(said.members) <= 4 and said.kind == kind
        for t in (0.0, 0.4, 1.0):
            _, visible = compositions.render_objects(composed.scene, t)
            assert Counter(map(of, visible)) == Counter((g.name, g.colour) for g in said.members)
            seen = [visible[i] for i in composed.order]
            for group, one in zip(said.members, seen, strict=True):
                assert of(one) == (group.name, group.colour)
                assert group.size != "tiny" or one.scale < TINY
                assert group.size != "huge" or one.scale > HUGE
                assert one.covered < 0.6, "it can be seen"
                left, top, right, bottom = one.box
                assert 0 <= left < right <= 64 and 0 <= top < bottom <= 64
            if said.relation:
                assert stands(said.relation, *seen), (said, t)
            elif said.kind != "size":
                assert all(s.covered < 0.1 for s in visible), "objects of no relation stand apart"


def stands(relation, a, b):
    """Independent of the judge: by the exact places and what hides what."""
    if relation in RELATIONS[1::2]:
        return stands(RELATIONS[RELATIONS.index(relation) - 1], b, a)
    if relation == "left of":
        return a.box[2] < b.box[2] and a.x + 0.2 < b.x
    if relation == "above":
        return a.y + 0.3 < b.y and a.box[1] < b.box[1]
    return b.covered == 0 and a.y < b.y and a.box[3] < b.box[3]


def test_what_stands_behind_is_hidden_in_part():
    hidden = [compositions.render_objects(c.scene, 0.5)[1] for c in some(60, kind="relation")
              if c.composition.relation in ("behind", "in front of")]  # fmt: skip
    assert len(hidden) > 10
    assert np.mean([max(s.covered for s in visible) > 0.03 for visible in hidden]) > 0.8
    for visible in hidden:  # masks and what hides them add up
        front = visible[-1]
        assert front.covered == 0 and np.max(front.mask * visible[0].mask) <= 0.26


def test_held_out_combinations_are_never_drawn_for_training():
    assert not any(compositions.held_out(c.composition) for c in some(200))
    assert all(compositions.held_out(c.composition) for c in some(20, test=True))
    rng = np.random.default_rng(3)
    made = [compositions.draw(rng, test=bool(i % 2)).composition for i in range(60)]
    for one in made:  # the order of what is only listed is not another combination
        if one.relation is None:
            assert Composition(one.groups[::-1]).key == one.key


@pytest.mark.parametrize(
    ("composition", "canonical"),
    [
        (Composition((Group("sheep", None, 3),)), "three sheep on the beach"),
        (Composition((Group("bus", "red", 2), Group("owl"))), "two red buses and an owl on the beach"),
        (
            Composition((Group("car", "red"), Group("car", "blue")), "left of"),
            "a red car to the left of a blue car on the beach",
        ),
        (Composition((Group("elephant", size="tiny"),)), "a tiny elephant on the beach"),
        (
            Composition((Group("cat"), Group("dog"), Group("balloon", "blue"))),
            "a cat, a dog and a blue balloon on the beach",
        ),
        (Composition((Group("fox"), Group("man")), "behind"), "a fox behind a man on the beach"),
    ],
)
def test_captions(composition, canonical):
    assert composition_captions.word(composition, "beach") == canonical
    rng = np.random.default_rng(0)
    assert len({composition_captions.word(composition, "beach", rng=rng) for _ in range(60)}) >= 6


def test_every_wording_of_a_relation_says_the_same():
    sides = {"left": "right", "above": "below", "over": "under", "behind": "front"}
    opposite = sides | {v: k for k, v in sides.items()}
    for relation, templates in RELATION_WORDS.items():
        own = {re.findall(r"left|right|above|below|over|under|behind|front", t)[0] for t in templates
               if t.index("{a}") < t.index("{b}")}  # fmt: skip
        turned = {re.findall(r"left|right|above|below|over|under|behind|front", t)[0] for t in templates
                  if t.index("{a}") > t.index("{b}")}  # fmt: skip
        assert {opposite[w] for w in turned} & own, relation
        assert not own & turned


def test_plurals():
    assert [plural(n) for n in ("cat", "sheep", "man", "bus", "fox", "puppy", "octopus")] == [
        "cats", "sheep", "men", "buses", "foxes", "puppies", "octopuses"
    ]  # fmt: skip
    assert all(plural(w).isalpha() for t in BY_NAME.values() for w in t.words)


@pytest.fixture(scope="module")
def test_a_composition_survives_its_table():
    for composed in some(40):
        said = composed.composition
        again = Composition.from_table(said.to_table())
        assert (again.groups, again.relation) == (said.groups, said.relation)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({}, "groups"),
        ({"groups": [{"name": "zebra"}]}, "zebra"),
        ({"groups": [{"name": "cat", "colour": "red"}]}, "colour"),
        ({"groups": [{"name": "cat", "count": 5}]}, "count"),
        ({"groups": [{"name": "cat", "count": True}]}, "count"),
        ({"groups": [{"name": "cat", "size": "big"}]}, "size"),
        ({"groups": [{"name": "cat", "mood": "calm"}]}, "mood"),
        ({"groups": [{"name": "cat"}], "relation": "above"}, "relation"),
        ({"groups": [{"name": "cat"}, {"name": "dog"}], "relation": "beyond"}, "relation"),
        ({"groups": [{"name": "cat"}], "place": "sea"}, "place"),
    ],
)
def test_bad_tables_are_refused(table, said):
    with pytest.raises(ValueError, match=said):
        Composition.from_table(table)


def test_pairs_change_one_thing_and_leave_the_rest():
    pairs = draw_pairs(14, 2024)
    assert len(pairs) == 46 == len({(p.clip, p.target_prompt) for p in pairs})
    assert set(composition_changes.PARTS) == {p.kind for p in pairs}
    for pair in pairs:
        before, after = pair.before.composition, pair.after.composition
        assert compositions.held_out(before) and pair.source_prompt != pair.target_prompt
        changed = range(len(before.groups)) if pair.changed is None else [pair.changed]
        if pair.kind == "relation":
            assert before.groups == after.groups and before.relation != after.relation
        else:
            assert before.relation == after.relation
            others = [i for i in range(len(before.groups)) if i not in changed]
            assert all(before.groups[i] == after.groups[i] for i in others)
            fields = {"object": "name"}.get(pair.kind, pair.kind)
            a, b = (vars(c.groups[pair.changed]) for c in (before, after))
            assert {k for k in a if a[k] != b[k]} == {fields}
        frames = [scenes.render_frame(s, 0.5)[0].astype(int) for s in (pair.source, pair.target)]
        differs = np.abs(frames[0] - frames[1]).max(-1)
        if pair.source.style == "plain":
            assert differs[pair.mask(1, 64)[0] == 0].max() <= 24, "outside the mask the clip stays"
        assert differs.max() > 60
    counts = [[len(c.composition.members) for c in (p.before, p.after)] for p in pairs if p.kind == "count"]
    assert {after - before for before, after in counts} == {1, -1}


def test_more_clips_than_there_are_combinations_are_refused(monkeypatch):
    monkeypatch.setattr("ctxedit.synthetic.composition_pairs._DRAWS", 3)
    with pytest.raises(ValueError, match="held-out combinations give"):
        draw_pairs(14)
