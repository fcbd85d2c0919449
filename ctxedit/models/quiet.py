"""Keeps libraries from talking over what ctxedit says."""

from __future__ import annotations


def hush() -> None:
    """Silence what diffusers, transformers and the hub say and draw, in this process."""
    import logging

    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    for talk in (diffusers_logging, transformers_logging):
        talk.set_verbosity_error()
        talk.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
