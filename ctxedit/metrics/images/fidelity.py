"""torch-fidelity's Inception, and its FID, KID, IS, precision and recall over features of any network.

Its functions take features, so CLIP's go the same way as Inception's, and nothing is computed twice.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ctxedit.errors import ConfigError, WeightsError
from ctxedit.metrics.optional import fetched, how_to_install, tensors, torchvision_or_none

_URL = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"


def library(module: str) -> Any:
    """A module of torch-fidelity.

    Raises:
        ConfigError: it is not installed.
    """
    if f"torch_fidelity.{module}" not in sys.modules:
        try:
            with torchvision_or_none():
                importlib.import_module("torch_fidelity")
        except ModuleNotFoundError as error:
            raise ConfigError(
                "FID, KID, IS, precision and recall need torch-fidelity, which is not installed",
                f"{how_to_install('torch-fidelity', 'images')}, or --metrics cmmd,clip_score",
            ) from error
    return importlib.import_module(f"torch_fidelity.{module}")


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
    instead = "give the file as --features FILE, or use --features clip"
    path = fetched(_URL, "Inception", instead, offline) if weights is None else weights
    state = tensors(path, "an Inception")
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
    return made.to(device)
