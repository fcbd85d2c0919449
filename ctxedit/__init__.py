"""Edit a video with words.

The Python API is seven verbs and what they return; each is imported when it is first named, so that
``import ctxedit`` is quick::

    import ctxedit

    result = ctxedit.run("samples/tiger-beach.mp4", "a panda walking on the beach")
    print(result.files.video)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ctxedit import threads
from ctxedit.quiet import while_importing

if TYPE_CHECKING:
    from ctxedit.api import (
        Config,
        EditResult,
        Figures,
        Reporter,
        Run,
        caption,
        edit,
        evaluate,
        evaluate_run,
        generate,
        run,
        settings,
        tune,
    )

__version__ = "0.1.0"

threads.set_defaults()  # here, because every way in imports the package before it imports torch

__all__ = [
    "Config",
    "EditResult",
    "Figures",
    "Reporter",
    "Run",
    "__version__",
    "caption",
    "edit",
    "evaluate",
    "evaluate_run",
    "generate",
    "run",
    "settings",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        with while_importing():
            return getattr(import_module("ctxedit.api"), name)
    raise AttributeError(f"module 'ctxedit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
