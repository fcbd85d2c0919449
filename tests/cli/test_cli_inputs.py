"""A person's files: no output takes an input's place, names fit, only regular files are opened."""

import json
import os
import shutil

import numpy as np
import pytest

FEW = ("--frames", "2", "--stride", "1", "--steps", "2", "--tune-steps", "1", "--prompt", "a tiger")


def told(answer, code):
    lines = answer.err.strip().splitlines()
    assert answer.code == code, answer.err
    assert "Traceback" not in answer.err and lines[-1].startswith("hint: ")
    (error,) = [line for line in lines if line.startswith("error: ")]
    return error


@pytest.fixture()
def edit(ctxedit, clip, tmp_path, no_weights, monkeypatch):
    """``run`` on the clip in an empty folder, where weights must not be loaded."""
    monkeypatch.chdir(tmp_path)

    def call(*more, clip=clip):
        return ctxedit("run", clip, "--target", "a cat", *FEW, "--runs", tmp_path / "runs", *more)

    return call


@pytest.fixture()
def own(clip, tmp_path):
    """A copy of the clip in the person's folder."""
    return shutil.copy(clip, tmp_path / "own.mp4")


def named_as(how, own, folder):
    """Another name of a file."""
    other = folder / "other.mp4"
    if how == "symbolic link":
        other.symlink_to(own)
    elif how == "hard link":
        os.link(own, other)
    elif how == "folder's link":
        (folder / "away").symlink_to(folder)
        other = folder / "away" / "own.mp4"
    elif how == "relative":
        other = os.path.join(".", "x", "..", "own.mp4")
        (folder / "x").mkdir()
    else:
        other = own
    return other


@pytest.mark.parametrize("how", ["itself", "relative", "symbolic link", "hard link", "folder's link"])
@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_the_clip_is_never_the_output(edit, own, tmp_path, how, dry):
    before = own.read_bytes()
    answer = edit("-o", named_as(how, own, tmp_path), "-y", *dry, clip=own)
    assert "is the clip" in told(answer, 6) and answer.out == ""
    assert own.read_bytes() == before and not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["out-side-by-side.mp4", "out-sheet.png"])
def test_what_lies_beside_the_output_is_never_an_input(edit, clip, own, tmp_path, name):
    os.link(own, tmp_path / name)
    assert name in told(edit("-o", "out.mp4", "-y", clip=own), 6)
    (tmp_path / name).unlink()
    shutil.copy(clip, tmp_path / name)
    assert "is the mask" in told(edit("-o", "out.mp4", "-y", "--mask", tmp_path / name), 6)
    answer = edit("-o", "out.mp4", "-y", "--preset", "controlvideo", "--control", tmp_path / name)
    assert "is the control map" in told(answer, 6)


def test_settings_and_models_are_never_the_output(edit, ctxedit, tmp_path):
    (tmp_path / "mine.toml").write_text('base = "ddim"\n')
    os.link(tmp_path / "mine.toml", tmp_path / "out.mp4")
    for option in ("--config", "--preset"):
        (tmp_path / "mine.toml").write_text("seed = 1\n" if option == "--config" else 'base = "ddim"\n')
        assert "is the settings file" in told(edit("-o", "out.mp4", "-y", option, "mine.toml"), 6)
    assert "copy" in told(ctxedit("presets", "cp", "mine.toml", "mine.toml", "-y"), 6)
    (tmp_path / "base.toml").write_text('base = "ddim"\n')
    (tmp_path / "mine.toml").write_text('base = "base.toml"\n')
    os.link(tmp_path / "base.toml", tmp_path / "pic.png")
    answer = ctxedit("t2i", "a cat", "--preset", "mine.toml", "-o", "pic.png", "-y")
    assert "is the settings file" in told(answer, 6)


@pytest.fixture()
def stills(tmp_path):
    from PIL import Image

    folder = tmp_path / "stills"
    folder.mkdir()
    for number in range(4):
        pixels = np.full((64, 64, 3), 40 * number, np.uint8)
        Image.fromarray(pixels).save(folder / f"frame_{number:04d}.png")
    return folder


def test_a_folder_of_stills_is_neither_replaced_nor_added_to(edit, ctxedit, stills, tmp_path):
    before = sorted(path.name for path in stills.iterdir())
    assert "is the clip" in told(edit("-o", f"{stills}/", "-y", clip=stills), 6)
    assert "is inside the clip" in told(edit("-o", stills / "out.mp4", "-y", clip=stills), 6)
    assert "is inside the clip" in told(edit("--runs", stills / "runs", clip=stills), 6)
    os.link(stills / "frame_0000.png", tmp_path / "out-sheet.png")
    assert "is the clip" in told(edit("-o", "out.mp4", "-y", clip=stills), 6)
    answer = edit("-o", stills, "-y", clip=shutil.copy(stills / "frame_0000.png", stills / "own.png"))
    assert "inside the output" in told(answer, 6)
    (stills / "own.png").unlink()
    assert sorted(path.name for path in stills.iterdir()) == before


def test_an_edit_of_a_run_keeps_its_clip_too(ctxedit, made, clip, runs, no_weights, tmp_path):
    (folder,) = runs.iterdir()
    before = clip.read_bytes()
    answer = ctxedit("edit", "--run", folder, "--target", "a cat", "-o", clip, "-y")
    assert "is the clip" in told(answer, 6) and clip.read_bytes() == before
    os.link(clip, tmp_path / "out-heatmaps.mp4")
    answer = ctxedit(
        "edit", "--run", folder, "--target", "a cat", "-o", tmp_path / "out.mp4", "-y", "--heatmaps"
    )
    assert "heat maps" in told(answer, 6)


def test_a_comparison_keeps_its_list_and_clips(ctxedit, clip, tmp_path, no_weights):
    out = tmp_path / "bench"
    (out / "references").mkdir(parents=True)
    text = '[[clips]]\npath = "{}"\nprompt = "a tiger"\n[[clips.targets]]\nprompt = "a cat"\n'
    (out / "table.csv").write_text(f"path,prompt,target\n{clip},a tiger,a cat\n")
    answer = ctxedit("bench", out / "table.csv", "--presets", "ddim", "--out", out)
    assert "is the list" in told(answer, 6)
    inside = shutil.copy(clip, out / "references" / "tiger-source.mp4")
    (tmp_path / "list.toml").write_text(text.format(inside))
    answer = ctxedit("bench", tmp_path / "list.toml", "--presets", "ddim", "--out", out)
    assert "is inside" in told(answer, 6) and inside.exists()


def test_a_training_keeps_its_recipe_and_data(ctxedit, make_recipe, stills, tmp_path):
    out = tmp_path / "weights"
    recipe = make_recipe("autoencoder")
    folder = ctxedit("train", recipe, "--out", out, "--dry-run", "--json").table["weights"]
    shutil.copytree(stills, folder)
    inside = shutil.copy(recipe, os.path.join(folder, "mine.toml"))
    assert "is inside the weights" in told(ctxedit("train", inside, "--out", out, "-y"), 6)
    assert "is the data" in told(ctxedit("train", recipe, "--out", out, "-y", "--data", folder), 6)


@pytest.mark.parametrize("key", ["path", "mask", "control", "ideal"])
def test_a_list_that_names_a_fifo(ctxedit, clip, tmp_path, key, no_weights):
    os.mkfifo(tmp_path / "fifo")
    named = {"path": clip} | ({key: tmp_path / "fifo"} if key != "ideal" else {})
    lines = [f'{name} = "{path}"' for name, path in named.items()]
    ideal = f'ideal = "{tmp_path / "fifo"}"' if key == "ideal" else ""
    text = ["[[clips]]", 'prompt = "a tiger"', *lines, "[[clips.targets]]", 'prompt = "a cat"', ideal]
    (tmp_path / "list.toml").write_text("\n".join(text))
    answer = ctxedit("bench", tmp_path / "list.toml", "--presets", "ddim", "--out", tmp_path / "out")
    assert "is a FIFO" in told(answer, 3)


@pytest.mark.parametrize("letter", ["a", "é", "虎"])
def test_names_are_measured_in_bytes_and_with_what_is_added(edit, ctxedit, letter, tmp_path):
    size = len(letter.encode())
    fits = (255 - len("-side-by-side.mp4")) // size
    assert "too long" in told(edit("-o", f"{letter * (fits + 1)}.mp4"), 6)
    assert "too long" in told(ctxedit("t2i", "a cat", "-o", letter * 300 + ".png"), 6)
    assert "too long" in told(edit("--runs", letter * 300), 6)
    assert edit("-o", f"{letter * fits}.mp4", "--dry-run").code == 0
    assert not any(tmp_path.iterdir())


def test_a_long_name_is_written_whole(tmp_path):
    from ctxedit.media.temporary import atomic

    path = tmp_path / ("虎" * 83 + ".txt")
    with atomic(path) as temporary:
        temporary.write_text("x")
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_paths_too_long_for_the_system(edit, tmp_path):
    deep = tmp_path.joinpath(*["d" * 200] * 20)
    assert "too long" in told(edit("-o", deep / "x.mp4"), 6)
    assert "too long" in told(edit("--runs", deep), 6)
    told(edit(clip=deep / "clip.mp4"), 3)
    told(edit("--mask", deep / "mask.png"), 3)


@pytest.mark.parametrize("option", ["clip", "--mask", "--config", "-o"])
def test_a_name_that_is_not_utf8_is_told_in_full(edit, clip, tmp_path, option):
    name = os.fsdecode(b"caf\xe9.mp4")
    answer = edit(clip=name) if option == "clip" else edit(option, name)
    assert r"caf\xe9.mp4 is not UTF-8" in told(answer, 3)
    assert json.loads(edit("--json", clip=name).out)["exit_code"] == 3


def test_a_folder_whose_name_is_not_utf8(edit, clip, tmp_path, monkeypatch):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    shutil.copy(clip, folder / "clip.mp4")
    monkeypatch.chdir(folder)
    assert r"caf\xe9/clip.mp4" in told(edit(clip="clip.mp4"), 3)


@pytest.mark.parametrize("option", ["clip", "--mask", "--control", "--config", "--preset", "--model"])
@pytest.mark.parametrize("kind", ["fifo", "loop", "below a file", "zero", "folder", "refused"])
def test_what_is_no_regular_file_is_refused(edit, tmp_path, option, kind, monkeypatch):
    suffix = {"--config": ".toml", "--preset": ".toml", "--model": ".safetensors"}.get(option, ".mp4")
    path = tmp_path / f"it{suffix}"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "zero":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "refused":
        refuse(path, monkeypatch)
    else:
        path.write_text("in the way")
        path = path / f"it{suffix}"
    more = ("--preset", "controlvideo") if option == "--control" else ()
    answer = edit(clip=path) if option == "clip" else edit(option, path, *more)
    told(answer, {".toml": 2, ".safetensors": 4}.get(suffix, 3))
    assert not (tmp_path / "runs").exists()


def refuse(path, monkeypatch):
    """The system refuses to look at this path, as below a folder of another user's."""
    real = os.stat

    def stat(name, *args, **kwargs):
        if isinstance(name, (str, os.PathLike)) and os.fspath(name) == str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return real(name, *args, **kwargs)

    monkeypatch.setattr(os, "stat", stat)


def test_a_settings_file_of_a_gigabyte_is_not_read(edit, tmp_path):
    with (tmp_path / "huge.toml").open("wb") as file:
        file.truncate(1 << 30)
    assert "1024 MiB" in told(edit("--config", "huge.toml"), 2)


@pytest.mark.parametrize(
    "text",
    [
        b"x = " + b"[" * 2000 + b"]" * 2000,
        b"x = " + b"{a=" * 2000 + b"1" + b"}" * 2000,
        b".".join([b"a"] * 2000) + b" = 1",
        b"seed = " + b"9" * 5000,
        b"name = 'caf\xe9'",
        b"\x00\xff\xfe",
        b"seed = 1e400",
        b"fusion = 3",
        b"[fusion.word_weights]\ntiger = 'much'",
    ],
)
def test_settings_of_nonsense_are_2(edit, tmp_path, text):
    (tmp_path / "bad.toml").write_bytes(text)
    for option in ("--config", "--preset"):
        told(edit(option, "bad.toml"), 2)


@pytest.mark.parametrize("value", ["[" * 2000, "[" * 2000 + "]" * 2000, "9" * 5000, "{a=" * 500])
def test_options_and_variables_of_nonsense_are_2(edit, value, monkeypatch):
    told(edit("--set", f"seed={value}"), 2)
    monkeypatch.setenv("CTXEDIT_SEED", value)
    told(edit(), 2)


@pytest.mark.parametrize("name", [".", "/"])
def test_an_output_without_a_name_is_2(edit, name):
    assert "names no file" in told(edit("-o", name), 2)


@pytest.mark.parametrize("name", ["-", "https://host/out.mp4", "s3://bucket/out.mp4"])
def test_an_output_that_is_no_file_is_2(edit, ctxedit, name):
    assert "is not a file" in told(edit("-o", name), 2)
    assert "is not a file" in told(ctxedit("t2i", "a cat", "-o", name), 2)


@pytest.mark.parametrize("option", ["--stride", "--frames"])
@pytest.mark.parametrize("value", [0, -1])
def test_a_span_of_a_scored_clip_is_never_guessed(ctxedit, clip, option, value, no_weights):
    told(ctxedit("eval", "--video", clip, "--prompt", "a tiger", option, value), 2)


@pytest.mark.parametrize("place", ["file", "file/below", "loop", "/dev/null"])
def test_a_training_sees_beforehand_that_it_cannot_write(ctxedit, make_recipe, tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    recipe = make_recipe("autoencoder")
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    for more in ((), ("--dry-run",)):
        told(ctxedit("train", recipe, "--out", place, *more), 6)


def test_a_link_to_nothing_is_not_offered_as_what_was_meant(ctxedit, tmp_path):
    (tmp_path / "clip.mp4").symlink_to("gone.mp4")
    said = told(ctxedit("tune", tmp_path / "clip.mp4", "--dry-run"), 3)
    assert "did you mean" not in said


def test_a_recipe_is_a_regular_file(ctxedit, tmp_path):
    os.mkfifo(tmp_path / "mine.toml")
    assert "is a FIFO" in told(ctxedit("train", tmp_path / "mine.toml", "--dry-run"), 2)


def test_a_tilde_that_names_no_user_is_a_name(ctxedit, clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = (
        "run",
        clip,
        "--target",
        "a cat",
        "--prompt",
        "a tiger",
        "--frames",
        2,
        "--stride",
        1,
        "--dry-run",
    )
    assert ctxedit(*asked, "-o", "~no-such-user/out.mp4").code == 0
    answer = ctxedit(*asked, "--mask", "~no-such-user/mask.png")
    assert answer.code == 3 and "does not exist" in answer.err
