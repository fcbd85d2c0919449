"""The list: what is read, what is refused; the default list."""

import itertools

import numpy as np
import pytest

from ctxedit.bench import drawn
from ctxedit.bench.figures import Measure, Truth
from ctxedit.bench.listing import read_list
from ctxedit.errors import ConfigError, InputError
from ctxedit.media.read import read_frames
from ctxedit.models.clip import ClipScorer
from ctxedit.models.weights import BUILTIN_FOLDER
from ctxedit.synthetic.judge import classify, load_judge
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
        ('name = "again"', "", ConfigError, "the name 'a' occurs twice"),
        ("a tiger in the snow", "a panda", ConfigError, "the target 'a panda' occurs twice"),
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
        said = classify(judge, ideal[:, ::2, ::2])
        right += [answers[k] == v for answers in said for k, v in target.expect.items()]
        source, mask = (read_frames(p, frames=3).frames for p in (clip.path, target.mask or clip.mask))
        changed = np.abs(ideal.astype(int) - source).mean(-1)
        if target.kind in ("object", "colour"):
            assert changed[mask[..., 0] < 8].mean() < 0.2 * changed[mask[..., 0] > 247].mean()
    assert np.mean(right) > 0.8


SEVERAL = """
[[clips]]
path = "a.mp4"
prompt = "two cats"
[[clips.targets]]
prompt = "a red car to the left of a cat"
kind = "object"
changed = 0
expect = {background = "beach"}
composition = {relation = "left of", groups = [{name = "car", colour = "red"}, {name = "cat"}]}
"""


def test_a_composition_is_read(write):
    ((target,),) = (clip.targets for clip in read_list(write(SEVERAL)))
    assert (target.changed, target.composition.relation) == (0, "left of")
    assert [g.name for g in target.composition.groups] == ["car", "cat"]
    ((target,),) = (clip.targets for clip in read_list(write(SEVERAL.replace("changed = 0", ""))))
    assert target.changed is None, "the edit is of the relation"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"car"', '"zebra"', "name = 'zebra'"),
        ("changed = 0", "changed = 2", "changed = 2"),
        ("changed = 0", 'changed = "first"', "changed = 'first'"),
        ('background = "beach"', 'object = "cat"', "expect.object beside a composition"),
        ("composition = {", "composed = {", "unknown key composed"),
        ('relation = "left of", ', 'relation = "near", ', "relation = 'near'"),
    ],
)
def test_bad_compositions_are_refused(write, old, new, said):
    assert SEVERAL.count(old) == 1
    with pytest.raises(ConfigError) as caught:
        read_list(write(SEVERAL.replace(old, new)))
    assert said in caught.value.message and "\n" not in caught.value.message


def test_a_group_that_changes_needs_a_composition_and_a_composition_something_that_changes(write):
    alone = "\n".join(line for line in SEVERAL.splitlines() if not line.startswith("composition"))
    with pytest.raises(ConfigError, match="changed without a composition"):
        read_list(write(alone))
    still = SEVERAL.replace('relation = "left of", ', "").replace("changed = 0", "")
    with pytest.raises(ConfigError, match="neither changed nor a relation"):
        read_list(write(still))


def test_the_list_of_compositions_agrees_with_its_own_labels(tmp_path, monkeypatch):
    monkeypatch.setattr(drawn, "FRAMES", 2)
    assert len(drawn.composition_pairs()) == 46
    place = drawn.default_list(tmp_path / "compositions", 2, world=drawn.COMPOSITIONS)
    clips = read_list(place)
    assert [clip.name for clip in clips] == sorted({p.clip for p in drawn.composition_pairs()})[:2]
    measure = Measure(ClipScorer(BUILTIN_FOLDER / "clip"))
    ideals, sources = [], []
    for clip, target in ((one, target) for one in clips for target in one.targets):
        ideal, source = (read_frames(p, frames=2).frames for p in (target.ideal, clip.path))
        ideals.append(measure(ideal, clip, target, Truth(source)))
        sources.append(measure(source, clip, target, Truth(source)))
        mask = read_frames(target.mask, frames=2).frames[..., 0]
        changed = np.abs(ideal.astype(int) - source).mean(-1)
        assert changed[mask < 8].mean() < 0.2 * changed[mask > 247].mean()
    for key in ("judge_asked", "judge_kept", "judge_all"):
        assert np.mean([row[key] for row in ideals]) >= 0.9, key
    assert np.mean([row["judge_all"] for row in sources]) <= 0.1
    # The unedited clip shows nothing of what is asked, and all that should stay.
    assert np.mean([row["judge_asked"] for row in sources]) <= 0.1
    assert np.mean([row["judge_kept"] for row in sources]) >= 0.9


def test_csv_json_lines_and_folders_are_lists_too(tmp_path):
    for name in ("a.mp4", "b.gif", "b.mp4", "c.avif", "d.heic", "notes.txt", ".hidden.mp4"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "1.png").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    table = tmp_path / "list.csv"
    table.write_text(
        'path,target,kind,name,prompt\na.mp4,"a panda, big",object,one,a tiger\nb.mp4,,,,\n\na.mp4,x,,one,\n'
    )
    one, two = read_list(table, batch=True, targets=("snow",))
    assert (one.name, one.prompt, two.name, two.prompt) == ("one", "a tiger", "b", "")
    assert [(t.prompt, t.kind) for t in one.targets] == [
        ("a panda, big", "object"), ("x", "other"), ("snow", "other"),
    ]  # fmt: skip
    assert [t.prompt for t in two.targets] == ["snow"]
    with pytest.raises(ConfigError, match="no prompt"):
        read_list(table, targets=("snow",))
    lines = tmp_path / "list.jsonl"
    lines.write_text('\n{"path": "a.mp4", "targets": ["x", {"prompt": "y", "kind": "style"}]}\n')
    (clip,) = read_list(lines, batch=True)
    assert [(t.prompt, t.kind) for t in clip.targets] == [("x", "other"), ("y", "style")]
    found = read_list(tmp_path, batch=True, targets=("x",))
    assert [clip.name for clip in found] == ["a", "b.gif", "b.mp4", "c", "d", "frames"]
    assert found[0].path == tmp_path / "a.mp4"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "lists no clips"),
        ("[]", r"must be a table, not \[\]"),
        ('{"path": "a.mp4", "targets": "x"}', "targets must be a list, not 'x'"),
        ("[" * 100_000, "line 1 is not JSON: nested too deeply"),
        (f'{{"path": {10**400}}}', "a number of 401 digits is too large"),
        (r'{"path": "a.mp4", "target": "\ud800"}', r"half a character: \\ud800"),
        ("{", "line 1 is not JSON"),
        ('{"path": "a.mp4", "target": "x", "targets": ["y"]}', "both target and targets"),
        ('{"path": "a.mp4", "target": 3}', "must be a table, not 3"),
        ('{"path": "a.mp4", "goal": "x"}', "unknown key goal"),
    ],
)
def test_broken_json_lines_are_refused_with_their_line(tmp_path, text, said):
    (tmp_path / "a.mp4").write_bytes(b"x")
    (tmp_path / "list.jsonl").write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_list(tmp_path / "list.jsonl", batch=True)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("list.csv", "path;target\na.mp4;x\n", "separates its columns by ';'"),
        ("list.csv", "Path,target\na.mp4,x\n", "unknown column 'Path'"),
        ("list.csv", "path,target\n\na.mp4,x\nb.mp4\n", "line 4 does not have as many cells"),
        ("list.txt", "a.mp4\n", "is not a list: its name ends in .txt"),
    ],
)
def test_tables_that_are_nearly_lists_are_refused(tmp_path, name, text, said):
    (tmp_path / "a.mp4").write_bytes(b"x")
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_list(tmp_path / name, batch=True)


def test_spaces_around_the_names_of_columns_do_not_matter(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"x")
    (tmp_path / "list.csv").write_text("path , target\na.mp4,x\n")
    (clip,) = read_list(tmp_path / "list.csv", batch=True)
    assert [target.prompt for target in clip.targets] == ["x"]


def test_aliases_that_stand_for_millions_are_read_at_once(tmp_path):
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in itertools.pairwise("abcdefghi")]
    (tmp_path / "list.yaml").write_text("\n".join([*lines, "data: *i"]))
    with pytest.raises(ConfigError, match="entry 1 is not an entry of V2VBench"):
        read_list(tmp_path / "list.yaml", batch=True)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="holds no clips"):
        read_list(tmp_path, batch=True, targets=("x",))


LOVEU = """Video name,Our GT caption,Style Change Caption,Object Change Caption,Background Change Caption,\
Multiple Changes Caption,Source
DAVIS Videos:,,,,,,
stunt,A man on a bike,"A man, oil painting",A cat on a bike,A man on the moon,A cat on the moon,x
youtube Videos:,,,,,,
pizza,Pizza,Pizza in ink,,Pizza on Mars,Pizza in ink,
"""


def test_the_list_of_loveu_tgve_is_read_with_the_videos_below_it(tmp_path):
    for name in ("DAVIS_480p/480p_frames/stunt/00000.jpg", "DAVIS_480p/480p_videos/stunt.mp4",
                 "youtube_480p/480p_frames/pizza/00000.jpg"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "LOVEU-TGVE-2023_Dataset.csv").write_text(LOVEU)
    stunt, pizza = read_list(tmp_path / "LOVEU-TGVE-2023_Dataset.csv")
    assert (stunt.name, stunt.prompt) == ("stunt", "A man on a bike")
    assert stunt.path == tmp_path / "DAVIS_480p/480p_videos/stunt.mp4"
    assert pizza.path == tmp_path / "youtube_480p/480p_frames/pizza"
    kinds = [(t.kind, t.prompt) for t in stunt.targets]
    assert kinds == [
        ("style", "A man, oil painting"), ("object", "A cat on a bike"), ("background", "A man on the moon"),
        ("other", "A cat on the moon"),
    ]  # fmt: skip
    assert [(t.kind, t.prompt) for t in pizza.targets] == [
        ("style", "Pizza in ink"), ("background", "Pizza on Mars"),
    ]  # fmt: skip
    (tmp_path / "DAVIS_480p/480p_videos/stunt.mp4").unlink()
    (tmp_path / "DAVIS_480p/480p_frames/stunt/00000.jpg").unlink()
    with pytest.raises(InputError, match="line 3: there is no video 'stunt'"):
        read_list(tmp_path / "LOVEU-TGVE-2023_Dataset.csv")


@pytest.mark.parametrize("suffix", [".json", ".yaml"])
def test_the_list_of_v2vbench_is_read(tmp_path, suffix):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "hike.mp4").write_bytes(b"x")
    edits = '[{"prompt": "a superman hikes"}, {"prompt": "pixel art"}]'
    (tmp_path / f"list{suffix}").write_text('{"data": [{"video_id": "hike", "edit": %s}]}' % edits)  # noqa: UP031
    (clip,) = read_list(tmp_path / f"list{suffix}", batch=True)
    assert (clip.name, clip.prompt, clip.path) == ("hike", "", tmp_path / "videos" / "hike.mp4")
    assert [t.prompt for t in clip.targets] == ["a superman hikes", "pixel art"]
    with pytest.raises(ConfigError, match="has no prompt"):
        read_list(tmp_path / f"list{suffix}")
    for text, said in (("{", "is not"), ("[]", "lists no clips"), ("[3]", "not an entry of V2VBench")):
        (tmp_path / f"list{suffix}").write_text(text)
        with pytest.raises(ConfigError, match=said):
            read_list(tmp_path / f"list{suffix}", batch=True)
