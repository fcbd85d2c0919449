"""What this machine has left: memory and disk, and the errors for a job that wants more."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from ctxedit.errors import OutputError, ResourceError

GIB = 1 << 30
_LESS = "try --low-memory, fewer --frames, a smaller --size, or --dtype bfloat16"


def check_memory(what: str, needed: int, available: int, hint: str = _LESS) -> None:
    """Raise ResourceError, with the numbers, for work that wants more than is available."""
    if needed > available:
        raise ResourceError(
            f"{what} needs about {needed / GIB:.1f} GiB of memory, {available / GIB:.1f} GiB are available",
            hint,
        )


def check_handling(what: str, needed: int) -> None:
    """Raise ResourceError, with the numbers, where main memory does not suffice for frames at hand."""
    hint = "take fewer --frames, or scale the clip down first: ffmpeg -i IN -vf scale=1920:-2 OUT.mp4"
    check_memory(what, needed, memory_available(torch.device("cpu")), hint)


def check_disk(needed: int, free: int) -> None:
    """Raise OutputError, with the numbers, where the disk is too full."""
    if needed > free:
        raise OutputError(
            f"about {needed / GIB:.2f} GiB are needed on the disk, {free / GIB:.2f} GiB are free",
            "free some, or choose another place with --runs",
        )


def memory_available(device: torch.device) -> int:
    """Bytes free on the device; on a CPU also within the container's limit, where there is one."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    free = int(psutil.virtual_memory().available)
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = ((group / f"memory.{name}").read_text().strip() for name in ("max", "current"))
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        room = int(limit) - int(used) + int(stat.get("inactive_file", 0))
    except (OSError, ValueError):  # no cgroup v2, or its limit is "max"
        return free
    return max(0, min(free, room))


def disk_free(place: Path) -> int:
    """Bytes free where ``place`` is or will be."""
    place = place.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    return shutil.disk_usage(place).free
