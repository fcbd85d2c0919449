"""How results show themselves in a notebook: HTML that needs no file beside it."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping
from pathlib import Path

#: Larger files are named instead of embedded: the notebook's own file holds all that is embedded.
EMBEDDED = 20_000_000
_VIDEOS = {".mp4": "video/mp4", ".webm": "video/webm", ".mov": "video/mp4"}
_PICTURES = {".png": "image/png", ".gif": "image/gif", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}


def media_html(file: Path, caption: str) -> str:
    """A video or picture with a caption; its path alone where it is large, gone or unknown to browsers."""
    name = html.escape(str(file))
    shown = f"<code>{name}</code>"
    kind = file.suffix.lower()
    if kind in _VIDEOS | _PICTURES and file.is_file() and file.stat().st_size <= EMBEDDED:
        data = f"data:{(_VIDEOS | _PICTURES)[kind]};base64,{base64.b64encode(file.read_bytes()).decode()}"
        shown = f'<img src="{data}" title="{name}">'
        if kind in _VIDEOS:
            shown = f'<video controls autoplay loop muted playsinline src="{data}" title="{name}"></video>'
    return f"<figure>{shown}<figcaption>{html.escape(caption)}</figcaption></figure>"


def facts_html(facts: Mapping[str, object]) -> str:
    """Facts as a table of two columns."""
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>"
        for name, value in facts.items()
    )
    return f"<table>{rows}</table>"
