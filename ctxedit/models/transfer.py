"""One file from the hub into its cache: continued where it broke, compared with the hash that is listed."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ctxedit.errors import WeightsError

_CHUNK = 1 << 20
#: Fruitless requests in a row before a transfer is given up, and seconds between two.
_ATTEMPTS = 5
_PAUSE = 1.0
#: Seconds without a byte after which a connection counts as broken.
_SILENCE = 30.0
#: What a hub answers that is asked too much or restarted, and the longest wait that it may ask for.
_BUSY, _LONGEST_WAIT = (429, 500, 502, 503, 504), 60.0


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository.

    Attributes:
        name: path inside the repository.
        size: bytes.
        etag: what the hub's cache names its content by: SHA-256 of large files, git's SHA-1 of small ones.
    """

    name: str
    size: int
    etag: str


@dataclass(frozen=True)
class Download:
    """What is needed of a repository.

    Attributes:
        hub_id, commit: which.
        files: needed ones.
        missing: those that are not in the cache.
        place: folder of the cache that takes them.
        kept: bytes of unfinished files that an earlier attempt left.
    """

    hub_id: str
    commit: str
    files: tuple[RemoteFile, ...]
    missing: tuple[RemoteFile, ...]
    place: Path
    kept: int = 0

    @property
    def total(self) -> int:
        """Bytes of all needed files."""
        return sum(file.size for file in self.files)

    @property
    def bytes(self) -> int:
        """Bytes to transfer."""
        return sum(file.size for file in self.missing) - self.kept


class Watcher:
    """Receives events of downloads. This one ignores them, as the Python API does."""

    def begins(self, download: Download) -> None:
        """Called before the first byte; may raise to refuse."""

    def waits(self, name: str) -> None:
        """Another process is fetching this file."""

    def came(self, count: int) -> None:
        """So many more bytes have arrived."""

    def ended(self) -> None:
        """The download is complete, or it failed."""


def part_of(place: Path, file: RemoteFile) -> Path:
    return place / "blobs" / f"{file.etag}.ctxedit.incomplete"


def fetch_file(download: Download, file: RemoteFile, watcher: Watcher) -> None:
    """One content into the cache, checked; an unfinished one is continued. One process at a time."""
    blob, part = download.place / "blobs" / file.etag, part_of(download.place, file)
    blob.parent.mkdir(parents=True, exist_ok=True)
    locks = download.place.parent / ".locks" / download.place.name  # where huggingface_hub has its own
    locks.mkdir(parents=True, exist_ok=True)
    lock = FileLock(locks / f"{file.etag}.ctxedit.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        watcher.waits(f"{download.hub_id}/{file.name}")
        lock.acquire()
    try:
        if not blob.is_file():
            _fetch_and_check(download, file, part, watcher)
            part.replace(blob)
    finally:
        lock.release()


def _fetch_and_check(download: Download, file: RemoteFile, part: Path, watcher: Watcher) -> None:
    continued = part.is_file() and part.stat().st_size > 0
    _transfer(download, file, part, watcher)
    if _matches(part, file):
        return
    part.unlink()
    if continued:  # the old part may have been damaged, or of a proxy's page: once more from the start
        _transfer(download, file, part, watcher)
        if _matches(part, file):
            return
        part.unlink()
    raise WeightsError(
        f"{download.hub_id}/{file.name} was damaged in transit: its hash is not the hub's",
        "run the same command again; if it fails again, a proxy may be changing files",
    )


def _transfer(download: Download, file: RemoteFile, part: Path, watcher: Watcher) -> None:
    """Append to ``part`` what is still missing; retries while there is progress."""
    failures, most = 0, _size(part)
    while not part.is_file() or _size(part) < file.size:
        broken: Exception = ConnectionError("the connection ended early")
        pause = _PAUSE
        try:
            _request(download, file, part, _size(part), watcher)
        except OSError as error:
            if error.errno is not None:
                raise
            if (answer := getattr(error, "response", None)) is not None:
                wait = _wait(answer)
                if wait is None or failures + 1 >= _ATTEMPTS:
                    raise
                pause = wait
            broken = error
        except (WeightsError, WebPage):  # asking again brings the same
            raise
        except Exception as error:  # httpx' transport errors
            broken = error
        if part.is_file() and _size(part) >= file.size:
            return
        failures = 0 if _size(part) > most else failures + 1
        most = max(most, _size(part))
        if failures >= _ATTEMPTS:
            raise Broken from broken
        time.sleep(pause)


def _wait(answer: Any) -> float | None:
    """Seconds after which a busy hub may answer: what it says, up to a minute; None for another error."""
    if answer.status_code not in _BUSY:
        return None
    said = answer.headers.get("Retry-After", "")
    seconds = float(said) if said.isdecimal() else _PAUSE
    return None if seconds > _LONGEST_WAIT else max(seconds, _PAUSE)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


class Broken(Exception):
    """The connection broke, again and again."""


def _request(download: Download, file: RemoteFile, part: Path, have: int, watcher: Watcher) -> None:
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

    url = hf_hub_url(download.hub_id, file.name, revision=download.commit)
    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    with get_session().stream("GET", url, headers=headers, follow_redirects=True, timeout=_SILENCE) as answer:
        if answer.status_code >= 400:
            answer.read()  # the error's text is in it
        _refuse_other_answers(download, file, have, answer)
        hf_raise_for_status(answer)
        goes_on = have > 0 and answer.status_code == 206
        if have and not goes_on:
            watcher.came(-have)
        with part.open("ab" if goes_on else "wb") as stream:
            size = have if goes_on else 0
            for chunk in answer.iter_bytes():  # unbuffered: nothing is lost if the connection breaks
                stream.write(chunk)
                watcher.came(len(chunk))
                size += len(chunk)
                if size > file.size:  # no end in sight: its hash cannot be right
                    break


def _refuse_other_answers(download: Download, file: RemoteFile, have: int, answer: Any) -> None:
    """Raise for an answer that is not the file, before it replaces the part that is kept."""
    name = f"{download.hub_id}/{file.name}"
    if have and answer.status_code == 416:
        raise WeightsError(
            f"{name} ends after {have} bytes, the hub lists {file.size}",
            "a mirror or a proxy has a shorter file: unset HF_ENDPOINT or try again later; "
            "what was fetched is kept",
        )
    kind = answer.headers.get("Content-Type", "")
    if answer.status_code == 200 and kind.startswith("text/html") and not file.name.endswith(".html"):
        raise WebPage(name)


class WebPage(Exception):
    """A web page came instead of a file: a proxy's or a network's login page."""


def _matches(path: Path, file: RemoteFile) -> bool:
    """Whether a file is what the hub lists: SHA-256, or git's SHA-1 of a small file."""
    if path.stat().st_size != file.size:
        return False
    if len(file.etag) == 64:
        digest = hashlib.sha256()
    elif len(file.etag) == 40:
        digest = hashlib.sha1(f"blob {file.size}\0".encode(), usedforsecurity=False)
    else:
        return True  # a mirror that names contents otherwise
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest() == file.etag


def drop_damaged(download: Download) -> None:
    """Remove what is in the cache and is not what the hub lists."""
    for file in download.files:
        places = (
            download.place / "snapshots" / download.commit / file.name,
            download.place / "blobs" / file.etag,
        )
        for path in places:
            if path.is_file() and not _matches(path, file):
                path.resolve().unlink()
                path.unlink(missing_ok=True)
