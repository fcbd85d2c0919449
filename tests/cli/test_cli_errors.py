"""Every exit code through ``main``: one error line, one hint, nothing on stdout, nothing half-written."""

import errno
import json
import shutil

import pytest

from ctxedit.models.weights import BUILTIN_FOLDER

FEW = ("--frames", "4", "--stride", "1", "--steps", "4", "--tune-steps", "2")


def run(ctxedit, clip, runs, *more, target="a cat"):
    return ctxedit("run", clip, "--target", target, "--runs", runs, *FEW, *more)


def told(answer, code):
    """The error line of a failure in due form."""
    lines = answer.err.strip().splitlines()
    assert answer.code == code, answer.err
    assert "Traceback" not in answer.err
    (error,) = [line for line in lines if line.startswith("error: ")]
    assert lines[-1].startswith("hint: ") and len(lines[-1]) > 8
    return error


def test_unexpected_is_1_and_the_traceback_waits_for_the_variable(ctxedit, monkeypatch):
    def blow(*args):
        raise RuntimeError("a broken thing\nwith a second line")

    monkeypatch.setattr("ctxedit.config.preset_names", blow)
    answer = ctxedit("presets", "ls")
    assert told(answer, 1) == "error: RuntimeError: a broken thing" and answer.out == ""
    assert "CTXEDIT_DEBUG=1" in answer.err
    monkeypatch.setenv("CTXEDIT_DEBUG", "1")
    answer = ctxedit("presets", "ls")
    assert answer.code == 1 and "Traceback" in answer.err and "with a second line" in answer.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["rnu"], "rnu"),
        (["edit"], "no target prompt"),
        (["run", "x.mp4"], "no target prompt"),
        (["run", "x.mp4", "--target", "y", "--nonsense"], "--nonsense"),
        (["run", "x.mp4", "--target", "y", "--frames", "many"], "--frames"),
        (["run", "x.mp4", "--target", "y", "--dtype", "float8"], "float8"),
        (["run", "x.mp4", "--target", "y", "--target", "z", "-o", "a.mp4"], "--output"),
        (["run", "x.mp4", "--target", "y", "--preset", "nosuch"], "nosuch"),
        (["run", "x.mp4", "--target", "y", "--set", "edit.nosuch=1"], "edit.nosuch"),
        (["run", "x.mp4", "--target", "y", "--set", "edit.guidance=high"], "edit.guidance"),
        (["run", "x.mp4", "--target", "y", "--config", "nosuch.toml"], "nosuch.toml"),
        (["tune", "x.mp4", "--frames", "0"], "clip.frames"),
        (["presets", "show", "nosuch"], "nosuch"),
        (["eval", "--video", "x.mp4"], "--prompt"),
        (["eval", "--video", "x.mp4", "--prompt", "y", "--run", "z"], "--run"),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_usage_and_configuration_are_2(ctxedit, arguments, said, as_json, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = ctxedit(*arguments, *(["--json"] if as_json else []))
    line = told(answer, 2) + answer.err.splitlines()[-1]
    assert said in line
    if as_json:
        assert answer.table["exit_code"] == 2 and answer.table["error"] and answer.table["hint"]
    else:
        assert answer.out == ""
    assert not any(tmp_path.iterdir())


def bad_clip(kind, clip, folder):
    path = folder / "bad.mp4"
    if kind == "text":
        path.write_text("no video at all, only words\n" * 20)
    elif kind == "truncated":
        path.write_bytes(clip.read_bytes()[:400])
    elif kind == "empty":
        path.touch()
    return path


@pytest.mark.parametrize("kind", ["missing", "text", "truncated", "empty"])
@pytest.mark.parametrize("command", ["run", "tune", "caption", "eval"])
def test_a_clip_that_is_none_is_3(ctxedit, no_weights, kind, command, clip, tmp_path):
    path = bad_clip(kind, clip, tmp_path)
    arguments = {
        "run": [path, "--target", "a cat", "--runs", tmp_path / "runs"],
        "tune": [path, "--runs", tmp_path / "runs"],
        "caption": [path],
        "eval": ["--video", path, "--prompt", "a cat"],
    }
    answer = ctxedit(command, *arguments[command])
    assert "bad.mp4" in told(answer, 3) and answer.out == ""
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("more", "target", "said"),
    [
        (["--frames", "9"], "a cat", "8 frames"),
        ([], "  ", "target is empty"),
        (["--prompt", " "], "a cat", "prompt is empty"),
        ([], "a " + "very " * 90 + "old cat", "tokens"),
        (["--prompt", "a " + "very " * 90 + "old dog"], "a cat", "tokens"),
        (["--mask", "nosuch.png"], "a cat", "nosuch.png"),
    ],
)
def test_input_that_does_not_fit_is_3_before_weights(ctxedit, no_weights, clip, tmp_path, more, target, said):
    answer = run(ctxedit, clip, tmp_path / "runs", *more, target=target)
    assert said in told(answer, 3)
    assert not (tmp_path / "runs").exists()


def test_a_current_folder_that_was_removed_is_3(ctxedit, clip, tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    answer = ctxedit("run", clip, "a cat")
    assert (answer.code, answer.out) == (3, "")
    assert "\nerror: the current folder does not exist any more\nhint: " in answer.err


@pytest.mark.parametrize("program", ["missing", "other"])
def test_an_ffmpeg_that_does_not_run_is_6_before_weights(
    ctxedit, clip, tmp_path, no_weights, monkeypatch, program
):
    other = tmp_path / program
    if program == "other":
        other.write_text("#!/bin/sh\necho ls 9.0\n")
        other.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(other))
    answer = ctxedit("run", clip, "--prompt", "a tiger", "a panda", "--dry-run", "--runs", tmp_path)
    assert answer.code == 6 and str(other) in answer.err and "hint: reinstall imageio-ffmpeg" in answer.err


def test_a_size_that_no_h264_holds_is_2_before_weights(ctxedit, tmp_path, no_weights):
    from PIL import Image

    (tmp_path / "wide").mkdir()
    for number in range(2):
        Image.new("RGB", (16400, 128)).save(tmp_path / f"wide/{number}.png")
    command = ("run", tmp_path / "wide", "--prompt", "a tiger", "a panda", "--frames", 2, "--dry-run")
    command += ("--output-size", "source", "--runs", tmp_path / "runs")
    answer = ctxedit(*command)
    assert answer.code == 2 and "16384 pixels a side, not 16400×128" in answer.err
    assert ctxedit(*command, "-o", tmp_path / "a.webm").code == 0
    assert ctxedit(*command, "-o", tmp_path / "frames").code == 0


def test_no_run_is_3(ctxedit, tmp_path):
    assert "no run in" in told(ctxedit("edit", "--target", "a cat", "--runs", tmp_path), 3)
    assert "no run folder" in told(ctxedit("eval", "--run", tmp_path), 3) or "is not a run folder" in told(
        ctxedit("eval", "--run", tmp_path), 3
    )


@pytest.mark.parametrize("kind", ["nosuch", "nosuch/model", "pickle", "folder", "cut", "text"])
def test_weights_that_are_none_are_4(ctxedit, clip, tmp_path, kind):
    model = {"nosuch": "nosuch", "nosuch/model": "nosuch/model"}.get(kind, tmp_path / kind)
    if kind == "pickle":
        model = tmp_path / "model.bin"
        model.write_bytes(b"x")
    elif kind == "folder":
        model.mkdir()
    elif kind == "text":
        model = tmp_path / "model.safetensors"
        model.write_text("no header here at all")
    elif kind == "cut":
        shutil.copytree(BUILTIN_FOLDER, model)
        file = model / "unet" / "diffusion_pytorch_model.safetensors"
        file.write_bytes(file.read_bytes()[:100_000])
    answer = run(ctxedit, clip, tmp_path / "runs", "--model", model, "--offline")
    told(answer, 4)
    assert answer.out == "" and not (tmp_path / "runs").exists()


def test_nan_in_weights_is_4(ctxedit, clip, tmp_path):
    from safetensors.numpy import load_file, save_file

    model = shutil.copytree(BUILTIN_FOLDER, tmp_path / "nan")
    file = model / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["conv_in.bias"][0] = float("nan")
    save_file(tensors, file)
    answer = ctxedit("t2i", "a cat", "--model", model, "-o", tmp_path / "cat.png")
    assert "conv_in.bias" in told(answer, 4) and not (tmp_path / "cat.png").exists()


def test_a_device_that_is_not_there_is_5(ctxedit, clip, tmp_path, no_weights):
    assert "cuda:9" in told(run(ctxedit, clip, tmp_path / "runs", "--device", "cuda:9"), 5)


def test_too_little_memory_is_5_with_numbers_before_weights(ctxedit, clip, tmp_path, no_weights, monkeypatch):
    monkeypatch.setattr("ctxedit.editing.machine.memory_available", lambda device: 10 << 20)
    line = told(run(ctxedit, clip, tmp_path / "runs"), 5)
    assert "0.0 GiB are available" in line and not (tmp_path / "runs").exists()
    answer = run(ctxedit, clip, tmp_path / "runs", "--dry-run")
    assert answer.code == 5 and "peak memory" in answer.out, "the plan is shown with the refusal"


@pytest.mark.parametrize("kind", ["python", "torch", "cpu"])
def test_memory_that_runs_out_is_5(ctxedit, monkeypatch, kind):
    import torch

    errors = {
        "python": MemoryError(),
        "torch": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        "cpu": RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    }

    def blow(*args, **kwargs):
        raise errors[kind]

    monkeypatch.setattr("ctxedit.editing.text_to_image.generate", blow)
    told(ctxedit("t2i", "a cat", "-o", "never.png"), 5)


def test_an_output_that_exists_is_6_before_weights(ctxedit, clip, tmp_path, no_weights):
    for name in ("out.mp4", "out-sheet.png", "out-side-by-side.mp4"):
        place = tmp_path / name.split(".")[0]
        place.mkdir()
        (place / name).write_bytes(b"mine")
        answer = run(ctxedit, clip, tmp_path / "runs", "-o", place / "out.mp4")
        assert name in told(answer, 6) and "-y" in answer.err
        assert (place / name).read_bytes() == b"mine"
    (tmp_path / "cat.png").write_bytes(b"mine")
    assert "cat.png" in told(ctxedit("t2i", "a cat", "-o", tmp_path / "cat.png"), 6)
    assert not (tmp_path / "runs").exists()


def test_a_place_that_cannot_be_written_is_6(ctxedit, clip, tmp_path, no_weights):
    (tmp_path / "file").write_text("in the way")
    told(run(ctxedit, clip, tmp_path / "runs", "-o", tmp_path / "file" / "out.mp4"), 6)
    told(run(ctxedit, clip, tmp_path / "file"), 6)
    told(ctxedit("presets", "cp", "ddim", tmp_path / "file" / "x.toml"), 6)


def test_an_output_of_no_known_kind_is_2(ctxedit, clip, tmp_path, no_weights):
    assert ".xyz" in told(run(ctxedit, clip, tmp_path / "runs", "-o", tmp_path / "out.xyz"), 2)
    assert ".mp4" in told(ctxedit("t2i", "a cat", "-o", tmp_path / "cat.mp4"), 2)


def test_a_full_disk_is_6(ctxedit, monkeypatch, tmp_path, clip):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device", "somewhere")

    monkeypatch.setattr("ctxedit.editing.text_to_image.generate", full)
    assert "disk is full" in told(ctxedit("t2i", "a cat", "-o", tmp_path / "cat.png"), 6)
    monkeypatch.setattr("ctxedit.editing.machine.disk_free", lambda place: 1000)
    assert "0.00 GiB are free" in told(run(ctxedit, clip, tmp_path / "runs"), 6)


def test_nan_is_7_and_leaves_no_result(ctxedit, clip, tmp_path, monkeypatch):
    from ctxedit.models.backbones.stable_diffusion import StableDiffusion

    real = StableDiffusion.raw
    monkeypatch.setattr(StableDiffusion, "raw", lambda *args: real(*args) * float("nan"))
    answer = run(ctxedit, clip, tmp_path / "runs", "--prompt", "a tiger on the beach")
    told(answer, 7)
    assert answer.out == "" and not list(tmp_path.rglob("tuned.safetensors")) + list(tmp_path.rglob("*.mp4"))


def test_ctrl_c_is_130_says_where_it_goes_on_and_goes_on(ctxedit, clip, tmp_path, monkeypatch):
    from ctxedit.stages import tune

    real, seen = tune._save, []

    def stop(folder, step, *rest):
        real(folder, step, *rest)
        seen.append(step)
        if len(seen) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(tune, "_save", stop)
    arguments = ("tune", clip, "--runs", tmp_path / "runs", "--prompt", "a tiger", *FEW[:4])
    arguments += ("--tune-steps", 3, "--set", "tune.save_every=1")
    answer = ctxedit(*arguments, "--json")
    (folder,) = (tmp_path / "runs").iterdir()
    assert answer.code == 130 and answer.table["exit_code"] == 130
    (line,) = [x for x in answer.err.splitlines() if x.startswith("error: ")]
    assert str(folder) in line and "to resume" in line
    answer = ctxedit(*arguments)
    assert (answer.code, answer.out) == (0, f"{folder}\n")
    assert seen == [1, 2, 3], "the first step was not done again"
    rows = [json.loads(row) for row in (folder / "tune" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]


def test_ctrl_c_before_anything_began(ctxedit, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("ctxedit.config.preset_names", stop)
    answer = ctxedit("presets", "ls")
    assert answer.code == 130 and answer.err == "error: interrupted before any work\n"
