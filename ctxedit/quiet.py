"""Silence while diffusers and transformers are imported: they advise packages that are not needed here."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

#: Read by the libraries when they are imported.
_VERBOSITY = {"transformers": "TRANSFORMERS_VERBOSITY", "diffusers": "DIFFUSERS_VERBOSITY"}


@contextmanager
def while_importing() -> Iterator[None]:
    """Libraries that the block imports for the first time are silent in it, and as usual afterwards.

    A level that the user set in the environment stays, and CTXEDIT_DEBUG leaves all as it is.
    """
    debug = os.environ.get("CTXEDIT_DEBUG", "") not in ("", "0")
    new = {k: v for k, v in _VERBOSITY.items() if not debug and v not in os.environ and k not in sys.modules}
    os.environ.update(dict.fromkeys(new.values(), "error"))
    try:
        yield
    finally:
        for library, variable in new.items():
            del os.environ[variable]
            logging.getLogger(library).setLevel(logging.WARNING)
