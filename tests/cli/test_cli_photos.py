"""Clips shorter than the preset wants, and photos, which are clips of one frame."""

from fractions import Fraction

import pytest
from asking import call
from PIL import Image

from ctxedit.media.write import write_clip, write_image
from ctxedit.synthetic import scenes
from ctxedit.synthetic.scenes import Actor, Scene

TARGET = "a panda on the beach"


@pytest.fixture(scope="module")
def pictures():
    tiger = Actor("tiger", None, 0.5, 0.86, 0.56)
    return scenes.render(Scene((tiger,), "beach", "plain", "walk", -1, 1.0, (0.5,) * 9), 9, 96)[0]


@pytest.fixture()
def short(tmp_path, pictures):
    """Writes a clip of so many frames."""
    return lambda count: write_clip(tmp_path / f"c{count}.mp4", pictures[:count], Fraction(8))


@pytest.mark.parametrize(
    ("count", "more", "used"),
    [
        (9, (), (8, 1)),
        (8, ("--set", "tune.steps=1"), (8, 1)),
        (5, (), (5, 1)),
        (1, (), (1, 1)),
        (9, ("--start", 4), (5, 1)),
        (9, ("--stride", 2), (5, 2)),
        (9, ("--frames", 6), (6, 1)),
        (9, ("--frames", 4), (4, 2)),
    ],
)
def test_a_short_clip_is_worked_on_whole_and_that_is_said(ctxedit, short, tmp_path, count, more, used):
    preset = tmp_path / "mine.toml"
    preset.write_text('base = "contextdiff"\n[builtin.clip]\nframes = 8\nstride = 2\n')
    call = ("run", short(count), TARGET, "--prompt", "a tiger", "--runs", tmp_path, "--preset", preset)
    answer = ctxedit(*call, *more, "--dry-run", "--json")
    assert answer.code == 0, answer.err
    assert answer.table["plan"]["frames"] == used[0]
    wanted = more[1] if "--frames" in more else 8
    said = (
        f"using {used[0]} {'frame' if used[0] == 1 else 'frames'} with stride {used[1]} instead of {wanted}"
    )
    assert (said in answer.err) == (used != (4, 2))


@pytest.mark.parametrize(
    "more", [("--frames", 16), ("--frames", 6, "--stride", 2), ("--set", "clip.frames=12")]
)
@pytest.mark.parametrize("command", ["run", "tune", "caption"])
def test_a_number_that_was_given_is_an_error(ctxedit, short, tmp_path, more, command):
    words = [TARGET] if command == "run" else []
    answer = ctxedit(command, short(8), *words, *more)
    assert answer.code == 3 and "has 8 frames" in answer.err and "would fit" in answer.err


@pytest.fixture(scope="module")
def photo_run(tmp_path_factory, pictures):
    folder = tmp_path_factory.mktemp("photo")
    photo = write_image(folder / "tiger.jpg", pictures[0])
    few = ("--tune-steps", 1, "--steps", 2, "--runs", folder / "runs")
    answer = call("run", photo, TARGET, "--prompt", "a tiger on the beach", *few, "--json")
    assert answer.code == 0, answer.err
    return folder, answer


def test_a_photo_gives_photos(photo_run, ctxedit):
    folder, answer = photo_run
    (edit,) = answer.table["edits"]
    for name in ("video", "side_by_side", "sheet"):
        assert edit[name].endswith(".png")
        Image.open(edit[name]).verify()
    assert "tiger.jpg is an image: a clip of 1 frame" in answer.err
    assert not list(folder.rglob("*.mp4"))
    assert ctxedit("show", edit["video"], "--json").table["target"] == TARGET


@pytest.mark.parametrize(
    ("name", "code"),
    [("o.jpg", 0), ("o.png", 0), ("o.tif", 0), ("o.bmp", 0), ("o.ppm", 2), ("o.avi", 2)],
)
def test_a_photo_is_written_as_asked(photo_run, ctxedit, tmp_path, name, code):
    folder, _ = photo_run
    answer = ctxedit(
        "edit", TARGET, "--runs", folder / "runs", "-o", tmp_path / name, "--output-size", "source"
    )
    assert answer.code == code, answer.err
    if code == 0:
        with Image.open(tmp_path / name) as made:
            assert made.size == (96, 96)
        again = ctxedit("edit", TARGET, "--runs", folder / "runs", "-o", tmp_path / name, "--guidance", 2)
        assert again.code == 6 and "exists already" in again.err


def test_a_clip_of_several_frames_is_no_image(ctxedit, short, tmp_path):
    answer = ctxedit("run", short(5), TARGET, "--prompt", "a tiger", "-o", tmp_path / "o.png", "--dry-run")
    assert answer.code == 2 and "clips are not written as .png" in answer.err


def test_the_api_fits_as_well(short, tmp_path):
    import ctxedit
    from ctxedit.errors import InputError

    fast = {"tune": {"steps": 0}}
    clip = short(5)
    run = ctxedit.tune(clip, "a tiger", config=fast, runs=tmp_path)
    assert (run.config.clip.frames, run.config.clip.stride) == (5, 1)
    with pytest.raises(InputError, match="has 5 frames"):
        ctxedit.tune(clip, "a tiger", config={**fast, "clip": {"frames": 6}}, runs=tmp_path)
