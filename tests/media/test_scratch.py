"""Arrays on disk: nothing of them is lost or left, and a full disk is an error and no crash."""

import errno
import os

import numpy as np
import pytest

from ctxedit.errors import OutputError
from ctxedit.media.scratch import release, scratch


def test_what_was_written_outlives_its_memory_and_leaves_no_file(tmp_path):
    array = scratch(tmp_path / "new", (3, 5000), np.float32)
    array[1] = np.arange(5000)
    release(array, array[1:, ::2], np.zeros(3))  # views too; arrays in memory stay as they are
    assert array[1, 4999] == 4999 and not array[0].any()
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system reserves no room")
def test_a_full_disk_is_told_before_anything_is_written(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OutputError, match="full"):
        scratch(tmp_path, (10,), np.uint8)


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system reserves no room")
def test_a_file_system_that_cannot_reserve_is_filled_instead(tmp_path, monkeypatch):
    def unable(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", unable)
    array = scratch(tmp_path, (3 << 20,), np.uint8)
    array[-1] = 7
    assert array.sum() == 7
