"""How long idle OpenMP threads spin, set before torch loads its OpenMP runtime.

A thread that waits for the others burns its core for a while before it sleeps: 300,000 rounds in GNU's
libgomp (torch's Linux wheels), 200 ms in LLVM's libomp (macOS) and Intel's libiomp5 (Windows, conda, MKL).
That is quickest on an idle machine. When another process keeps a core busy, the spinning thread takes the
time slice that the thread it waits for needs, and a run takes ten times as long. Spinning briefly costs
next to nothing on an idle machine and lets the threads share a core. ``python tests/busy.py`` measures it.

MKL in torch's wheels uses the same threads. OpenBLAS (NumPy, SciPy) has its own, but no stage spends its
time there, so they are left alone.
"""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping

#: The runtimes' own variables. KMP_BLOCKTIME is in milliseconds; older runtimes know no smaller unit.
DEFAULTS = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "1"}
#: The standard's variable. The ones above would silently override it, so a user who sets it gets it.
POLICY = "OMP_WAIT_POLICY"


def set_defaults(environ: MutableMapping[str, str] | None = None) -> bool:
    """Set each of :data:`DEFAULTS` that is not in the environment; processes started later inherit them.

    Returns:
        Whether they can take effect. False, and nothing is changed, where torch is loaded already: its
        runtime has read the environment, and a variable set now would only pretend otherwise.
    """
    environ = os.environ if environ is None else environ
    if "torch" in sys.modules:
        return False
    if POLICY not in environ:
        for name, value in DEFAULTS.items():
            environ.setdefault(name, value)
    return True


def settings() -> dict[str, str]:
    """The variables that are set now, for a bug report."""
    return {name: os.environ[name] for name in (POLICY, *DEFAULTS) if name in os.environ}
