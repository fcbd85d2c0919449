"""Clip–target pairs of held-out combinations."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from ctxedit.synthetic import scenes
from ctxedit.synthetic.pairs import KINDS, draw_pairs
from ctxedit.synthetic.vocabulary import COLOURS


def test_every_kind_has_as_many_and_they_come_again():
    pairs = draw_pairs(6, seed=3, colours=2)
    assert Counter(p.kind for p in pairs) == {"object": 6, "background": 6, "style": 6, "colour": 2}
    assert pairs == draw_pairs(6, seed=3, colours=2) != draw_pairs(6, seed=4, colours=2)
    assert len({p.clip for p in pairs}) == 6 == len({p.source.key for p in pairs})
    assert all(len({p.source for p in pairs if p.clip == name}) == 1 for name in {p.clip for p in pairs})


def test_the_clip_is_held_out_and_one_part_differs():
    for pair in draw_pairs(8, seed=1, colours=2):
        source, target = pair.source, pair.target
        assert scenes.held_out(source) and len(source.actors) == 1
        assert pair.source_prompt != pair.target_prompt
        parts = ("background", "style") if pair.kind in ("object", "colour") else (pair.kind,)
        if pair.kind in KINDS[1:]:
            assert replace(target, **{pair.kind: getattr(source, pair.kind)}) == source
        else:
            assert all(getattr(source, part) == getattr(target, part) for part in parts)
            (before,), (after,) = source.actors, target.actors
            assert (before.name == after.name) == (pair.kind == "colour")
            assert (before.x, before.y, before.scale) == (after.x, after.y, after.scale)
        if pair.kind == "colour":
            before, after = (
                {w for w in p.split() if w in COLOURS} for p in (pair.source_prompt, pair.target_prompt)
            )
            assert len(before) == len(after) == 1 and before != after


def test_a_background_target_keeps_the_objects_pixels():
    pair = next(p for p in draw_pairs(6, seed=0) if p.kind == "background" and p.source.style == "plain")
    (before, mask), (after, same) = (scenes.render_frame(s, 0.3) for s in (pair.source, pair.target))
    assert np.array_equal(mask, same)
    assert np.array_equal(before[mask == 1], after[mask == 1]) and not np.array_equal(before, after)


def test_more_colours_than_clips_are_refused():
    with pytest.raises(ValueError, match="0 to 2"):
        draw_pairs(2, colours=3)
    with pytest.raises(ValueError, match="held-out combinations give"):
        draw_pairs(500)
