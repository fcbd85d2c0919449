"""The registry of backbone families: which class loads a checkpoint, by the pipeline class that it names.

Packages may add families through the entry-point group ``ctxedit.backbones``; its entries are imported when a
family is first looked for, and register themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from typing import Any, TypeVar

from ctxedit import plugins
from ctxedit.errors import WeightsError

#: The entry-point group of backbones that other packages add.
PLUGINS = "ctxedit.backbones"
_OURS = ("ctxedit.models.backbones.stable_diffusion", "ctxedit.models.backbones.sdxl")
#: Where pipelines that are no backbones are registered.
_OTHERS = ("ctxedit.models.upscalers.checkpoints",)

#: Why well-known kinds are refused: by a part of the pipeline's name, the first that fits.
_REASONS = {
    "StableDiffusionXLImg2Img": "the SDXL refiner only finishes what the base model began",
    "Inpaint": "inpainting networks take a masked image in addition to the latents",
    "Upscale": "upscaling networks take a low-resolution image in addition to the latents",
    "InstructPix2Pix": "its network takes the source image in addition to the latents",
    "StableDiffusion3": "flow transformers are not supported yet",
    "Flux": "flow transformers are not supported yet",
}

_FAMILIES: dict[str, type[Any]] = {}
_LAYOUTS: dict[str, type[Any]] = {}
_T = TypeVar("_T", bound=type[Any])


def register(*pipelines: str) -> Callable[[_T], _T]:
    """Class decorator: the family of checkpoints whose ``model_index.json`` names one of these pipelines."""

    def add(family: _T) -> _T:
        for name in pipelines:
            _FAMILIES[name] = family
        return family

    return add


def family_named(pipeline: str, model: str) -> type[Any]:
    """The family registered for a pipeline class: a subclass of :class:`ctxedit.models.backbones.Backbone`.

    Args:
        pipeline: ``_class_name`` of a checkpoint's ``model_index.json``.
        model: the checkpoint's name, for the error.

    Raises:
        WeightsError: no family is registered under that name.
    """
    _import_all()
    if pipeline not in _FAMILIES:
        reason = next((text for part, text in _REASONS.items() if part in pipeline), None)
        raise WeightsError(
            f"{model} is a {pipeline}, a kind of model that ctxedit cannot edit with"
            + (f": {reason}" if reason else ""),
            f"use a checkpoint of one of: {', '.join(sorted(_FAMILIES))}",
        )
    return _FAMILIES[pipeline]


def register_layout(pipeline: str) -> Callable[[_T], _T]:
    """Class decorator: what a pipeline that is no backbone consists of.

    The class has ``networks_in``, ``others_in`` and ``check``, as a backbone's family.
    """

    def add(layout: _T) -> _T:
        _LAYOUTS[pipeline] = layout
        return layout

    return add


def layout_named(pipeline: str, model: str) -> type[Any]:
    """What the folders of a pipeline are: of a backbone's family, or of another kind, such as an upscaler.

    Raises:
        WeightsError: no such pipeline is known.
    """
    for module in _OTHERS:
        import_module(module)
    return _LAYOUTS[pipeline] if pipeline in _LAYOUTS else family_named(pipeline, model)


@lru_cache(maxsize=1)
def _import_all() -> None:
    for module in _OURS:
        import_module(module)
    for _ in plugins.load(PLUGINS, "backbone", WeightsError):
        pass  # each registers itself
