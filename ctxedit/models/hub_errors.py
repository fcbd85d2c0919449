"""What goes wrong with a hub, in one line, and what to do about it."""

from __future__ import annotations

import errno
import json
import re
from pathlib import Path
from urllib.request import getproxies

from ctxedit.errors import CtxeditError, OutputError, WeightsError
from ctxedit.files import neighbour
from ctxedit.models.transfer import Broken, WebPage

_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}


def explanation(hub_id: str, error: Exception, revision: str | None = None) -> CtxeditError:
    """The error to report for one of ``huggingface_hub``, its transport or the operating system.

    Args:
        hub_id: the repository.
        error: what was raised.
        revision: the commit that was asked for; None for the main branch.
    """
    from huggingface_hub import constants, errors

    if isinstance(error, OSError) and error.errno in _FULL:
        return OutputError(
            f"the disk is full; {hub_id} was not fetched",
            "free some space and run the same command again: it continues where it stopped",
        )
    if isinstance(error, errors.HFValidationError):
        return _no_id(hub_id)
    if isinstance(error, errors.GatedRepoError):
        return WeightsError(
            f"{hub_id} is gated: its owner asks you to accept terms first",
            f"accept them at {constants.ENDPOINT}/{hub_id}, log in with `hf auth login`, and run this again",
        )
    if isinstance(error, errors.RevisionNotFoundError) and revision is not None:
        return WeightsError(
            f"{constants.ENDPOINT} lacks the commit {revision[:8]} of {hub_id}, the one with safetensors",
            "unset HF_ENDPOINT if it names a mirror, or give a folder",
        )
    if isinstance(error, errors.RevisionNotFoundError | errors.EntryNotFoundError):
        return WeightsError(
            f"{hub_id} changed on the hub while it was fetched, or lacks a file", "run the same command again"
        )
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.RepositoryNotFoundError | errors.DisabledRepoError) or status in (
        401,
        403,
        404,
    ):
        return no_access(hub_id, status)
    if isinstance(error, WebPage | json.JSONDecodeError):
        return _web_page(hub_id)
    if isinstance(error, Broken):
        return WeightsError(
            f"the connection broke while {hub_id} was fetched",
            "run the same command again: it continues where it stopped",
        )
    if status is not None:
        return _busy(hub_id, error, status)
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        return OutputError(
            f"{error.filename} cannot be written: {error.strerror}",
            "set HF_HOME to a folder you may write to",
        )
    if isinstance(error, UnicodeEncodeError):
        return WeightsError("the hub's token has characters that no token has", "check HF_TOKEN, or unset it")
    line = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
    return WeightsError(
        f"{hub_id} could not be fetched: {line}",
        f"{neighbour(Path(hub_id))}check the connection to {constants.ENDPOINT}{_through()}, or give a "
        "folder; what was fetched is kept",
    )


def _web_page(hub_id: str) -> WeightsError:
    from huggingface_hub import constants

    return WeightsError(
        f"{constants.ENDPOINT} answers with a web page instead of {hub_id}",
        f"a proxy, a login page of the network, or HF_ENDPOINT{_through()} answers for the hub; "
        "what was fetched is kept",
    )


def no_access(hub_id: str, status: int | None = None) -> WeightsError:
    """For a repository that is not there, or not for everyone.

    ``status``: of the answer. The hub answers an expired token with 401 even if the repository is public.
    """
    from huggingface_hub import constants, get_token

    check = "check the id"
    if constants.ENDPOINT != constants._HF_DEFAULT_ENDPOINT:
        check += f" and HF_ENDPOINT ({constants.ENDPOINT})"
    hint = "a private repository needs `hf auth login`"
    if status == 401 and get_token():
        hint = "your token may have expired: `hf auth login` renews it, or unset HF_TOKEN"
    return WeightsError(
        f"there is no {hub_id} on the hub, or you have no access to it",
        f"{neighbour(Path(hub_id))}{check}; {hint}",
    )


def _no_id(hub_id: str) -> WeightsError:
    if "@" in hub_id:
        name, _, revision = hub_id.partition("@")
        return WeightsError(
            f"{hub_id!r} names a revision; only the main branch of a repository is fetched",
            f"fetch it with `hf download {name} --revision {revision} --local-dir FOLDER`, and give FOLDER",
        )
    return WeightsError(
        f"{hub_id!r} is not a hub id", "write it as owner/name, e.g. CompVis/stable-diffusion-v1-4"
    )


def _busy(hub_id: str, error: Exception, status: int) -> WeightsError:
    answer = getattr(error, "response", None)
    said = answer.headers.get("Retry-After", "") if answer is not None else ""
    later = f"in {said} seconds" if said.isdecimal() and int(said) > 1 else "later"
    return WeightsError(
        f"the hub answers {status} for {hub_id}", f"try again {later}: what was fetched is kept"
    )


def _through() -> str:
    """The proxies that the environment names, without passwords."""
    named = sorted({re.sub(r"//[^/@]*@", "//", url) for kind, url in getproxies().items() if kind != "no"})
    return f" (through the proxy {', '.join(named)})" if named else ""
