"""Files behind an fsspec URL: results that are delivered there, and clips that are fetched from there."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ctxedit.cache import cache_folder
from ctxedit.errors import ConfigError, CtxeditError, InputError, OutputError
from ctxedit.media.temporary import atomic

T = TypeVar("T")

#: ``s3://…``, ``memory://…``, and fsspec's chains such as ``zip://a.mp4::s3://…``.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(://|::)")


def is_url(text: str) -> bool:
    """Whether a path is fsspec's to open; ``C:\\clips`` is not."""
    return _URL.match(text) is not None


class Store:
    """A folder behind an fsspec URL, which receives files and gives them back.

    Args:
        url: of the folder; it need not exist.

    Raises:
        ConfigError: a protocol that fsspec does not know, or a package that it needs is missing.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/") if not url.endswith("://") else url
        self._fs, root = _opened(url)
        self._root = root.rstrip("/")

    def __reduce__(self) -> tuple[type[Store], tuple[str]]:
        return Store, (self.url,)

    def at(self, name: str) -> str:
        """The URL of a file in the folder."""
        return f"{self.url}/{name}"

    def put(self, file: Path, name: str) -> None:
        """Write a local file under a name (with ``/``), replacing an existing one. Raises OutputError."""

        def upload() -> None:
            path = self._path(name)
            self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            self._fs.put_file(str(file), path)

        self._tried(upload, f"{self.at(name)} cannot be written")

    def get(self, name: str, file: Path) -> bool:
        """Fetch a file to a local path; False where there is none. Raises OutputError."""

        def download() -> bool:
            if not self._fs.isfile(self._path(name)):
                return False
            with atomic(file, True) as temporary:
                self._fs.get_file(self._path(name), str(temporary))
            return True

        return self._tried(download, f"{self.at(name)} cannot be read")

    def read(self, name: str) -> bytes | None:
        """What a small file holds; None where there is none. Raises OutputError."""

        def load() -> bytes | None:
            self._fs.invalidate_cache()
            return bytes(self._fs.cat_file(self._path(name))) if self._fs.isfile(self._path(name)) else None

        return self._tried(load, f"{self.at(name)} cannot be read")

    def write(self, name: str, content: bytes) -> None:
        """Write a small file. Raises OutputError."""

        def save() -> None:
            self._fs.makedirs(self._path(name).rpartition("/")[0], exist_ok=True)
            self._fs.pipe_file(self._path(name), content)

        self._tried(save, f"{self.at(name)} cannot be written")

    def size(self, name: str) -> int | None:
        """Bytes of a file; None where there is none. Raises OutputError."""

        def find_size() -> int | None:
            path = self._path(name)
            self._fs.invalidate_cache()
            return int(self._fs.size(path)) if self._fs.isfile(path) else None

        return self._tried(find_size, f"{self.at(name)} cannot be read")

    def delete(self, name: str) -> None:
        """Delete a file if it exists. Raises OutputError."""

        def remove() -> None:
            if self._fs.isfile(self._path(name)):
                self._fs.rm_file(self._path(name))

        self._tried(remove, f"{self.at(name)} cannot be deleted")

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _tried(self, what: Callable[[], T], failed: str) -> T:
        return _tried(what, lambda why: OutputError(f"{failed}: {why}", "check address and credentials"))


def work_folder(url: str) -> Path:
    """Local folder for run folders and copies of work whose results go to ``url``."""
    return cache_folder() / "batch" / _digest(url.rstrip("/"))


def fetch(url: str) -> Path:
    """A file behind a URL, as a local copy in the cache: fetched again once it has changed there.

    Raises:
        ConfigError: a protocol that fsspec does not know, or a package that it needs is missing.
        InputError: no such file, or it cannot be read.
    """
    fs, path = _opened(url)

    def say(why: str) -> CtxeditError:
        return InputError(f"{url} cannot be read: {why}", "check address and credentials")

    def version() -> str:
        if fs.isdir(path):
            raise InputError(f"{url} is a folder", "name a file in it")
        if not fs.exists(path):
            raise InputError(f"{url} does not exist", "check address and credentials")
        return str(fs.ukey(path))  # fsspec's mark of a version: an ETag, or size and time

    name = path.rstrip("/").rpartition("/")[2] or "clip"
    copy = cache_folder() / "inputs" / _digest(url + _tried(version, say)) / name
    fetch_to(url, copy)
    return copy


def fetch_to(url: str, copy: Path) -> None:
    """Fetch a file to a local path, unless it is there. Raises as :func:`fetch` does."""
    if copy.is_file():
        return
    fs, path = _opened(url)
    with atomic(copy, True) as temporary:
        _tried(
            lambda: fs.get_file(path, str(temporary)),
            lambda why: InputError(f"{url} cannot be read: {why}", "check address and credentials"),
        )


def _opened(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it."""
    import fsspec

    try:
        fs, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise ConfigError(f"{url}: a package is missing", _line(error)) from error
    except ValueError as error:
        raise ConfigError(
            f"{url}: {_line(error)}", "e.g. s3://bucket/folder, gs://, file:///folder"
        ) from error
    except Exception as error:
        raise ConfigError(
            f"{url} cannot be opened: {_line(error)}", "check address and credentials"
        ) from error
    return fs, str(path)


def _tried(what: Callable[[], T], failure: Callable[[str], CtxeditError]) -> T:
    """Turn the exceptions of a file system's package into ctxedit's errors."""
    try:
        return what()
    except (CtxeditError, KeyboardInterrupt):
        raise
    except Exception as error:
        raise failure(_line(error)) from error


def _line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.split("\n")[0][:200]


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
