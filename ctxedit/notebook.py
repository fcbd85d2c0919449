"""Progress in notebooks, and the silence of libraries during a call."""

from __future__ import annotations

import functools
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

from ctxedit.editing.reporter import Reporter
from ctxedit.quiet import while_importing

_P = ParamSpec("_P")
_R = TypeVar("_R")


class NotebookReporter(Reporter):
    """Messages as lines, stages as bars, which notebooks draw as widgets where they can."""

    def say(self, text: str) -> None:
        print(text)

    def warn(self, text: str) -> None:
        print(f"warning: {text}")

    @contextmanager
    def task(self, name: str, total: int, unit: str = "step") -> Iterator[Callable[[int, str], None]]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "IProgress not found": then the bar is text
            from tqdm.auto import tqdm

            bar = tqdm(total=total, desc=name)

        def step(done: int, note: str = "") -> None:
            bar.set_postfix_str(note, refresh=False)
            bar.update(done - bar.n)

        with bar:
            yield step


def default_reporter() -> Reporter:
    """Shows progress in a notebook; elsewhere discards it."""
    return NotebookReporter() if in_notebook() else Reporter()


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook (Jupyter, VS Code, Colab)."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and getattr(shell, "kernel", None) is not None


def quietly(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Keep diffusers, transformers and the hub silent while a function runs, unless CTXEDIT_DEBUG is set."""

    @functools.wraps(function)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with quiet_libraries():
            return function(*args, **kwargs)

    return wrapped


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Errors only and no bars from diffusers, transformers and the hub; put back afterwards."""
    if os.environ.get("CTXEDIT_DEBUG", "") not in ("", "0"):
        yield
        return
    with while_importing():
        import diffusers.utils.logging as diffusers_logging
        import huggingface_hub.utils.logging as hub_logging
        import transformers.utils.logging as transformers_logging
    libraries = (diffusers_logging, transformers_logging, hub_logging)
    levels = [library.get_verbosity() for library in libraries]
    bars = [library for library in libraries[:2] if library.is_progress_bar_enabled()]
    for library in libraries:
        library.set_verbosity_error()
    for library in bars:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, level in zip(libraries, levels, strict=True):
            library.set_verbosity(level)
        for library in bars:
            library.enable_progress_bar()
