"""The list: what is read, what is refused; the default list."""

import numpy as np
import pytest

from ctxedit.bench import drawn
from ctxedit.bench.listing import read_list
from ctxedit.errors import ConfigError, InputError
from ctxedit.media.read import read_frames
from ctxedit.models.weights import BUILTIN_FOLDER
from ctxedit.synthetic.judge import ask, load_judge
from ctxedit.synthetic.pairs import draw_pairs

GOOD = """
[[clips]]
path = "a.mp4"
prompt = "a tiger"
mask = "m.png"

[[clips.targets]]
prompt = "a panda"
kind = "object"
ideal = "a.mp4"
expect = { object = "panda", colour = "none" }

[[clips.targets]]
prompt = "a tiger in the snow"

[[clips]]
name = "again"
path = "a.mp4"
prompt = "a tiger"
[[clips.targets]]
prompt = "a panda"
"""


@pytest.fixture()
def write(tmp_path):
    for name in ("a.mp4", "m.png"):
        (tmp_path / name).write_bytes(b"x")

    def written(text):
        (tmp_path / "list.toml").write_text(text)
        return tmp_path / "list.toml"

    return written


def test_a_list_is_read(write, tmp_path):
    first, second = read_list(write(GOOD))
    assert (first.name, second.name, first.prompt) == ("a", "again", "a tiger")
    assert first.path == tmp_path / "a.mp4" and first.mask == tmp_path / "m.png" and second.mask is None
    panda, snow = first.targets
    assert (panda.kind, snow.kind) == ("object", "other") and panda.ideal == tmp_path / "a.mp4"
    assert panda.expect == {"object": "panda", "colour": "none"} and snow.expect == {}


@pytest.mark.parametrize(
    ("old", "new", "error", "said"),
    [
        ('path = "a.mp4"\nprompt', "prompt", ConfigError, "clip 1 has no path"),
        ('"m.png"', '"gone.png"', InputError, "gone.png does not exist"),
        ('path = "a.mp4"\nprompt', 'path = "b.mp4"\nprompt', InputError, "b.mp4 does not exist"),
        ('prompt = "a tiger"\nmask', "mask", ConfigError, "has no prompt"),
        ('prompt = "a panda"\nkind', 'prompt = " "\nkind', InputError, "target 1: the prompt is empty"),
        ('prompt = "a panda"\nkind', 'prompt = 3\nkind', ConfigError, "prompt = 3"),
        ('"object"\nideal', '"shape"\nideal', ConfigError, "kind = 'shape'"),
        ('object = "panda"', 'object = "zebra"', ConfigError, "expect.object = 'zebra'"),
        ('object = "panda"', 'mood = "calm"', ConfigError, "unknown key mood"),
        ("mask =", "masks =", ConfigError, "unknown key masks"),
        ("kind =", "sort =", ConfigError, "unknown key sort"),
        ('name = "again"', "", ConfigError, "the name 'a' is there twice"),
        ("a tiger in the snow", "a panda", ConfigError, "the target 'a panda' is there twice"),
        ("[[clips]]\npath", "frames = 3\n[[clips]]\npath", ConfigError, "unknown key frames"),
        ("[[clips]]\nname", "[[clips]\nname", ConfigError, "TOML"),
    ],
)  # fmt: skip
def test_bad_lists_are_refused(write, old, new, error, said):
    assert GOOD.count(old) >= 1
    with pytest.raises(error) as caught:
        read_list(write(GOOD.replace(old, new, 1)))
    assert said in f"{caught.value.message} {caught.value.hint}" and "\n" not in caught.value.message


@pytest.mark.parametrize("text", ["", "clips = []", "clips = 3", '[[clips]]\npath = "a.mp4"\nprompt = "x"'])
def test_a_list_of_nothing_is_refused(write, text):
    with pytest.raises(ConfigError, match=r"lists no clips|has no targets"):
        read_list(write(text))


def test_no_list(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        read_list(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="folder"):
        read_list(tmp_path)


def test_the_default_list_has_as_many_pairs_as_the_paper_has_videos():
    pairs = drawn.default_pairs()
    assert len(pairs) >= 42 and {p.kind for p in pairs} == {"object", "background", "style", "colour"}
    assert pairs == drawn.default_pairs() and len({p.clip for p in pairs}) == drawn.CLIPS


def test_a_drawn_list_agrees_with_its_own_labels(tmp_path, monkeypatch):
    monkeypatch.setattr(drawn, "FRAMES", 3)
    monkeypatch.setattr(drawn, "default_pairs", lambda seed: draw_pairs(3, seed, 1))
    place = drawn.default_list(tmp_path / "clips", 1, 5)
    assert drawn.is_drawn(tmp_path / "clips", 1) and not drawn.is_drawn(tmp_path / "clips")
    stamp = place.stat().st_mtime_ns
    assert drawn.default_list(tmp_path / "clips", 1).stat().st_mtime_ns == stamp, "it is not drawn twice"
    (clip,) = read_list(place)
    judge = load_judge(BUILTIN_FOLDER / "judge")
    assert [t.kind for t in clip.targets] == ["object", "background", "style", "colour"]
    right = []
    for target in clip.targets:
        ideal = read_frames(target.ideal, frames=3).frames
        said = ask(judge, ideal[:, ::2, ::2])
        right += [answers[k] == v for answers in said for k, v in target.expect.items()]
        source, mask = (read_frames(p, frames=3).frames for p in (clip.path, target.mask or clip.mask))
        changed = np.abs(ideal.astype(int) - source).mean(-1)
        if target.kind in ("object", "colour"):
            assert changed[mask[..., 0] < 8].mean() < 0.2 * changed[mask[..., 0] > 247].mean()
    assert np.mean(right) > 0.8
