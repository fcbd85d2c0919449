from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest

from ctxedit.errors import OutputError
from ctxedit.media.temporary import atomic, check_writable


def test_a_file_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "new" / "result.txt"
    with atomic(target) as temporary:
        assert (temporary.parent, temporary.suffix) == (target.parent, ".txt")
        temporary.write_text("half")
        assert not target.exists()
    assert target.read_text() == "half"
    assert os.listdir(target.parent) == ["result.txt"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_bytes_are_on_the_disk_before_the_name_and_then_the_name(tmp_path: Path, monkeypatch) -> None:
    """Otherwise a power cut could leave a whole name with half a file."""
    seen, rename = [], os.replace

    def replaced(source, target):
        seen.append(("replace", Path(target)))
        rename(source, target)

    def synchronized(handle):
        seen.append(("fsync", Path(os.readlink(f"/proc/self/fd/{handle}"))))

    monkeypatch.setattr(os, "replace", replaced)
    monkeypatch.setattr(os, "fsync", synchronized)
    with atomic(tmp_path / "a.txt") as temporary:
        temporary.write_text("whole")
    assert seen == [("fsync", temporary), ("replace", tmp_path / "a.txt"), ("fsync", tmp_path)]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("folder", [False, True])
def test_nothing_is_left_by_a_failure(tmp_path: Path, error: type[BaseException], folder: bool) -> None:
    target = tmp_path / "result"
    target.write_text("before")
    with pytest.raises(error), atomic(target, overwrite=True) as temporary:
        if folder:
            temporary.mkdir()
            (temporary / "part").write_text("half")
        else:
            temporary.write_text("half")
        raise error
    assert os.listdir(tmp_path) == ["result"]
    assert target.read_text() == "before"


def test_a_folder_takes_the_place_of_a_folder(tmp_path: Path) -> None:
    target = tmp_path / "run"
    target.mkdir()
    (target / "old").touch()
    with atomic(target, overwrite=True) as temporary:
        temporary.mkdir()
        (temporary / "new").touch()
        assert (target / "old").exists()
    assert os.listdir(target) == ["new"]
    assert os.listdir(tmp_path) == ["run"]


def test_a_file_does_not_take_the_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious").touch()
    with (
        pytest.raises(OutputError, match="is a folder"),
        atomic(tmp_path / "run", overwrite=True) as temporary,
    ):
        temporary.touch()
    assert os.listdir(tmp_path / "run") == ["precious"]
    assert os.listdir(tmp_path) == ["run"]


def test_what_exists_is_kept_unless_told(tmp_path: Path) -> None:
    target = tmp_path / "result.txt"
    target.write_text("mine")
    with pytest.raises(OutputError, match="exists already") as caught, atomic(target):
        pytest.fail("the body must not run")
    assert caught.value.hint and target.read_text() == "mine"
    with atomic(target, overwrite=True) as temporary:
        temporary.write_text("yours")
    assert target.read_text() == "yours"


def test_a_file_made_meanwhile_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "result.txt"
    with pytest.raises(OutputError), atomic(target) as temporary:
        temporary.write_text("ours")
        target.write_text("theirs")
    assert target.read_text() == "theirs"
    assert os.listdir(tmp_path) == ["result.txt"]


def test_an_empty_folder_is_free(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with atomic(tmp_path / "out") as temporary:
        temporary.mkdir()
        (temporary / "frame").touch()
    assert os.listdir(tmp_path / "out") == ["frame"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_full_or_closed_disk_is_an_output_error(tmp_path: Path, code: int) -> None:
    with pytest.raises(OutputError) as caught, atomic(tmp_path / "result") as temporary:
        temporary.touch()
        raise OSError(code, os.strerror(code))
    assert caught.value.hint and caught.value.exit_code == 6
    assert os.listdir(tmp_path) == []


def test_other_errors_of_the_system_pass_through(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic(tmp_path / "result"):
        (tmp_path / "absent").read_text()
    with pytest.raises(OutputError, match="nothing was written"), atomic(tmp_path / "result"):
        pass


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"):
        check_writable(tmp_path / "file" / "result.mp4")
    check_writable(tmp_path / "a" / "b" / "result.mp4")
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a FIFO stands for what is no file")
def test_only_files_and_folders_are_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.mp4")
    for path in (tmp_path / "fifo.mp4", Path(os.devnull)):
        with pytest.raises(OutputError, match="is a device, a FIFO or a socket"):
            check_writable(path, overwrite=True)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc takes no files, not even root's")
def test_a_closed_folder_even_for_root() -> None:
    with pytest.raises(OutputError, match="cannot write"):
        check_writable("/proc/result.mp4")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OutputError, match="permission denied"):
            check_writable(tmp_path / "result.mp4")
    finally:
        tmp_path.chmod(0o700)
