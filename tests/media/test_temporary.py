"""A place holds the whole result, or what was there before, and nothing lies beside it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from ctxedit.errors import OutputError
from ctxedit.media.temporary import atomic, check_writable


def listing(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_file_appears_at_the_end_only(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    with atomic(path, False) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".mp4"
        temporary.write_bytes(b"whole")
        assert not path.exists()
    assert path.read_bytes() == b"whole"
    assert listing(tmp_path) == ["out.mp4"]


def test_folder_appears_and_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "frames"
    for names in (["a", "b"], ["c"]):
        with atomic(path, True) as temporary:
            temporary.mkdir()
            for name in names:
                (temporary / name).touch()
        assert listing(path) == names
    assert listing(tmp_path) == ["frames"]


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt(), SystemExit(1)])
@pytest.mark.parametrize("before", [None, b"old"])
@pytest.mark.parametrize("folder", [False, True])
def test_failure_leaves_what_was_there(
    tmp_path: Path, error: BaseException, before: bytes | None, folder: bool
) -> None:
    path = tmp_path / "out.bin"
    if before:
        path.write_bytes(before)
    with pytest.raises(type(error)), atomic(path, True) as temporary:
        if folder:
            temporary.mkdir()
            temporary = temporary / "00000.png"
        temporary.write_bytes(b"half")
        raise error
    assert listing(tmp_path) == (["out.bin"] if before else [])
    if before:
        assert path.read_bytes() == before


def test_existing_is_kept_without_leave(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    path.write_bytes(b"old")
    with pytest.raises(OutputError) as caught, atomic(path, False):
        pytest.fail("the body must not run")
    assert caught.value.exit_code == 6
    assert "-y" in (caught.value.hint or "")
    assert path.read_bytes() == b"old"
    with atomic(path, True) as temporary:
        temporary.write_bytes(b"new")
    assert path.read_bytes() == b"new"


def test_what_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    with pytest.raises(OutputError), atomic(path, False) as temporary:
        temporary.write_bytes(b"mine")
        path.write_bytes(b"another process's")
    assert path.read_bytes() == b"another process's"
    assert listing(tmp_path) == ["out.mp4"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk(tmp_path: Path, code: int) -> None:
    with pytest.raises(OutputError, match="disk is full") as caught, atomic(tmp_path / "a.png", False) as temporary:
        temporary.write_bytes(b"half")
        raise OSError(code, os.strerror(code))
    assert caught.value.hint
    assert listing(tmp_path) == []


def test_other_system_errors_pass_unchanged(tmp_path: Path) -> None:
    with pytest.raises(ConnectionResetError), atomic(tmp_path / "a", False):
        raise ConnectionResetError(errno.ECONNRESET, "reset")


def test_nothing_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError), atomic(tmp_path / "a.png", False):
        pass
    assert listing(tmp_path) == []


def test_folder_of_files_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").touch()
    with pytest.raises(OutputError), atomic(tmp_path / "out", True) as temporary:
        temporary.write_bytes(b"x")
    assert listing(tmp_path) == ["out"]
    assert listing(tmp_path / "out") == ["precious"]


def unwritable(tmp_path: Path) -> list[Path]:
    (tmp_path / "file.txt").write_text("I am a file")
    places = [tmp_path / "file.txt" / "out.mp4"]
    if Path("/proc/self").exists():  # even root makes no files there
        places.append(Path("/proc/ctxedit-test.mp4"))
    if os.geteuid() != 0:
        (tmp_path / "locked").mkdir(mode=0o500)
        places.append(tmp_path / "locked" / "out.mp4")
    return places


def test_unwritable_places(tmp_path: Path) -> None:
    for path in unwritable(tmp_path):
        for call in (check_writable, lambda path: atomic(path, False).__enter__()):
            with pytest.raises(OutputError) as caught:
                call(path)
            assert caught.value.exit_code == 6
            assert caught.value.hint


def test_check_leaves_nothing(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "deep" / "out.mp4", False)
    assert listing(tmp_path) == []
    (tmp_path / "old.mp4").write_bytes(b"old")
    with pytest.raises(OutputError, match="exists"):
        check_writable(tmp_path / "old.mp4", False)
    check_writable(tmp_path / "old.mp4", True)
    assert (tmp_path / "old.mp4").read_bytes() == b"old"
