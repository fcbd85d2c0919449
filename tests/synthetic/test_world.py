"""The drawn world: deterministic, and its captions and masks agree with its pixels."""

from dataclasses import replace

import numpy as np
import pytest

from ctxedit.synthetic import captions, scenes, sprites
from ctxedit.synthetic.samples import SAMPLES
from ctxedit.synthetic.scenes import MOTIONS, Scene
from ctxedit.synthetic.vocabulary import BACKGROUNDS, BY_NAME, COLOURS, GREY_STYLES, STYLES, THINGS


def draw(seed: int = 0, **options) -> Scene:
    return scenes.draw_scene(np.random.default_rng(seed), **options)


def plain(seed: int = 0, **changes) -> Scene:
    return replace(draw(seed, pairs=0.0), style="plain", **changes)


def test_the_world_is_as_wide_as_it_says():
    # The styles and "plain".
    assert (len(THINGS), len(BACKGROUNDS), len(COLOURS), len(STYLES)) == (40, 12, 5, 6 + 1)
    assert len({t.emoji for t in THINGS}) == len(THINGS)


@pytest.mark.parametrize("seed", range(5))
def test_rendering_is_a_function_of_the_seed(seed):
    a, mask_a = scenes.render(draw(seed), 4)
    b, mask_b = scenes.render(draw(seed), 4)
    assert np.array_equal(a, b) and np.array_equal(mask_a, mask_b)
    assert not np.array_equal(a, scenes.render(draw(seed + 100), 4)[0])


@pytest.mark.parametrize("thing", THINGS, ids=lambda t: t.name)
def test_the_mask_is_where_the_object_changes_pixels(thing):
    scene = plain(3)
    scene = replace(scene, actors=(replace(scene.actors[0], name=thing.name, colour=None),))
    empty = replace(scene, actors=(replace(scene.actors[0], x=-5.0),))
    with_object, mask = scenes.render_frame(scene, 0.5)
    without, nothing = scenes.render_frame(empty, 0.5)
    assert nothing.max() == 0
    changed = (with_object.astype(int) - without).__abs__().max(-1) > 8
    assert 0.03 < mask.mean() < 0.5
    assert not changed[mask == 0].any()
    # A few of an object's pixels may happen to look like what is behind them.
    assert changed[mask > 0.9].mean() > 0.7


@pytest.mark.parametrize("motion", MOTIONS)
def test_every_motion_moves(motion):
    frames, masks = scenes.render(plain(5, motion=motion), 24)
    assert frames.shape == (24, 64, 64, 3) and masks.shape == (24, 64, 64)
    assert (frames[0].astype(int) - frames[12]).__abs__().mean() > 0.5
    steps = [(frames[i].astype(int) - frames[i + 1]).__abs__().mean() for i in range(23)]
    assert max(steps) < 30, "no jumps"


@pytest.mark.parametrize("colour", COLOURS)
def test_a_colour_is_seen(colour):
    scene = plain(1, background="snow", motion="turn")
    scene = replace(scene, actors=(replace(scene.actors[0], name="balloon", colour=colour),))
    frame, mask = scenes.render_frame(scene, 0.0)
    r, g, b = frame[mask > 0.95].mean(0)
    strongest = {"red": r > 1.5 * max(g, b), "blue": b > 1.2 * max(r, g), "green": g > 1.3 * max(r, b)}
    strongest |= {"yellow": min(r, g) > 1.3 * b, "purple": min(r, b) > 1.2 * g}
    assert strongest[colour], (r, g, b)


@pytest.mark.parametrize("style", [s for s in STYLES if s != "plain"])
def test_a_style_changes_the_picture_and_only_grey_ones_lose_colour(style):
    scene = plain(2, background="beach")
    before = scenes.render_frame(scene, 0.5)[0].astype(int)
    after = scenes.render_frame(replace(scene, style=style), 0.5)[0].astype(int)
    assert np.abs(before - after).mean() > 5
    # Without colour one channel says all: the others follow from it. At the corners sepia is darker.
    red, blue = after[8:-8, 8:-8, 0].ravel(), after[8:-8, 8:-8, 2].ravel()
    left = blue - np.polyval(np.polyfit(red, blue, 2), red)
    assert left.std() < 3 if style in GREY_STYLES else left.std() > 6


def test_captions_name_what_is_there():
    for seed in range(60):
        rng = np.random.default_rng(seed)
        scene = scenes.draw_scene(rng)
        for text in (scenes.caption(scene), scenes.caption(scene, rng)):
            for actor in scene.actors:
                words = BY_NAME[actor.name].words
                assert any(w in text for w in words), text
                if actor.colour and scene.style not in GREY_STYLES:
                    assert actor.colour in text
            assert any(p in text for p in BACKGROUNDS[scene.background]), text
            assert scene.style == "plain" or scene.style in text


def test_a_colour_nobody_can_see_is_not_said():
    text = captions.word([("car", "red")], "beach", "black and white")
    assert "red" not in text


def test_articles():
    assert captions.word([("elephant", None)], "beach", "plain").startswith("an elephant")
    assert captions.word([("tiger", None)], "beach", "plain").startswith("a tiger")


def test_held_out_combinations_are_never_drawn_for_training():
    trained = [draw(s) for s in range(300)]
    tested = [draw(s, test=True) for s in range(100)]
    assert not any(scenes.held_out(s) for s in trained)
    assert all(scenes.held_out(s) for s in tested)
    assert not {s.key for s in trained} & {s.key for s in tested}


@pytest.mark.parametrize("part", ["object", "background", "style", "colour"])
def test_change_changes_one_part_only(part):
    rng = np.random.default_rng(0)
    for seed in range(30):
        scene = draw(seed)
        if part == "colour" and scene.actors[0].colour is None:
            with pytest.raises(ValueError, match="no colour"):
                scenes.change(scene, rng, part)
            continue
        other = scenes.change(scene, rng, part)
        before = {
            "object": scene.actors[0].name,
            "colour": scene.actors[0].colour,
            "background": scene.background,
            "style": scene.style,
        }
        after = {
            "object": other.actors[0].name,
            "colour": other.actors[0].colour,
            "background": other.background,
            "style": other.style,
        }
        moved = {k for k in before if before[k] != after[k]}
        assert part in moved and moved <= ({part, "colour"} if part == "object" else {part})


def test_sprites_ship_with_the_package():
    for thing in THINGS:
        assert sprites.sprite(thing.name, None, 32).size == (32, 32)


def test_samples_know_their_own_world():
    for sample in SAMPLES:
        assert sample.targets and scenes.caption(sample.scene)
        assert set(sample.targets) <= {"object", "background", "style", "colour"}
