"""The FFmpeg program that encodes videos and copies their sound."""

from __future__ import annotations

import subprocess
from functools import cache

import imageio_ffmpeg

from ctxedit.errors import OutputError

_HINT = "reinstall imageio-ffmpeg, which brings one; or set IMAGEIO_FFMPEG_EXE to the path of another"


def ffmpeg() -> str:
    """The path of a program that runs and is FFmpeg: of IMAGEIO_FFMPEG_EXE, imageio-ffmpeg or the system.

    Raises:
        OutputError: there is none. An installation without wheels, such as a distribution's, has none of its
            own, and the variable may name anything.
    """
    try:
        path = imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise OutputError("FFmpeg, which writes the videos, was not found", _HINT) from error
    if not _runs(path):
        raise OutputError(f"FFmpeg, which writes the videos, does not run: {path}", _HINT)
    return path


@cache
def _runs(path: str) -> bool:
    try:
        said = subprocess.run([path, "-version"], capture_output=True, check=False, stdin=subprocess.DEVNULL)
    except OSError:
        return False
    return said.returncode == 0 and said.stdout.startswith(b"ffmpeg version")
