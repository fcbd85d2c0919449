"""An output that exists: written by an equal command at the same time, or by a run that is damaged now."""

import os
import shutil
import threading
from contextlib import contextmanager

import pytest
from asking import FEW, TARGET

from ctxedit import finished
from ctxedit.cli.output import Screen


@pytest.fixture()
def commands(clip, tmp_path):
    image = ("t2i", "a cat", "--steps", 1, "--set", "upscale.scale=1", "-o", tmp_path / "out.png")
    return {"t2i": image, "compare": ("compare", clip, clip, "-o", tmp_path / "out.png")}


@contextmanager
def another(output, data, monkeypatch):
    """Another process that holds the output, and writes it once this one says that it waits."""
    begun, waits, say = threading.Event(), threading.Event(), Screen.say

    def work():
        with finished.writing(output, lambda: None):
            begun.set()
            assert waits.wait(20)
            output.write_bytes(data)

    def told(screen, text):
        if "is writing" in text:
            waits.set()
        say(screen, text)

    monkeypatch.setattr(Screen, "say", told)
    thread = threading.Thread(target=work)
    thread.start()
    assert begun.wait(20)
    yield
    waits.set()
    thread.join()


@pytest.mark.parametrize("name", ["t2i", "compare"])
def test_the_second_of_two_equal_commands_waits(ctxedit, commands, name, tmp_path, monkeypatch):
    first, output = ctxedit(*commands[name], "--json"), tmp_path / "out.png"
    assert first.code == 0, first.err
    data = output.read_bytes()
    output.unlink()
    with another(output, data, monkeypatch):
        second = ctxedit(*commands[name], "--json")
    assert second.code == 0 and second.table == first.table
    assert f"another ctxedit is writing {output}: waiting" in second.err
    assert "made by the same command" in second.err and output.read_bytes() == data


def test_another_output_is_not_waited_for(ctxedit, commands, tmp_path, monkeypatch):
    with another(tmp_path / "other.png", b"", monkeypatch):
        answer = ctxedit(*commands["compare"])
    assert answer.code == 0 and "waiting" not in answer.err


def test_a_dry_run_waits_for_nobody(ctxedit, commands, tmp_path, monkeypatch):
    with another(tmp_path / "out.png", b"", monkeypatch):
        answer = ctxedit(*commands["t2i"], "--dry-run")
    assert answer.code == 0 and "waiting" not in answer.err


def test_without_a_cache_the_command_works(ctxedit, commands, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    answer = ctxedit(*commands["compare"])
    assert answer.code == 0, answer.err


def test_old_lock_files_are_deleted(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with finished.writing(tmp_path / "a.png", lambda: None):
        pass
    locks = tmp_path / "cache" / "ctxedit" / "writing"
    (old,) = locks.glob("*.lock")
    os.utime(old, (0, 0))
    with finished.writing(tmp_path / "b.png", lambda: None):
        (held,) = locks.glob("*.lock")
        assert held != old


def test_a_damaged_run_of_a_captioned_clip_is_named(ctxedit, made, runs, clip, tmp_path, no_weights):
    """The run would tell both the prompt and whose the output is."""
    copy, output = shutil.copytree(runs, tmp_path / "runs"), tmp_path / "out.mp4"
    output.write_bytes(b"an edit")
    for note in copy.glob("*/run.toml"):
        note.write_bytes(note.read_bytes()[:100])
    answer = ctxedit("run", clip, "--target", TARGET, *FEW, "--runs", copy, "-o", output)
    assert answer.code == 3 and "run.toml is damaged" in answer.err and "-y" in answer.err
    assert output.read_bytes() == b"an edit"
