"""``ctxedit models``: what is built in, and what lies in the hub's cache."""

from __future__ import annotations

from typing import Any

import typer

from ctxedit.cli.options import Talk, help_unless_called, spread
from ctxedit.cli.output import Screen, columns

app = typer.Typer(help="The models: what is built in and cached.")
PARTS = ("unet", "vae", "text_encoder", "clip", "captioner")
LICENCE = "Apache-2.0"

app.callback(invoke_without_command=True)(help_unless_called)


@app.command("ls")
@spread
def ls(talk: Talk) -> None:
    """List the built-in models, what they know, and the models in the hub's cache."""
    from ctxedit.models.weights import SHORT_NAMES

    parts, known, cache = builtin(), knowledge(), cached()
    rows = [("part", "parameters", "bytes", "licence")]
    rows += [(p["part"], f"{p['parameters']:,}", f"{p['bytes']:,}", p["licence"]) for p in parts]
    words = [f"{name}: {', '.join(values)}" for name, values in known.items()]
    lines = ["builtin", columns(rows), "", "The built-in models know:", *words, "", "In the hub's cache:"]
    lines += [f"{c['id']}  {c['bytes'] / 2**30:.2f} GiB" for c in cache] or ["nothing"]
    lines += ["", "Short names: " + ", ".join(f"{k} = {v}" for k, v in SHORT_NAMES.items())]
    table = {"builtin": parts, "knows": known, "cached": cache, "short_names": SHORT_NAMES}
    Screen(talk.quiet, talk.json).result("\n".join(lines), table)


def builtin() -> list[dict[str, Any]]:
    """The built-in parts with their sizes; raises WeightsError when they are not there or are broken."""
    from ctxedit import footprint
    from ctxedit.config import BUILTIN
    from ctxedit.models.weights import locate

    folder = locate(BUILTIN).path
    found = []
    for part in PARTS:
        weight = footprint.weigh(folder / part)
        found.append(
            {"part": part, "parameters": weight.parameters, "bytes": weight.bytes, "licence": LICENCE}
        )
    return found


def knowledge() -> dict[str, list[str]]:
    """What the built-in models were taught."""
    from ctxedit.bundled.world import vocabulary

    return {
        "objects": [thing.name for thing in vocabulary.THINGS],
        "backgrounds": list(vocabulary.BACKGROUNDS),
        "styles": list(vocabulary.STYLES),
        "colours": list(vocabulary.COLOURS),
    }


def cached() -> list[dict[str, Any]]:
    """Models in the hub's cache, by id."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir().repos
    except CacheNotFound:
        return []
    found = [r for r in repositories if r.repo_type == "model"]
    return [
        {"id": r.repo_id, "bytes": r.size_on_disk, "path": str(r.repo_path)}
        for r in sorted(found, key=lambda r: r.repo_id)
    ]
