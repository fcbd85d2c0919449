"""The configuration of a checkpoint that is one file of weights: fetched from a repository that fits.

diffusers would fetch it by itself, even when told to use local files only, and for Stable Diffusion 2.x from
a repository that is no longer there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ctxedit.errors import WeightsError
from ctxedit.model_names import SHORT_NAMES
from ctxedit.models import hub, layout

#: Whose configuration fits, by the width of the text encoder.
_CONFIGURATIONS = {768: "sd15", 1024: "sd21"}


def configuration(path: Path, width: int, parts: Sequence[str], offline: bool = False) -> Path:
    """A folder with the configuration that fits a single file, in the hub's cache; fetched if need be.

    Args:
        path: the file, for errors.
        width: of its text encoder.
        parts: folders of a pipeline whose settings are needed.
        offline: use the hub's cache only.

    Raises:
        WeightsError: none is known, it is not in the cache and this is offline, or the hub's errors.
    """
    if width not in _CONFIGURATIONS:
        raise WeightsError(
            f"{path}: a text encoder of width {width} is neither Stable Diffusion 1.x nor 2.x",
            "convert the file to a diffusers folder",
        )
    hub_id, select = SHORT_NAMES[_CONFIGURATIONS[width]], layout.settings(parts)
    if (found := hub.cached(hub_id, select)) is not None:
        return found
    if hub.is_offline(offline):
        raise WeightsError(
            f"the configuration that {path.name} needs, {hub_id}'s, is not in the cache, and this is offline",
            "run once online (it is less than 2 MB), or convert the file to a diffusers folder",
        )
    there = hub.listing(hub_id)
    return hub.fetch(there, select(there.names, False))
