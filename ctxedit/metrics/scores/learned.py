"""Scores by networks of their own, computed only on request: PickScore, LPIPS, DINO structure.

Each follows its published definition. Weights are fetched when first needed, or named where they are missing;
``--weights METRIC=PATH`` takes a copy from elsewhere.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from ctxedit.errors import ConfigError, WeightsError
from ctxedit.metrics import Edit, Networks, metric
from ctxedit.metrics.optional import fetched, how_to_install, tensors, torchvision_or_none
from ctxedit.metrics.structure import structure_distance
from ctxedit.models.clip import ClipScorer, checkpoint_folder, load_model

#: Kirstain et al. 2023: CLIP-H, tuned on what people picked.
PICKSCORE = "yuvalkirstain/PickScore_v1"
#: Tumanyan et al. 2022: ViT-B/8 of DINO.
DINO = "facebook/dino-vitb8"
#: LPIPS's trunk; its heads come with the package.
ALEXNET = "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_LONGEST = 480 / 224  # of DINO's pictures, as a multiple of the shorter edge
_BATCH = 8


def _pickscore(networks: Networks) -> ClipScorer:
    return networks.once(
        "pickscore",
        lambda: ClipScorer(
            networks.weights_of("pickscore", PICKSCORE), networks.device, offline=networks.offline
        ),
    )


@metric(
    "pickscore", title="PickScore", needs="target", better="higher", decimals=2, where="", order=200,
    prepare=_pickscore,
)  # fmt: skip
def pickscore(edit: Edit) -> float:
    """mean over frames of PickScore, which predicts which image people prefer for a prompt"""
    assert edit.target is not None
    scorer = _pickscore(edit.networks)
    cosines = scorer.embed_images(edit.frames) @ scorer.embed_texts([edit.target])[0]
    return scorer.scale * float(cosines.double().mean())


class Dino:
    """DINO's keys of the last self-attention, for all tokens.

    Args:
        folder_or_id: a ``ViTModel`` checkpoint.
        device: where it runs.
        offline: fetch nothing.
    """

    def __init__(self, folder_or_id: str | Path, device: torch.device | str, offline: bool = False) -> None:
        self.device = device
        self._model = load_model(_Vit, checkpoint_folder(folder_or_id, offline), device, torch.float32)
        self._side = int(self._model.config.image_size)

    @torch.no_grad()
    def keys(self, frames: NDArray[np.uint8]) -> Tensor:
        """RGB uint8 (F, H, W, 3) to keys (F, 1 + patches, D), the heads side by side, on CPU."""
        found: list[Tensor] = []
        names = [n for n, _ in self._model.named_modules() if n.rpartition(".")[2] in ("k_proj", "key")]
        layer = self._model.get_submodule(names[-1])
        hook = layer.register_forward_hook(lambda module, args, out: found.append(out.float().cpu()))
        try:
            for start in range(0, len(frames), _BATCH):
                pixels = torch.stack([self._pixels(frame) for frame in frames[start : start + _BATCH]])
                self._model(pixel_values=pixels.to(self.device), interpolate_pos_encoding=True)
        finally:
            hook.remove()
        return torch.cat(found)

    def _pixels(self, frame: NDArray[np.uint8]) -> Tensor:
        """The shorter edge becomes the network's side, the longer one at most 480 of 224; ImageNet's mean."""
        height, width = frame.shape[:2]
        scale = min(self._side / min(height, width), _LONGEST * self._side / max(height, width))
        size = (round(width * scale), round(height * scale))
        image = np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR), np.float32) / 255
        mean, std = (np.array(part, np.float32) for part in _IMAGENET)
        return torch.from_numpy((image - mean) / std).movedim(-1, 0)


class _Vit:
    """``ViTModel`` without the pooler, which DINO has none of."""

    @staticmethod
    def from_pretrained(folder: Path, **options: Any) -> Any:
        from transformers import ViTModel

        return ViTModel.from_pretrained(folder, add_pooling_layer=False, **options)


def _dino(networks: Networks) -> Dino:
    return networks.once(
        "dino_structure",
        lambda: Dino(networks.weights_of("dino_structure", DINO), networks.device, networks.offline),
    )


@metric(
    "dino_structure", title="DINO structure", needs="source", better="lower", decimals=4, where="", order=210,
    prepare=_dino,
)  # fmt: skip
def dino_structure(edit: Edit) -> float:
    """squared difference of DINO's key self-similarities from the source's"""
    assert edit.source is not None
    dino = _dino(edit.networks)
    found = []
    for index in range(len(edit.frames)):  # a frame at a time: the matrices are large
        source, mine = (dino.keys(clip[index : index + 1]) for clip in (edit.source, edit.frames))
        found.append(structure_distance(source, mine))
    return float(np.mean(found))


def _alexnet(state: dict[str, Tensor], path: Path) -> nn.Sequential:
    """The convolutions of Krizhevsky 2014, as torchvision lays them out, with these weights."""
    layers = nn.Sequential(
        nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, stride=2),
        nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, stride=2),
        nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, stride=2),
    )  # fmt: skip
    own = {k.removeprefix("features."): v for k, v in state.items() if k.startswith("features.")}
    try:
        layers.load_state_dict(own)
    except RuntimeError as error:
        raise WeightsError(
            f"{path} does not hold the weights of AlexNet", f"they are at {ALEXNET}"
        ) from error
    return layers


@contextmanager
def _trunk(library: Any, layers: nn.Sequential) -> Iterator[None]:
    """Give lpips this trunk. It would take torchvision's, unpickled from a download of its own."""
    networks = library.pretrained_networks
    kept = networks.tv
    networks.tv = SimpleNamespace(alexnet=lambda pretrained: SimpleNamespace(features=layers))
    try:
        yield
    finally:
        networks.tv = kept


def _lpips(networks: Networks) -> nn.Module:
    def load() -> nn.Module:
        try:
            with torchvision_or_none():
                library = importlib.import_module("lpips")
        except ModuleNotFoundError as error:
            raise ConfigError(
                "LPIPS needs the package lpips", how_to_install("lpips scipy", "lpips")
            ) from error
        given = networks.weights_of("lpips", "")
        path = Path(given) if given else fetched(
            ALEXNET, "AlexNet", "give the file as --weights lpips=FILE", networks.offline
        )  # fmt: skip
        layers = _alexnet(tensors(path, "AlexNet"), path)
        with _trunk(library, layers):
            made: nn.Module = library.LPIPS(net="alex", verbose=False)
        return made.to(networks.device).eval().requires_grad_(False)

    return networks.once("lpips", load)


@metric(
    "lpips", title="LPIPS", needs="source", better="lower", decimals=3, where="", order=220, prepare=_lpips
)  # fmt: skip
def lpips(edit: Edit) -> float:
    """learned perceptual distance (AlexNet, version 0.1) of the frames from the source's"""
    assert edit.source is not None
    network, values = _lpips(edit.networks), []
    for start in range(0, len(edit.frames), _BATCH):
        pair = [
            torch.from_numpy(clip[start : start + _BATCH]).movedim(-1, 1).to(edit.networks.device) / 127.5 - 1
            for clip in (edit.frames, edit.source)
        ]
        with torch.no_grad():
            values.append(network(*pair).flatten().double().cpu())
    return float(torch.cat(values).mean())
