"""Devices and precisions, from the settings."""

from __future__ import annotations

import ctypes
import functools
import sys
from pathlib import Path

import torch

from ctxedit.errors import ConfigError, ResourceError


def pick_device(name: str) -> torch.device:
    """``auto`` is CUDA, then MPS, then CPU; raises ResourceError for a device that is not there."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"no device named {name!r}", "auto, cpu, cuda, cuda:1, mps") from error
    if device.type not in ("cpu", "cuda", "mps") or (device.type != "cuda" and device.index):
        raise ConfigError(f"ctxedit does not support the device {name!r}", "auto, cpu, cuda, cuda:1, mps")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ResourceError(f"there is no device {name}", "try --device cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ResourceError("there is no MPS device", "try --device cpu")
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """``auto`` is half precision where that is faster: on GPUs, and on CPUs that multiply bfloat16.

    Half precision is bfloat16 where there is some, else float16. On a CPU it is the denoiser's alone; see
    :func:`storage_dtype`.
    """
    if name not in ("auto", "half"):
        dtype = getattr(torch, name)
        if dtype == torch.float16 and device.type == "cpu":
            raise ConfigError("float16 does not run on the CPU", "use --dtype float32 or bfloat16")
        return dtype
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if name == "auto" and not (device.type == "cpu" and multiplies_bfloat16()):
        return torch.float32
    return torch.bfloat16 if device.type == "cpu" else torch.float16


def settled_dtype(name: str, device: str) -> str:
    """A precision as it is part of a run's identity: ``auto`` is bfloat16 on a CPU where it means that.

    A run started on another processor in another precision is then not taken for this one's.
    """
    here = name == "auto" and pick_device(device).type == "cpu" and multiplies_bfloat16()
    return "bfloat16" if here else name


def multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for products of bfloat16 numbers; known on Linux only.

    Without them bfloat16 is emulated, and slower than float32.
    """
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(processor_flags())


@functools.lru_cache(maxsize=1)
def processor_flags(file: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """What Linux says that the processor can do; empty elsewhere."""
    try:
        text = file.read_text(encoding="ascii", errors="replace")
    except OSError:
        return frozenset()
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return frozenset(flags.partition(":")[2].split())


def storage_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """What everything but the denoiser is kept in: on a CPU float32 where the denoiser is in bfloat16.

    Text encoder and autoencoder run once a clip, so nothing is gained there, and eight bits of a decoded
    pixel do not fit into bfloat16's mantissa.
    """
    return torch.float32 if device.type == "cpu" and dtype == torch.bfloat16 else dtype


def latent_dtype(dtype: torch.dtype) -> torch.dtype:
    """What latents are kept in: at least float32, since errors add up over the steps of a trajectory."""
    return torch.float32 if dtype.itemsize < 4 else dtype


def name_of(device: torch.device) -> str:
    """What a person calls a device: a GPU's product name, else its type."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def keep_heap() -> bool:
    """Tell glibc to keep freed memory: half of a CPU training went into page faults.

    Returns whether it could be said; elsewhere (macOS, Windows, musl) nothing happens.
    """
    mmap_max, trim_threshold, top_pad = -4, -1, -2  # malloc.h
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(mmap_max, 0) and mallopt(trim_threshold, 2**31 - 1) and mallopt(top_pad, 1 << 28))
