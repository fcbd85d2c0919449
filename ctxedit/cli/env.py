"""``ctxedit env``: what a bug report needs."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
from typing import Any

from ctxedit.cli.options import MessageOptions
from ctxedit.cli.output import Screen

_OPTIONAL = ("decord", "av", "xformers", "lavis", "torch_fidelity", "lpips")


def env(messages: MessageOptions) -> None:
    """Print versions, devices, memory, paths and environment variables (for bug reports)."""
    facts = gather()
    lines = []
    for name, value in facts.items():
        if isinstance(value, dict):
            lines += [f"{name}.{key}: {_text(inner)}" for key, inner in value.items()]
        else:
            lines.append(f"{name}: {_text(value)}")
    Screen(messages.quiet, messages.json).result("\n".join(lines), facts)


def gather() -> dict[str, Any]:
    """All of it, as a table."""
    import imageio_ffmpeg
    import psutil
    import torch
    from huggingface_hub import constants

    from ctxedit import __version__, runs, threads
    from ctxedit.config import PRESET_FOLDERS
    from ctxedit.models.weights import BUILTIN_FOLDER

    memory = psutil.virtual_memory()
    return {
        "versions": {**runs.versions(), "ctxedit": __version__},
        "platform": platform.platform(),
        "executable": sys.executable,
        "cpu": {"cores": os.cpu_count(), "threads": torch.get_num_threads(), **threads.settings()},
        "memory": {"total": memory.total, "available": memory.available},
        "devices": _devices(torch),
        "ffmpeg": _quietly(imageio_ffmpeg.get_ffmpeg_exe),
        "ffmpeg_version": _quietly(imageio_ffmpeg.get_ffmpeg_version),
        "present": {name: importlib.util.find_spec(name) is not None for name in _OPTIONAL},
        "paths": {
            "hub_cache": constants.HF_HUB_CACHE,
            "builtin": str(BUILTIN_FOLDER),
            "presets": str(next((p for p in PRESET_FOLDERS if p.is_dir()), "missing")),
            "runs": os.environ.get("CTXEDIT_RUNS", "runs"),
        },
        "offline": os.environ.get("HF_HUB_OFFLINE", ""),
        "variables": {k: v for k, v in sorted(os.environ.items()) if k.startswith("CTXEDIT_")},
    }


def _devices(torch: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        found.append({"device": f"cuda:{index}", "name": name, "free": free, "total": total})
    if torch.backends.mps.is_available():
        found.append({"device": "mps", "name": platform.processor()})
    return [*found, {"device": "cpu", "name": platform.processor() or platform.machine()}]


def _quietly(ask: Any) -> str:
    try:
        return str(ask())
    except Exception as error:  # no ffmpeg: a bug report should say so, not fail
        return f"missing ({error})"


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "; ".join(", ".join(f"{k} {v}" for k, v in entry.items()) for entry in value)
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)
