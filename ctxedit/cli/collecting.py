"""Python's garbage collector is off while modules are imported.

PyTorch, diffusers and transformers make hundreds of thousands of objects that live as long as the process.
While they are imported the collector walks over them again and again, and once more at exit.
"""

from __future__ import annotations

import gc

_paused = False


def pause() -> None:
    """Stop collecting until :func:`resume`; only for a process that ctxedit owns."""
    global _paused
    if gc.isenabled():
        gc.disable()
        _paused = True


def resume() -> None:
    """Collect again, except objects that exist by now; does nothing unless :func:`pause` stopped it."""
    global _paused
    if _paused:
        gc.freeze()
        gc.enable()
        _paused = False
