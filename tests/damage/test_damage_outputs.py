"""Outputs are whole or not there: kills, full disks, files that others write meanwhile."""

import os
import stat
import sys
from contextlib import contextmanager
from fractions import Fraction

import numpy as np
import pytest

from ctxedit import runs
from ctxedit.editing import stages
from ctxedit.errors import InputError, OutputError
from ctxedit.media import temporary
from ctxedit.media.write import write_clip


class TestOutputs:
    def test_its_own_finished_work_is_recognised(self, work, run, tmp_path):
        out = tmp_path / "out.mp4"
        work(checked=True, output=out)
        before = out.read_bytes()
        result, heard = work(checked=True, output=out)
        assert result.reused and not heard.tasks and out.read_bytes() == before
        with pytest.raises(OutputError, match="exists already"):
            work("a dog on the beach", checked=True, output=out)
        out.write_bytes(b"")
        result, heard = work(checked=True, output=out)
        assert not heard.tasks and "is empty" in heard.warned[0] and out.read_bytes() == before
        out.write_bytes(before[: len(before) // 2])
        _, heard = work(checked=True, output=out)
        assert not heard.tasks and "is damaged" in heard.warned[0] and out.read_bytes() == before
        out.write_bytes(b"mine")
        with pytest.raises(OutputError, match="exists already"):
            work(checked=True, output=out)
        assert out.read_bytes() == b"mine"

    def test_a_damaged_run_cannot_tell_whose_the_output_is(self, work, run, tmp_path):
        out, note = tmp_path / "out.mp4", run.folder / "run.toml"
        work(checked=True, output=out)
        before, whole = out.read_bytes(), note.read_text()
        note.write_text(whole[: len(whole) // 2])
        with pytest.raises(InputError, match=r"run\.toml is damaged.*not known whether .*out\.mp4") as error:
            work(checked=True, output=out)
        assert "-y" in error.value.hint and out.read_bytes() == before
        work(checked=True, output=tmp_path / "other.mp4")  # starts over
        assert note.with_name("run.toml.broken").read_text() == whole[: len(whole) // 2]
        with pytest.raises(OutputError, match="exists already"):
            work(checked=True, output=out)

    def test_a_folder_of_frames_is_recognised_when_it_was_cut_off(self, work, run, tmp_path):
        out = tmp_path / "frames"
        work(checked=True, output=out)
        before = [file.read_bytes() for file in sorted(out.iterdir())]
        (out / "00000.png").unlink()
        (out / "00001.png").write_bytes(before[1][:50])
        _, heard = work(checked=True, output=out)
        assert not heard.tasks and [file.read_bytes() for file in sorted(out.iterdir())] == before
        (out / "00001.png").write_bytes(b"mine")
        with pytest.raises(OutputError, match="exists already"):
            work(checked=True, output=out)

    @pytest.mark.parametrize(("name", "at"), [("out.mp4", 0), ("out.mp4", 1), ("out", 2)])
    def test_killed_while_the_outputs_take_their_places(self, work, run, tmp_path, monkeypatch, at, name):
        out, real, calls = tmp_path / name, runs.replace, []

        def replace(old, new):
            calls.append(new)
            if len(calls) > at:
                raise KeyboardInterrupt
            real(old, new)

        monkeypatch.setattr(runs, "replace", replace)
        with pytest.raises(KeyboardInterrupt):
            work(output=out)
        assert sum(path.exists() for path in calls) == at
        monkeypatch.undo()
        result, heard = work(checked=True, output=out)
        assert not heard.tasks and result.files.video == out and result.files.sheet.exists()
        assert work(checked=True, output=out)[0].reused

    def test_a_file_that_appears_meanwhile_is_kept(self, work, run, tmp_path, monkeypatch):
        out = tmp_path / "out.mp4"
        real = stages.reporting.write

        def write(*args, **more):
            real(*args, **more)
            out.write_text("theirs")

        monkeypatch.setattr(stages.reporting, "write", write)
        with pytest.raises(OutputError, match="exists already"):
            work(output=out)
        assert out.read_text() == "theirs" and not list(tmp_path.glob(".*"))

    def test_everything_has_the_permissions_of_the_umask(self, work, tmp_path):
        before = os.umask(0o027)
        try:
            _, heard = work()
        finally:
            os.umask(before)
        modes = {f.name: stat.S_IMODE(f.stat().st_mode) for f in heard.run.folder.rglob("*") if f.is_file()}
        assert {m for name, m in modes.items() if not name.endswith(".lock")} == {0o640}, modes


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limits")
class TestFullDisk:
    @pytest.fixture()
    def full(self):
        """No file may grow beyond 4 KiB: what the system says then is what it says of a full disk."""
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

        @contextmanager
        def full():
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
            try:
                yield
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, hard))

        return full

    def test_what_was_there_stays(self, full, tmp_path):
        import torch

        from ctxedit.models.state import save_state
        from ctxedit.models.tensors import save_tensors

        noise = np.random.default_rng(0).integers(0, 255, (4, 64, 64, 3), dtype=np.uint8)
        big = {"x": torch.zeros(100_000)}
        writes = {
            "a.safetensors": lambda path: save_tensors(path, big),
            "a.pt": lambda path: save_state(path, big),
            "a.toml": lambda path: runs.write_toml(path, {"x": "y" * 100_000}),
            "a.mp4": lambda path: write_clip(path, noise, Fraction(8), overwrite=True),
            "a.png": lambda path: temporary_image(path, noise[0].repeat(4, 0)),
        }
        for name, write in writes.items():
            path = tmp_path / name
            path.write_bytes(b"before")
            with pytest.raises(OutputError), full():
                write(path)
            assert path.read_bytes() == b"before" and len(list(tmp_path.iterdir())) == 1, name
            path.unlink()

    def test_an_exception_of_safetensors_or_torch_is_understood(self, tmp_path):
        from safetensors import SafetensorError

        words = "Error while serializing: I/O error: No space left on device (os error 28)"
        for error in (SafetensorError(words), RuntimeError("PytorchStreamWriter failed writing file")):
            with pytest.raises(OutputError), temporary.atomic(tmp_path / "x"):
                raise error


def temporary_image(path, image):
    from ctxedit.media.write import write_image

    write_image(path, image, overwrite=True)
