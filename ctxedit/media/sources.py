"""What a path given as a clip refers to: a file, a photo that holds a video, or nothing readable."""

from __future__ import annotations

import mmap
import re
from functools import lru_cache
from pathlib import Path

from ctxedit.errors import InputError
from ctxedit.files import neighbour

#: Of videos, where a folder is searched for clips; any other that FFmpeg reads can be named.
CLIP_SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpeg", ".mpg", ".gif")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # a Path has already merged the two slashes
_PATTERN = re.compile(r"%\d*d|[*?\[]")
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1", b"hevc", b"hevx")


def check_exists(path: str | Path) -> Path:
    """The path, if something is there.

    Raises:
        InputError: nothing is there; for standard input, web addresses and file name patterns the message
            says what to give instead.
    """
    path, text = Path(path), str(path)
    try:
        path.stat()
        return path
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:  # no permission, too long a name, a loop of links
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{text[:200]} cannot be read: {reason.lower()}", "check the path") from error
    if text == "-":
        raise InputError(
            "clips are not read from standard input", "a clip is read several times: save it to a file first"
        )
    if _URL.match(text):
        raise InputError(
            f"{text.replace(':/', '://', 1)} is a web address; only local files are read",
            "download the clip first, for example with curl -LO or yt-dlp",
        )
    if _PATTERN.search(path.name):
        folder = path.parent
        where = f": {folder}" if folder.is_dir() and str(folder) != "." else ""
        raise InputError(
            f"{text} is a file name pattern, which is not expanded",
            f"give the folder that holds the frames{where}; its images are read in numerical order",
        )
    raise InputError(
        f"{text} does not exist", f"{neighbour(path)}check the path; it is taken from the current folder"
    )


def location(path: Path) -> str:
    """The name by which FFmpeg opens the video of a file: of a motion photo, the part behind the picture."""
    # The absolute path has no colon early enough to be taken for a protocol.
    full = str(path.absolute())
    offset = video_offset(path)
    return full if offset is None else f"subfile,,start,{offset},end,0,,:{full}"


def video_offset(path: Path) -> int | None:
    """Where the MP4 of a motion photo begins: a JPEG with a short video appended. None in other files.

    Google's and Samsung's phones describe the place in different metadata; the MP4's own first box is common
    to both.
    """
    stat = path.stat()
    return _video_offset(path.absolute(), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=64)
def _video_offset(path: Path, size: int, mtime: int) -> int | None:
    if size < 64 or not path.is_file():
        return None
    with path.open("rb") as file:
        if file.read(3) != b"\xff\xd8\xff":
            return None
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            at = data.find(b"ftyp")
            while at != -1:
                length = int.from_bytes(data[at - 4 : at], "big")
                end = at - 4 + length
                # The boxes must go on: the four letters alone may occur in any picture.
                if 16 <= length <= 256 and data[end + 4 : end + 8] in (b"moov", b"mdat", b"free", b"wide"):
                    return at - 4
                at = data.find(b"ftyp", at + 4)
    return None


def is_jpeg_stream(path: Path) -> bool:
    """Whether a file is motion JPEG without a container: by its content it is but the first of its JPEGs."""
    return path.suffix.lower() in (".mjpeg", ".mjpg")


def is_heif(path: Path) -> bool:
    """Whether the file is a HEIF or HEIC picture, by its brand. AVIF, which has one of its own, is not."""
    with path.open("rb") as file:
        head = file.read(64)
    return head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS and b"avif" not in head[12:]
