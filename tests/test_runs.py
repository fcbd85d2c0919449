"""The run folder: what is valid, what is atomic, what is refused."""

import math
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ctxedit import contents
from ctxedit.cache import cache_entry, cached_table, change_table
from ctxedit.config import AdapterConfig, Config, TuneConfig, merge
from ctxedit.errors import InputError, OutputError
from ctxedit.runs import Run, fingerprint, key_of, slug, versions, write_toml
from ctxedit.tables import read_table


@pytest.fixture()
def clip(tmp_path):
    path = tmp_path / "My Clip (1).mp4"
    path.write_bytes(b"a clip")
    return path


def make(tmp_path, clip, identity="0123456789abcdef", preset="contextdiff", config=None):
    return Run.create(tmp_path / "runs", clip, preset, config or Config(), identity)


class TestCreateAndFind:
    def test_a_new_run_says_all_about_itself(self, tmp_path, clip):
        config = merge(
            Config(),
            {"seed": 3, "tune": {"trainable_modules": ["adapter"]}, "fusion": {"word_weights": {"cat": 2.0}}},
        )
        run = make(tmp_path, clip, config=config)
        assert run.folder.parent == tmp_path / "runs"
        assert run.folder.name.startswith("my-clip-1-contextdiff-")
        assert run.folder.name.endswith("-01234567")
        again = Run(run.folder)
        assert again.config == config
        assert again.clip == clip.resolve()
        assert again.preset == "contextdiff"
        table = read_table(run.folder / "run.toml")
        assert table["versions"]["torch"] == versions()["torch"] != "not installed"
        assert table["clip_hash"] == fingerprint(clip)

    def test_the_same_identity_is_the_same_run(self, tmp_path, clip):
        first = make(tmp_path, clip)
        first.finish("tune", "k", [])
        again = make(tmp_path, clip)
        assert again.folder == first.folder
        assert again.done("tune", "k")

    def test_another_identity_clip_or_preset_is_another_run(self, tmp_path, clip):
        other = tmp_path / "other.mp4"
        other.write_bytes(b"b")
        folders = {
            make(tmp_path, clip).folder,
            make(tmp_path, clip, "fedcba9876543210").folder,
            make(tmp_path, clip, preset="fatezero").folder,
            make(tmp_path, other).folder,
        }
        assert len(folders) == 4

    def test_a_run_of_another_day_is_found(self, tmp_path, clip):
        first = make(tmp_path, clip)
        old = first.folder.with_name("my-clip-1-contextdiff-20200101-01234567")
        first.folder.rename(old)
        assert make(tmp_path, clip).folder == old

    def test_newest_is_the_one_changed_last(self, tmp_path, clip):
        a, b = make(tmp_path, clip), make(tmp_path, clip, "fedcba9876543210")
        for age, run in ((100, a), (200, b)):
            os.utime(run.folder / "run.toml", (age, age))
        (tmp_path / "runs" / "no-run").mkdir()
        assert Run.newest(tmp_path / "runs").folder == b.folder
        a.finish("tune", "k", [])
        assert Run.newest(tmp_path / "runs").folder == a.folder

    def test_no_run(self, tmp_path):
        with pytest.raises(InputError, match="no run in"):
            Run.newest(tmp_path / "nowhere")
        with pytest.raises(InputError, match="not a run folder"):
            Run(tmp_path)

    def test_a_broken_run_file_is_said(self, tmp_path, clip):
        run = make(tmp_path, clip)
        (run.folder / "run.toml").write_text("identity = ")
        with pytest.raises(InputError, match=r"run\.toml is damaged") as error:
            Run(run.folder)
        assert error.value.exit_code == 3 and error.value.hint

    def test_a_run_file_without_its_tables_is_said(self, tmp_path):
        (tmp_path / "run.toml").write_text('identity = "x"\n')
        with pytest.raises(InputError, match=r"run\.toml"):
            Run(tmp_path)


class TestStages:
    def test_done_needs_the_key_and_the_files(self, tmp_path, clip):
        run = make(tmp_path, clip)
        assert not run.done("tune", "k1")
        file = run.folder / "tune" / "tuned.safetensors"
        file.parent.mkdir()
        file.write_bytes(b"w")
        run.finish("tune", "k1", ["tune/tuned.safetensors"], loss=0.25)
        for one in (run, Run(run.folder)):
            assert one.done("tune", "k1")
            assert one.facts("tune") == {"loss": 0.25}
            assert not one.done("tune", "k2")
            assert not one.done("invert", "k1")
        file.unlink()
        assert not Run(run.folder).done("tune", "k1")

    def test_a_file_elsewhere_is_watched_too(self, tmp_path, clip):
        run = make(tmp_path, clip)
        out = tmp_path / "out.mp4"
        out.write_bytes(b"v")
        run.finish("edit/a", "k", [str(out)])
        assert run.done("edit/a", "k")
        out.unlink()
        assert not run.done("edit/a", "k")

    def test_finishing_again_replaces_key_and_facts(self, tmp_path, clip):
        run = make(tmp_path, clip)
        run.finish("tune", "k1", [], a=1)
        run.finish("tune", "k2", [], b=2)
        assert not run.done("tune", "k1")
        assert run.done("tune", "k2")
        assert Run(run.folder).facts("tune") == {"b": 2}

    def test_edits_in_their_order(self, tmp_path, clip):
        run = make(tmp_path, clip)
        for name in ("edit/zebra", "tune", "edit/ape"):
            run.finish(name, "k", [])
        assert Run(run.folder).edits() == ["edit/zebra", "edit/ape"]

    def test_missing_and_odd_figures(self, tmp_path, clip):
        run = make(tmp_path, clip)
        facts = {
            "psnr": math.inf,
            "ssim": math.nan,
            "outside": None,
            "text": 'ü "quoted"\n',
            "rows": [{"a": None}],
        }
        run.finish("eval", "k", [], **facts)
        got = Run(run.folder).facts("eval")
        assert got["psnr"] == math.inf
        assert math.isnan(got["ssim"])
        assert "outside" not in got
        assert got["text"] == 'ü "quoted"\n'
        assert got["rows"] == [{}]

    def test_the_clip_is_watched(self, tmp_path, clip):
        run = make(tmp_path, clip)
        run.check_clip()
        clip.write_bytes(b"b clip")
        with pytest.raises(InputError, match="changed"):
            run.check_clip()
        clip.unlink()
        with pytest.raises(InputError, match="missing"):
            run.check_clip()


class TestAtomicity:
    def test_what_was_there_survives_a_failed_write(self, tmp_path, monkeypatch):
        path = tmp_path / "run.toml"
        write_toml(path, {"a": 1})

        def fail(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "replace", fail)
        with pytest.raises(OutputError, match="disk is full"):
            write_toml(path, {"a": 2})
        assert read_table(path) == {"a": 1}
        assert [p.name for p in tmp_path.iterdir()] == ["run.toml"]

    def test_the_name_never_holds_half_a_file(self, tmp_path, monkeypatch):
        """At the moment of the rename the temporary file is complete, and the old one still whole."""
        path = tmp_path / "run.toml"
        write_toml(path, {"a": 1})
        seen, replace = [], os.replace

        def watch(source, target):
            seen.append((read_table(Path(source)), read_table(Path(target))))
            replace(source, target)

        monkeypatch.setattr(os, "replace", watch)
        write_toml(path, {"a": 2})
        assert seen == [({"a": 2}, {"a": 1})]
        assert read_table(path) == {"a": 2}

    def test_a_value_that_toml_lacks_leaves_the_old_file(self, tmp_path):
        path = tmp_path / "run.toml"
        write_toml(path, {"a": 1})
        with pytest.raises(TypeError):
            write_toml(path, {"a": object()})
        assert read_table(path) == {"a": 1}
        assert len(list(tmp_path.iterdir())) == 1

    def test_places_that_cannot_be_written(self, tmp_path, clip):
        (tmp_path / "runs").write_text("a file, not a folder")
        with pytest.raises(OutputError, match="cannot be made") as error:
            make(tmp_path, clip)
        assert error.value.exit_code == 6
        assert error.value.hint
        with pytest.raises(OutputError, match="cannot be written"):
            write_toml(tmp_path / "runs" / "run.toml", {})
        with pytest.raises(OutputError, match="cannot be written"):
            write_toml(tmp_path / "gone" / "run.toml", {})


class TestFingerprint:
    def test_same_bytes_same_print_whatever_the_name_and_time(self, tmp_path):
        a, b = tmp_path / "a", tmp_path / "b"
        a.write_bytes(b"x" * 100)
        b.write_bytes(b"x" * 100)
        os.utime(b, (1, 1))
        assert fingerprint(a) == fingerprint(b)

    @pytest.mark.parametrize("size", [1, 1 << 20, (1 << 20) + 1, (1 << 21) - 1, 1 << 21])
    def test_every_byte_of_a_small_file_counts(self, tmp_path, size):
        path = tmp_path / "f"
        data = bytearray(size)
        path.write_bytes(data)
        before = fingerprint(path)
        for at in {0, size // 2, size - 1}:
            data[at] = 1
            path.write_bytes(data)
            assert fingerprint(path) != before
            data[at] = 0
        path.write_bytes(bytes(size + 1))
        assert fingerprint(path) != before

    @pytest.mark.parametrize("folder", [False, True])
    def test_a_large_file_is_read_once_and_again_when_anything_of_it_changed(
        self, tmp_path, monkeypatch, folder
    ):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setattr(contents, "_RACY", -1.0)  # it counts as old at once
        read, real = [], contents._hash_file
        monkeypatch.setattr(contents, "_hash_file", lambda file: read.append(file) or real(file))
        (tmp_path / "large").mkdir()
        file = tmp_path / "large" / "clip.mp4"
        path = file.parent if folder else file
        with file.open("wb") as stream:
            stream.truncate(20 << 20)
        first = fingerprint(path)
        assert fingerprint(path) == first and len(read) == 1
        seen = file.stat()
        with file.open("r+b") as stream:
            stream.seek(10 << 20)
            stream.write(b"x")
        os.utime(file, ns=(seen.st_atime_ns, seen.st_mtime_ns))
        assert fingerprint(path) != first, "in its middle, size and time as before"
        (tmp_path / "cache" / "ctxedit" / "contents.json").write_text("[[")
        assert fingerprint(path) != first and len(read) == 2, "this process remembers by itself"
        contents._SEEN.clear()
        assert fingerprint(path) != first and len(read) == 3, "a damaged cache is no cache"

    def test_writers_at_the_same_time_lose_no_entry(self, tmp_path, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        ready = threading.Barrier(6)

        def write(writer):
            ready.wait()
            for i in range(5):
                cache_entry("table.json", f"{writer} {i}", i)

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(write, range(6)))
        assert len(cached_table("table.json")) == 30
        change_table("table.json", lambda table: table.update({str(j): j for j in range(1200)}))
        assert list(cached_table("table.json"))[-1] == "1199" and len(cached_table("table.json")) == 1000

    def test_a_file_that_just_changed_is_not_remembered(self, tmp_path, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        path = tmp_path / "clip.mp4"
        path.write_bytes(bytes(17 << 20))
        fingerprint(path)
        assert not (tmp_path / "cache").exists()

    def test_folder(self, tmp_path):
        folder = tmp_path / "frames"
        folder.mkdir()
        prints = {fingerprint(folder)}
        (folder / "1.png").write_bytes(b"a")
        prints.add(fingerprint(folder))
        (folder / "1.png").write_bytes(b"b")
        prints.add(fingerprint(folder))
        (folder / "1.png").rename(folder / "2.png")
        prints.add(fingerprint(folder))
        (folder / "deep").mkdir()
        (folder / "deep" / "3.png").write_bytes(b"")
        prints.add(fingerprint(folder))
        assert len(prints) == 5
        same = fingerprint(folder)
        folder.rename(tmp_path / "moved")
        assert fingerprint(tmp_path / "moved") == same

    def test_nothing_there(self, tmp_path):
        with pytest.raises(InputError, match="no file"):
            fingerprint(tmp_path / "gone")


class TestNamesAndKeys:
    @pytest.mark.parametrize(
        "text, name",
        [
            ("A Tiger, walking!", "a-tiger-walking"),
            ("../../etc/passwd", "etc-passwd"),
            ("日本", "clip"),
            ("", "clip"),
            ("a" * 99, "a" * 48),
            ("ab " * 30, "ab-" * 15 + "ab"),
        ],
    )
    def test_slug(self, text, name):
        assert slug(text) == name

    def test_a_key_changes_with_every_part_and_only_then(self):
        a = key_of("x", AdapterConfig(), [1, None])
        assert a == key_of("x", AdapterConfig(), [1, None])
        assert (
            len(
                {a, key_of("x", AdapterConfig(bound=0.1), [1, None]), key_of("x", AdapterConfig(), [2, None])}
            )
            == 3
        )
        assert key_of("a", "b") != key_of("b", "a") != key_of("ab")

    def test_a_key_survives_the_disk(self, tmp_path, clip):
        config = merge(
            Config(),
            {
                "tune": {"lr": 0.1 + 0.2, "trainable_modules": ["adapter"]},
                "fusion": {"word_weights": {"b": 1, "a": 2}},
            },
        )
        run = make(tmp_path, clip, config=config)
        again = Run(run.folder).config
        assert key_of(again) == key_of(config)
        assert key_of(again.tune) == key_of(config.tune) != key_of(TuneConfig())
