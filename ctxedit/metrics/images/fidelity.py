"""torch-fidelity's Inception, and its FID, KID, IS, precision and recall over features of any network.

Its functions take features, so CLIP's go the same way as Inception's, and nothing is computed twice.
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ctxedit.errors import ConfigError, WeightsError

#: What pip installs it by.
EXTRA = "ctxedit[images]"
_URL = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
_HASH = "6726825d"
_TORCHVISION = ("", ".datasets", ".transforms", ".transforms.functional", ".models")


class _Absent(types.ModuleType):
    """Stands for a torchvision that is not there: any name in it is an empty class."""

    __path__: list[str] = []  # noqa: RUF012

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


@contextmanager
def _torchvision_or_none() -> Iterator[None]:
    """Let torch-fidelity be imported where torchvision is missing or was built for another torch.

    It imports torchvision for its sample data sets and its VGG, neither of which is used here. The wheel on
    PyPI is built for CUDA and cannot be imported beside a CPU build of torch.
    """
    try:
        import torchvision  # noqa: F401

        yield
        return
    except Exception:  # a build that does not fit raises RuntimeError or OSError
        for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
            del sys.modules[name]
    names = [f"torchvision{part}" for part in _TORCHVISION]
    for name in names:
        sys.modules[name] = _Absent(name)
        parent, _, own = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], own, sys.modules[name])
    try:
        yield
    finally:
        for name in names:
            sys.modules.pop(name, None)


def library(module: str) -> Any:
    """A module of torch-fidelity.

    Raises:
        ConfigError: it is not installed.
    """
    if f"torch_fidelity.{module}" not in sys.modules:
        try:
            with _torchvision_or_none():
                importlib.import_module("torch_fidelity")
        except ModuleNotFoundError as error:
            raise ConfigError(
                "FID, KID, IS, precision and recall need torch-fidelity, which is not installed",
                f"{_install()}, or --metrics cmmd,clip_score",
            ) from error
    return importlib.import_module(f"torch_fidelity.{module}")


def _install() -> str:
    """PyPI's torchvision, which the extra brings along, breaks diffusers beside a CPU build of torch."""
    cpu_only = torch.version.cuda is None and torch.version.hip is None
    return "pip install --no-deps torch-fidelity" if cpu_only else f"pip install '{EXTRA}'"


def fid(generated: Tensor, reference: Tensor) -> float:
    """Fréchet distance (Heusel et al. 2017) of two sets of features (N, D), (M, D)."""
    metric = library("metric_fid")
    stats = [metric.fid_features_to_statistics(part.double()) for part in (generated, reference)]
    return float(metric.fid_statistics_to_metric(*stats, verbose=False)[metric.KEY_METRIC_FID])


def kid(generated: Tensor, reference: Tensor, size: int, subsets: int = 100) -> tuple[float, float]:
    """Kernel distance (Bińkowski et al. 2018): mean, standard deviation over random subsets of ``size``."""
    metric = library("metric_kid")
    found = metric.kid_features_to_metric(
        generated.double(), reference.double(), kid_subset_size=size, kid_subsets=subsets, verbose=False
    )
    return float(found[metric.KEY_METRIC_KID_MEAN]), float(found[metric.KEY_METRIC_KID_STD])


def inception_score(logits: Tensor, splits: int = 10) -> tuple[float, float]:
    """Inception score (Salimans et al. 2016) of logits (N, C): mean, standard deviation over the splits."""
    metric = library("metric_isc")
    found = metric.isc_features_to_metric(logits, splits=splits)
    return float(found[metric.KEY_METRIC_ISC_MEAN]), float(found[metric.KEY_METRIC_ISC_STD])


def precision_recall(generated: Tensor, reference: Tensor, neighbours: int = 3) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al. 2019), each in [0, 1]."""
    metric = library("metric_prc")
    found = metric.prc_features_to_metric(
        generated,
        reference,
        prc_neighborhood=neighbours,
        prc_batch_size=2000,
        save_cpu_ram=True,
        verbose=False,
    )
    return float(found[metric.KEY_METRIC_PRECISION]), float(found[metric.KEY_METRIC_RECALL])


def inception(weights: Path | None, device: torch.device, offline: bool) -> nn.Module:
    """torch-fidelity's Inception: uint8 images (N, 3, H, W) to features (N, 2048) and unbiased logits.

    Args:
        weights: a copy of its weights, ``.pth`` or ``.safetensors``; None is torch's cache or a download.
        device: where it runs.
        offline: fetch nothing.

    Raises:
        ConfigError: torch-fidelity is not installed.
        WeightsError: no weights, a file that may run code when it is read, or another network's.
    """
    path = _fetched(offline) if weights is None else weights
    state = _state(path)
    network = library("feature_extractor_inceptionv3").FeatureExtractorInceptionV3
    # The class reads a file and nothing else; it gets one that is known to hold tensors only.
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "inception.pth"
        torch.save(state, plain)
        try:
            made = network("inception-v3-compat", ["2048", "logits_unbiased"], str(plain))
        except (RuntimeError, KeyError) as error:
            raise WeightsError(
                f"{path} does not hold the weights of torch-fidelity's Inception", f"they are at {_URL}"
            ) from error
    return made.to(device)  # type: ignore[no-any-return]


def _state(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:
        raise WeightsError(
            f"{path} cannot be read as weights of an Inception", f"fetch them again from {_URL}"
        ) from error


def _fetched(offline: bool) -> Path:
    from huggingface_hub import is_offline_mode

    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(_URL).name
    if path.is_file():
        return path
    if offline or is_offline_mode():
        raise WeightsError(
            f"Inception's weights are not at {path}, and this is offline",
            f"fetch {_URL} and give it as --features FILE, or use --features clip",
        )
    try:
        os.makedirs(path.parent, exist_ok=True)
        torch.hub.download_url_to_file(_URL, str(path), hash_prefix=_HASH, progress=False)
    except Exception as error:
        raise WeightsError(
            f"Inception's weights could not be fetched from {_URL}",
            "fetch them elsewhere and give the file as --features FILE, or use --features clip",
        ) from error
    return path
