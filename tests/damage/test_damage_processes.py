"""What killed processes left is swept, and two processes at once keep both their work."""

import subprocess
import sys
import threading

import pytest

from ctxedit import api
from ctxedit.media import temporary
from ctxedit.runs import Run


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
