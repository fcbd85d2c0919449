"""What a hub, a proxy or the disk does halfway: one error, its exit code, nothing lost, and it goes on."""

import errno
from pathlib import Path

import pytest
from asking import call
from listings import SD14
from test_hub import pulled, refused, sent

from ctxedit.models import transfer

BIG = "unet/diffusion_pytorch_model.safetensors"


def parts(tmp_path):
    return [file.stat().st_size for file in (tmp_path / "cache").rglob("*.incomplete")]


@pytest.fixture()
def begun(hub, sd14_files, tmp_path):
    """A download of which 1000 bytes of one file are there."""
    hub.add(SD14, sd14_files)
    hub.break_after[BIG] = [1000] + [0] * 20
    refused(call("models", "pull", "sd14"), 4, "connection broke")
    assert parts(tmp_path) == [1000]
    hub.break_after.clear()
    return hub


def goes_on(hub, files, before=1000):
    """The same command ends, and no byte is fetched twice."""
    assert (Path(pulled()["folder"]) / BIG).read_bytes() == files[BIG]
    assert sent(hub)[BIG] == len(files[BIG]) - 1000 + before


@pytest.mark.parametrize("where", [BIG, SD14])
def test_a_web_page_in_place_of_a_file_or_listing(begun, sd14_files, tmp_path, where):
    """A network's login page has status 200; it must not replace what was fetched."""
    begun.pages.add(where)
    refused(call("models", "pull", "sd14"), 4, "a web page instead of", "proxy", "kept")
    assert parts(tmp_path) == [1000]
    begun.pages.clear()
    goes_on(begun, sd14_files)


def test_a_file_that_is_shorter_than_listed(hub, sd14_files, tmp_path):
    hub.add(SD14, sd14_files).shorter[BIG] = 10
    refused(call("models", "pull", "sd14"), 4, BIG, "ends after", "the hub lists", "kept")
    hub.repositories[SD14].shorter.clear()
    goes_on(hub, sd14_files)


@pytest.mark.parametrize(
    ("status", "code", "texts"),
    [
        (403, "GatedRepo", ("is gated", "hf auth login")),
        (401, "GatedRepo", ("is gated", "hf auth login")),
        (404, "EntryNotFound", ("changed on the hub", "again")),
        (502, "", ("answers 502", "kept")),
    ],
)
def test_weights_that_are_refused_halfway(begun, sd14_files, tmp_path, status, code, texts):
    begun.answers[BIG] = (status, code)
    refused(call("models", "pull", "sd14"), 4, *texts)
    assert parts(tmp_path) == [1000]
    begun.answers.clear()
    goes_on(begun, sd14_files)


def test_a_connection_that_falls_silent_is_made_again(begun, sd14_files, monkeypatch):
    monkeypatch.setattr(transfer, "_SILENCE", 0.1)
    begun.silent = [BIG]
    goes_on(begun, sd14_files)
    begun.woken.set()
    assert not begun.silent


def test_an_unfinished_file_of_something_else_is_replaced(begun, sd14_files, tmp_path):
    """As a killed process, or another program, may leave it."""
    (part,) = (tmp_path / "cache").rglob("*.incomplete")
    for content in (bytes(1000), bytes(len(sd14_files[BIG])), bytes(len(sd14_files[BIG]) + 5)):
        part.write_bytes(content)
        folder = Path(pulled()["folder"])
        assert (folder / BIG).read_bytes() == sd14_files[BIG]
        (folder / BIG).resolve().unlink()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_at_the_last_byte(begun, sd14_files, monkeypatch, tmp_path, number):
    real = Path.replace

    def full(self, target):
        if self.name.endswith(".incomplete"):
            raise OSError(number, "full", str(self))
        return real(self, target)

    monkeypatch.setattr(Path, "replace", full)
    refused(call("models", "pull", "sd14"), 6, "disk is full", "continues")
    monkeypatch.setattr(Path, "replace", real)
    goes_on(begun, sd14_files)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_cache_that_may_not_be_written(hub, sd14_files, tmp_path, monkeypatch, number):
    hub.add(SD14, sd14_files)
    real = Path.mkdir

    def refuse(self, *args, **more):
        if "cache" in self.parts:
            raise OSError(number, "no", str(self))
        return real(self, *args, **more)

    monkeypatch.setattr(Path, "mkdir", refuse)
    refused(call("models", "pull", "sd14"), 6, "cache", "HF_HOME")
