"""HED, depth and pose maps for a ControlNet, computed from the clip by controlnet_aux where it is installed.

Which one belongs to a ControlNet is known by the names of the published ones:
``lllyasviel/sd-controlnet-depth``, ``lllyasviel/control_v11p_sd15_softedge``, … The detectors' weights, which
the library fetches, are pickles; the library has torch read them, here as data only, whatever it or the
environment says: a pickle with code in it is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ctxedit.errors import ConfigError, WeightsError

_LIBRARY = "controlnet_aux"
#: Where the library's authors keep the detectors' weights.
WEIGHTS = "lllyasviel/Annotators"
#: A part of the ControlNet's name, the map's name, and the class that computes it.
_DETECTORS = {
    "hed": ("HED edges", "HEDdetector"),
    "softedge": ("HED edges", "HEDdetector"),
    "depth": ("depth", "MidasDetector"),
    "openpose": ("poses", "OpenposeDetector"),
}


def computed_map(model: str) -> str | None:
    """What a ControlNet is shown, if it can be computed: HED edges, depth or poses; None otherwise."""
    found = _entry(model)
    return None if found is None else found[0]


def check_library(model: str) -> None:
    """Raise ConfigError where a ControlNet's map can be computed and the library for it is not installed."""
    if find_spec(_LIBRARY) is None:
        raise ConfigError(
            f"{model} needs a map of {computed_map(model)}, and controlnet_aux, which computes it, "
            "is not installed",
            "pip install 'ctxedit[control]', or give the map: --control FILE (a video, image or folder)",
        )


class Detector:
    """Computes the map of one kind.

    Args:
        model: the ControlNet, by a name that :func:`computed_map` knows.
        device: where the detector runs.
        offline: use the hub's cache only.

    Raises:
        ConfigError: the library is not installed.
        WeightsError: its weights are not here, or cannot be read.
    """

    def __init__(self, model: str, device: torch.device, offline: bool = False) -> None:
        check_library(model)
        entry = _entry(model)
        assert entry is not None  # as the caller asked ``computed_map``
        try:
            import controlnet_aux

            cls: Any = getattr(controlnet_aux, entry[1])
            with _data_only():
                self._detector = cls.from_pretrained(
                    WEIGHTS, **({"local_files_only": True} if offline else {})
                )
            self._detector.to(device)
        except Exception as error:  # the library's own, of the hub's, of torch's
            line = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
            raise WeightsError(
                f"the detector of {entry[0]} could not be loaded: {line}",
                f"its weights come from {WEIGHTS} on the hub; or give the map: --control FILE",
            ) from error

    def __call__(self, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The maps of RGB frames (F, H, W, 3) uint8, of the same shape."""
        height, width = frames.shape[1:3]
        side = min(height, width)
        maps = []
        for frame in frames:
            found = self._detector(
                Image.fromarray(frame), detect_resolution=side, image_resolution=side, output_type="pil"
            )
            maps.append(np.asarray(found.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)))
        return np.stack(maps)


@contextmanager
def _data_only() -> Iterator[None]:
    """torch.load runs no code within the block; TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD turns its default around."""
    load = torch.load

    def guarded(*arguments: Any, **options: Any) -> Any:
        return load(*arguments, **{**options, "weights_only": True})

    with mock.patch.object(torch, "load", guarded):
        yield


def _entry(model: str) -> tuple[str, str] | None:
    words = model.rstrip("/").rsplit("/", 1)[-1].lower().replace("-", "_").split("_")
    return next((found for part, found in _DETECTORS.items() if part in words), None)
