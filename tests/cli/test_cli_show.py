"""What made a file stands in it: ``ctxedit show`` tells it, and the command that makes it again."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from asking import TARGET, call
from PIL import Image, ImageSequence

KINDS = ("mp4", "mov", "mkv", "webm", "gif", "folder", "png", "jpg", "webp", "tiff")


@pytest.fixture(scope="module")
def edited(made, runs, tmp_path_factory):
    """An edit with a changed setting, an option of the output, and another seed than its tuning."""
    path = tmp_path_factory.mktemp("edited") / "e.gif"
    changes = ("--set", "edit.guidance=5", "--seed", 3, "--output-size", "source")
    answer = call("edit", TARGET, "--runs", runs, "-o", path, *changes)
    assert answer.code == 0, answer.err
    return path


def again(answer):
    """The commands that ``show`` prints, as arguments for ``main``."""
    return [shlex.split(line)[1:] for line in answer.table["commands"]]


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_carries_text_and_the_same_pixels(tmp_path, kind, frames_of):
    from fractions import Fraction

    from ctxedit.media.embed import embedded
    from ctxedit.media.write import write_clip, write_image

    frames = np.random.default_rng(0).integers(0, 255, (3, 32, 32, 3), np.uint8)
    text = '{"target":"a “panda” = x; \\\\ #' + "é" * 400 + '"}'
    text = text.encode("ascii", "backslashreplace").decode()
    plain, told = (tmp_path / f"{n}{'' if kind == 'folder' else f'.{kind}'}" for n in "ab")
    for path, about in ((plain, None), (told, text)):
        if kind in ("png", "jpg", "webp", "tiff"):
            write_image(path, frames[0], about=about)
        else:
            write_clip(path, frames, Fraction(8), about=about)
    assert embedded(plain) is None and embedded(told) == text
    count = 1 if kind in ("png", "jpg", "webp", "tiff") else 3
    assert (frames_of(plain, count) == frames_of(told, count)).all()


@pytest.mark.parametrize("suffix", ["mp4", "webm", "gif"])
def test_uneven_timing_keeps_the_text(tmp_path, suffix):
    from fractions import Fraction

    from ctxedit.media.embed import embedded
    from ctxedit.media.write import write_clip

    frames = np.random.default_rng(0).integers(0, 255, (3, 32, 32, 3), np.uint8)
    lasting = [Fraction(1, 10), Fraction(3, 10), Fraction(2, 10)]
    path = write_clip(tmp_path / f"u.{suffix}", frames, Fraction(5), durations=lasting, about="told")
    assert embedded(path) == "told"


def test_sound_keeps_the_text(tmp_path):
    from fractions import Fraction

    import imageio_ffmpeg

    from ctxedit.media.embed import embedded
    from ctxedit.media.probe import probe
    from ctxedit.media.write import write_clip

    source = tmp_path / "s.mp4"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "lavfi", "-i", "testsrc=s=64x64:d=1"]
    command += ["-f", "lavfi", "-i", "sine=d=1", "-metadata", "comment=of the source", str(source)]
    subprocess.run(command, check=True)
    frames = np.zeros((5, 64, 64, 3), np.uint8)
    path = write_clip(tmp_path / "o.mp4", frames, Fraction(5), audio_from=source, about="told")
    assert probe(path).has_audio and embedded(path) == "told"
    silent = write_clip(tmp_path / "p.mp4", frames, Fraction(5), audio_from=source)
    assert embedded(silent) is None


def test_show_tells_what_an_edit_was_made_of(ctxedit, made, clip):
    video = made.out.strip()
    facts = ctxedit("show", video, "--json").table
    assert (facts["target"], facts["preset"], facts["seed"]) == (TARGET, "contextdiff", 0)
    changed = {"clip.frames": 4, "tune.steps": 2, "invert.steps": 4, "edit.steps": 4}
    assert facts["settings"].items() >= changed.items() and "device" not in facts["settings"]
    assert facts["source"]["name"] == clip.name and facts["model"] == "builtin" and facts["prompt"]
    told = {k: v for k, v in facts.items() if k not in ("file", "commands")}  # where things are here
    assert str(clip.parent) not in str(told)
    text = ctxedit("show", video).out
    assert TARGET in text and "tune.steps = 2" in text and "ctxedit run" in text


def test_side_by_side_and_sheet_tell_the_same(ctxedit, made):
    video = made.out.strip()
    stem = video.removesuffix(".mp4")
    names = (video, f"{stem}-side-by-side.mp4", f"{stem}-sheet.png")
    first, *others = [ctxedit("show", path, "--json").table["commands"] for path in names]
    assert others == [first, first]


def test_the_command_makes_the_same_edit_again(ctxedit, made, clip, tmp_path, monkeypatch):
    monkeypatch.chdir(clip.parent)
    video = Path(made.out.strip())
    (arguments,) = again(ctxedit("show", video, "--json"))
    assert clip.name in arguments
    answer = ctxedit(*arguments, "--runs", tmp_path)
    assert answer.code == 0, answer.err
    assert Path(answer.out.strip()).read_bytes() == video.read_bytes()


def test_the_source_is_found_where_the_run_found_it(ctxedit, made, runs, tmp_path, clip, monkeypatch):
    monkeypatch.chdir(tmp_path)
    video = Path(made.out.strip())
    elsewhere = shutil.copy(video, tmp_path / "copy.mp4")
    (arguments,) = again(ctxedit("show", video, "--json"))
    assert arguments[:2] == ["run", str(clip)]
    assert again(ctxedit("show", elsewhere, "--json"))[0][1] == clip.name
    monkeypatch.setenv("CTXEDIT_RUNS", str(runs))
    assert again(ctxedit("show", elsewhere, "--json"))[0][1] == str(clip)
    monkeypatch.chdir(clip.parent.parent)
    assert again(ctxedit("show", video, "--json"))[0][1] == f"{clip.parent.name}/{clip.name}"


def test_control_characters_are_shown_and_not_sent_to_the_terminal(ctxedit, made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "red\x1b[31m\nline\u202e.mp4"
    shutil.copy(made.out.strip(), name)
    answer = ctxedit("show", name)
    assert r"red\x1b[31m\nline\u202e.mp4" in answer.out and not set("\x1b\u202e") & set(answer.out)
    answer = ctxedit("show", f"no{name}")
    assert answer.code == 3 and r"nored\x1b[31m" in answer.err and "\x1b" not in answer.err
    edited = ctxedit("edit", TARGET, "--runs", Path(made.out.strip()).parents[2], "-o", name, "-y")
    assert edited.code == 0 and edited.out == f"{name}\n"  # a path on stdout is the path
    (line,) = ctxedit("show", name, "--json").table["commands"]
    shown = subprocess.run(["bash", "-c", f"printf %s {line.split()[-1]}"], capture_output=True, check=True)
    assert shown.stdout.decode() == name


def test_a_seed_of_its_own_takes_two_commands(ctxedit, edited, clip, monkeypatch, tmp_path):
    monkeypatch.chdir(clip.parent)
    tune, edit = again(ctxedit("show", edited, "--json"))
    assert (tune[0], edit[0]) == ("tune", "edit") and "--output-size" in edit
    assert tune[tune.index("--seed") + 1] == "0" and edit[edit.index("--seed") + 1] == "3"
    assert ctxedit(*tune, "--runs", tmp_path).code == 0
    answer = ctxedit(*edit, "--runs", tmp_path, "-o", tmp_path / "e.gif")
    assert answer.code == 0, answer.err
    frames = []
    for path in (edited, tmp_path / "e.gif"):
        with Image.open(path) as gif:
            frames.append(np.stack([f.convert("RGB") for f in ImageSequence.Iterator(gif)]))
    assert (frames[0] == frames[1]).all()


def test_no_metadata_leaves_it_out(ctxedit, made, runs, tmp_path):
    path = tmp_path / "plain.mp4"
    assert ctxedit("edit", TARGET, "--runs", runs, "-o", path, "--no-metadata").code == 0
    for file in (path, tmp_path / "plain-side-by-side.mp4", tmp_path / "plain-sheet.png"):
        answer = ctxedit("show", file)
        assert answer.code == 3 and "does not say how it was made" in answer.err


def test_images_carry_it_too(ctxedit, tmp_path):
    for name, more in (("i.png", ()), ("i.jpg", ()), ("n.png", ("--no-metadata",))):
        made = ctxedit("t2i", "a tiger on the beach", "--steps", 2, "--seed", 5, "-o", tmp_path / name, *more)
        assert made.code == 0, made.err
    (command,) = again(ctxedit("show", tmp_path / "i.png", "--json"))
    assert command[-2:] == ["--output", "i.png"]
    assert ctxedit(*command, "-o", tmp_path / "again.png").code == 0
    pixels = [np.asarray(Image.open(tmp_path / n)) for n in ("i.png", "again.png", "n.png")]
    assert (pixels[0] == pixels[1]).all() and (pixels[0] == pixels[2]).all()
    assert again(ctxedit("show", tmp_path / "i.jpg", "--json"))[0] == [*command[:-1], "i.jpg"]
    assert ctxedit("show", tmp_path / "n.png").code == 3


def test_a_pipe_is_not_waited_for_and_a_run_is_named(ctxedit, tmp_path):
    os.mkfifo(tmp_path / "clip.mp4")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.toml").touch()
    for name, said in (("clip.mp4", "is a FIFO"), ("run", "hint: ctxedit runs show")):
        answer = ctxedit("show", tmp_path / name)
        assert answer.code == 3 and said in answer.err


def test_files_of_others_and_damaged_facts_are_refused(ctxedit, clip, tmp_path):
    from ctxedit.media.write import write_image

    picture = np.zeros((8, 8, 3), np.uint8)
    damaged = write_image(tmp_path / "d.png", picture, about='{"ctxedit":"1","kind":"edit"}')
    for path in (clip, damaged, write_image(tmp_path / "o.png", picture, about="[1]")):
        answer = ctxedit("show", path)
        assert answer.code == 3 and answer.err.startswith("error: ") and "Traceback" not in answer.err
    cut = shutil.copy(clip, tmp_path / "cut.mp4")
    with open(cut, "r+b") as file:
        file.truncate(100)
    assert ctxedit("show", cut).code == 3
    assert ctxedit("show", tmp_path / "missing.mp4").code == 3


def test_a_folder_of_clips_does_not_take_results_for_clips(ctxedit, made, clip, tmp_path):
    video = Path(made.out.strip())
    for name in (video.name, f"{video.stem}-side-by-side.mp4", f"{video.stem}-sheet.png"):
        shutil.copy(video.with_name(name), tmp_path)
    results = sorted(file.name for file in tmp_path.iterdir())
    answer = ctxedit("batch", tmp_path, TARGET, "--dry-run")
    assert answer.code == 2 and "holds only results of ctxedit" in answer.err, answer.err
    shutil.copy(clip, tmp_path)
    answer = ctxedit("batch", tmp_path, TARGET, "--dry-run", "--json")
    assert answer.code == 0, answer.err
    assert f"left out, made by ctxedit: {', '.join(results)}" in answer.err
    listed = tmp_path / "list.csv"
    listed.write_text(f"path,target\n{clip},x\n{results[-1]},x\n")
    assert ctxedit("batch", listed, "--dry-run").code == 0, "what a list names is a clip"
