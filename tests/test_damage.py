"""Nothing of a run is lost or used in silence: damaged files, kills, full disks, two processes at once."""

import os
import shutil
import stat
import subprocess
import sys
import threading
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from safetensors.numpy import load_file

from ctxedit import api, config, runs
from ctxedit.editing import plan, stages
from ctxedit.editing.keys import Keys
from ctxedit.editing.reporter import Reporter
from ctxedit.editing.request import Request
from ctxedit.editing.session import Session
from ctxedit.errors import InputError, OutputError
from ctxedit.media import temporary
from ctxedit.media.write import write_clip
from ctxedit.runs import Run
from ctxedit.synthetic import scenes
from ctxedit.tables import read_table

PROMPT, TARGET = "a tiger walking on the beach", "a panda walking on the beach"


class Listener(Reporter):
    """Which stages ran, and what was said."""

    def __init__(self):
        self.tasks, self.warned, self.said = [], [], []

    def warn(self, text):
        self.warned.append(text)

    def say(self, text):
        self.said.append(text)

    @contextmanager
    def task(self, name, total):
        self.tasks.append(name.split()[0])
        yield lambda done, note="": None


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    scene = scenes.draw_scene(np.random.default_rng(0), pairs=0.0)
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    return write_clip(path, scenes.render(scene, 4, 64)[0], Fraction(8))


@pytest.fixture(scope="module")
def settings(stable_diffusion):
    flags = {
        "model": str(stable_diffusion), "clip_model": "builtin", "clip": {"frames": 2, "stride": 1},
        "tune": {"steps": 2, "save_every": 1, "lr": 1e-3}, "invert": {"steps": 2},
        "adapter": {"width": 32, "heads": 4, "blocks": 1}, "edit": {"steps": 2, "guidance": 2.0},
        "fusion": {"max_resolution": 1.0},
    }  # fmt: skip
    return config.load("contextdiff", flags=flags, environ={})


@pytest.fixture()
def work(clip, settings, tmp_path):
    """Runs the stages over ``tmp_path/runs``; gives the result, its frames and whom it told."""

    def work(target=TARGET, checked=False, **options):
        heard = Listener()
        request = Request(clip, settings, prompt=PROMPT, targets=(target,), runs=tmp_path / "runs", **options)
        if checked:
            plan.make(request).check()
        with Session(request, heard) as session:
            session.tune()
            session.invert()
            result = session.edit(target)
            heard.run = session.run
            heard.frames = load_file(next((session.run.folder / "edits").glob("*.safetensors")))["frames"]
        return result, heard

    return work


@pytest.fixture(scope="module")
def finished(clip, settings, tmp_path_factory):
    """A finished run, to be copied."""
    root = tmp_path_factory.mktemp("finished") / "runs"
    with Session(Request(clip, settings, prompt=PROMPT, runs=root)) as session:
        session.edit(TARGET)
    return root


@pytest.fixture()
def run(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "runs")
    (folder,) = (tmp_path / "runs").iterdir()
    return Run(folder)


def changed(data):
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


DAMAGE = {"empty": lambda data: b"", "half": lambda data: data[: len(data) // 2], "changed": changed}


@pytest.mark.parametrize(
    "file, kind, stages",
    [
        ("tune/tuned.safetensors", "changed", ["tune"]),
        ("tune/tuned.safetensors", "empty", ["tune"]),
        ("tune/adapter.safetensors", "half", []),
        ("inversion.safetensors", "changed", ["invert"]),
        ("edits/*.safetensors", "changed", ["edit"]),
        ("edits/*.safetensors", "half", ["edit"]),
        ("edits/*beach-??????.mp4", "empty", []),
        ("edits/*-side-by-side.mp4", "half", []),
        ("edits/*-sheet.png", "changed", []),
    ],
)
def test_a_damaged_artefact_is_made_again_with_a_word(work, run, file, kind, stages):
    (path,) = run.folder.glob(file)
    whole = path.read_bytes()
    path.write_bytes(DAMAGE[kind](whole))
    _, heard = work()
    assert heard.tasks == stages
    assert any(path.name in line and "again" in line for line in heard.warned)
    if "adapter" not in file:  # safetensors writes its metadata in any order
        assert path.read_bytes() == whole
    result, heard = work()
    assert result.reused and not heard.tasks and not heard.warned


def test_a_damaged_edit_is_not_scored(run):
    (path,) = run.folder.glob("edits/*.safetensors")
    path.write_bytes(changed(path.read_bytes()))
    with pytest.raises(InputError, match="no edits to score"):
        api.evaluate_run(run.folder, reporter=(heard := Listener()))
    assert any("damaged" in line and "ctxedit edit" in line for line in heard.warned)


BROKEN = {
    "empty": lambda text: "",
    "half": lambda text: text[: len(text) // 2],
    "types": lambda text: text.replace('preset = "contextdiff"', "preset = 3"),
    "stage": lambda text: text.replace("size = ", 'size = "1"#'),
    "config": lambda text: text.replace("seed = ", "speed = "),
    "nested": lambda text: "a = " + "[" * 2000,
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_run_file_is_begun_anew_with_a_word(work, run, kind):
    file = run.folder / "run.toml"
    broken = BROKEN[kind](file.read_text())
    file.write_text(broken)
    with pytest.raises(InputError, match=r"run\.toml is damaged") as error:
        Run(run.folder)
    assert error.value.hint
    warned = []
    with pytest.raises(InputError, match="no undamaged run"):
        Run.newest(run.folder.parent, warned.append)
    assert len(warned) == 1
    result, heard = work()
    assert heard.run.folder == run.folder and not result.reused
    assert heard.warned and "starts over" in heard.warned[0]
    assert (run.folder / "run.toml.broken").read_text() == broken
    assert Run(run.folder).edits()


def test_the_newest_whole_run_is_taken(run, clip, settings):
    other = Run.create(run.folder.parent, clip, "ddim", settings, "0" * 16)
    (other.folder / "run.toml").write_text("")
    warned = []
    assert Run.newest(run.folder.parent, warned.append).folder == run.folder
    assert str(other.folder) in warned[0]


def test_a_run_without_checksums_is_made_again_once(run, settings):
    """As ctxedit 0.1 left them."""
    file = run.folder / "run.toml"
    table = read_table(file)
    table["clip_hash"] = table["clip_hash"][:16]
    for entry in table["stages"].values():
        entry["files"] = [one["name"] for one in entry["files"]]
    file.write_text(tomli_w.dumps(table))
    for times in (1, 0):
        heard = Listener()
        with Session(Request.of_run(Run(run.folder), warn=heard.warn), heard) as session:
            assert session.edit(TARGET).reused == (times == 0)
        assert [line for line in heard.warned if "older ctxedit" in line] == heard.warned[:times]
        assert heard.tasks == ["tune", "invert", "edit"] * times


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


class TestSweeping:
    @pytest.fixture()
    def dead(self):
        """The id of a process that is gone."""
        with subprocess.Popen([sys.executable, "-c", ""]) as process:
            process.wait()
        return process.pid

    def left(self, path, pid, end="part.mp4", host=None):
        path = path.with_name(f".{path.name}.{host or temporary._host()}-{pid}-0123abcd.{end}")
        path.write_bytes(b"half")
        return path

    def test_only_what_the_dead_left_is_deleted(self, tmp_path, dead):
        gone = [self.left(tmp_path / name, dead) for name in ("out", "a.b.c")]
        folder = tmp_path / f".out.{temporary._host()}-{dead}-0123abcd.part"
        (folder / "in").mkdir(parents=True)
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as living:
            kept = [
                self.left(tmp_path / "out", living.pid),
                self.left(tmp_path / "out", dead, host="zzzz"),
                tmp_path / ".out.part.mp4",
            ]
            kept[-1].write_bytes(b"a person's")
            temporary.sweep(tmp_path)
            assert all(path.exists() for path in kept)
            assert not any(path.exists() for path in [*gone, folder])
            living.communicate(b"\n")

    def test_a_folder_that_was_moved_aside_gets_its_name_back(self, tmp_path, dead):
        aside = tmp_path / f".frames.{temporary._host()}-{dead}-0123abcd.old"
        aside.mkdir()
        (aside / "00000.png").write_bytes(b"precious")
        temporary.sweep(tmp_path)
        assert (tmp_path / "frames" / "00000.png").read_bytes() == b"precious"

    def test_the_next_start_sweeps(self, work, run, dead, tmp_path):
        places = [run.folder / "x", run.folder / "tune" / "x", run.folder / "edits" / "x", tmp_path / "x"]
        rests = [self.left(place, dead) for place in places]
        work(output=tmp_path / "out.mp4")
        assert not any(path.exists() for path in rests)


class TestTwoAtOnce:
    def test_notes_of_both_are_kept(self, run):
        def note(name):
            mine = Run(run.folder)
            for i in range(5):
                mine.finish(f"{name}{i}", "k", [])

        threads = [threading.Thread(target=note, args=(name,)) for name in "abc"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(Run(run.folder).done(f"{n}{i}", "k") for n in "abc" for i in range(5))

    def test_one_works_at_a_time_and_the_other_is_told(self, run):
        mine, said, order = Run(run.folder), [], []
        told = threading.Event()

        def other():
            theirs = Run(run.folder)
            with theirs.working(lambda text: (said.append(text), told.set())):
                order.append("other")
                assert theirs.done("mine", "k"), "what was noted meanwhile is read"

        with mine.working(), mine.working():
            thread = threading.Thread(target=other)
            thread.start()
            assert told.wait(20)
            Run(run.folder).finish("mine", "k", [])
            order.append("mine")
        thread.join()
        assert order == ["mine", "other"]
        assert str(run.folder) in said[0] and "waiting" in said[0]

    def test_a_killed_process_holds_nothing(self, run):
        code = "import sys, time; from pathlib import Path; from ctxedit.runs import Run\n"
        code += "with Run(Path(sys.argv[1])).working(): print('held', flush=True); time.sleep(600)"
        command = [sys.executable, "-c", code, str(run.folder)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "held\n"
            said = []
            process.kill()
            process.wait()
            with run.working(said.append):
                assert not said

    def test_scoring_does_not_wait(self, run):
        done = threading.Event()

        def score():
            api.write_metrics(run, [{"video": "v", "psnr": 1.0}])
            done.set()

        with run.working():
            thread = threading.Thread(target=score)
            thread.start()
            assert done.wait(20)
            thread.join()


def test_a_still_that_changed_in_place_is_another_clip(settings, tmp_path):
    frames = tmp_path / "frames"
    write_clip(frames, np.random.default_rng(0).integers(0, 255, (3, 64, 64, 3), dtype=np.uint8), Fraction(8))

    def identity():
        return Keys(Request(frames, settings)).identity(PROMPT)

    before, file = identity(), Path(frames / "00001.png")
    seen = file.stat()
    file.write_bytes(changed(file.read_bytes()))
    os.utime(file, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    assert identity() != before
    (frames / ".DS_Store").write_bytes(b"x")
    file.write_bytes(changed(file.read_bytes()))
    assert identity() == before
