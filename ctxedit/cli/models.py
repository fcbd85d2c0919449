"""``ctxedit models``: the built-in models and their checks, and what is in the hub's cache."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ctxedit.cli import arguments
from ctxedit.cli.failures import resumable
from ctxedit.cli.options import MessageOptions, SettingOptions
from ctxedit.cli.output import Screen, columns, human_size, pairs
from ctxedit.cli.output_options import DownloadOption
from ctxedit.cli.spread import help_unless_called, spread

if TYPE_CHECKING:
    from collections.abc import Sequence

app = typer.Typer(help="List models, download one, and measure the built-in ones.")
#: How the record of a training relates to the installed weights.
_RECORDED = {True: "as recorded", False: "not those of the record", None: "no record"}

app.callback(invoke_without_command=True)(help_unless_called)


@app.command("ls")
@spread
def ls(
    messages: MessageOptions,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", show_default=False,
            help="Also say what `ctxedit run` with this model would still fetch (asks the hub for sizes).",
        ),
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", envvar="CTXEDIT_OFFLINE", help="Do not contact the hub.")
    ] = False,
) -> None:  # fmt: skip
    """List the built-in models, their vocabulary and scores, and the models in the hub cache."""
    from ctxedit.models.weights import SHORT_NAMES, is_hub_id, locate

    parts, words, checked, cache = builtin(), knowledge(), check_results(), cached()
    rows = [("part", "parameters", "size", "trained on", "images", "weights", "licence")]
    rows += [
        (
            p["part"], f"{p['parameters']:,}", human_size(p["bytes"]), p["trained_on"] or "?",
            f"{p['images']:,}" if p["images"] else "?", _RECORDED[p["recorded"]], p["licence"],
        )
        for p in parts
    ]  # fmt: skip
    lines = ["builtin", columns(rows), "", "The built-in models know:"]
    lines += [pairs([(name, ", ".join(values)) for name, values in words.items()]), ""]
    lines += ["On combinations held out of training:"]
    lines += [check_table(checked)] if checked else ["not checked"]
    lines += ["", "In the hub's cache:"]
    lines += [f"{c['id']}  {human_size(c['bytes'])}" for c in cache] or ["nothing"]
    known, fetched = named(), []
    lines += ["", "Short names for `ctxedit models pull`:"]
    lines += [
        columns([("name", "repository", "size", "half precision", "is there"), *map(_named_row, known)])
    ]
    if model is not None:
        from ctxedit.cli import fetching

        config = arguments.settings(SettingOptions(model=model, offline=offline), Screen(True))
        if not is_hub_id(config.model):
            locate(config.model, True)  # reports a wrong name, of which nothing would be fetched
        fetched = fetching.planned(fetching.wanted(config, captions=True, scores=True), offline)
        lines += ["", f"`ctxedit run --model {model}` would still fetch:"]
        lines += [fetching.line(one) for one in fetched] or ["nothing"]
    table = {"builtin": parts, "knows": words, "checked": checked, "cached": cache, "named": known}
    table |= {"missing": [one.table() for one in fetched]} if model is not None else {}
    Screen(messages.quiet, messages.json).result("\n".join(lines), table | {"short_names": SHORT_NAMES})


@app.command("pull")
@spread
def pull(
    messages: MessageOptions,
    agreed: DownloadOption,
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", show_default=False,
            help="sd14, sd15, sd21, sdxl, blip2, clip, canny, or a hub id (owner/name).",
        ),
    ],
    half: Annotated[
        bool, typer.Option("--half", help="The fp16 files, half the size: for --dtype float16 or bfloat16.")
    ] = False,
) -> None:  # fmt: skip
    """Download a model into the hub's cache, or finish and verify a download, and print its folder.

    Only the files that ctxedit loads are fetched. An interrupted download continues where it stopped. Files
    that are there already are compared with the hashes that the hub lists.
    """
    from ctxedit.cli import fetching
    from ctxedit.errors import WeightsError, did_you_mean
    from ctxedit.models import hub

    fetching.hush()
    screen = Screen(messages.quiet, messages.json)
    hub_id = hub.full_id(name)
    # An id with @ gets as far as the hub's own check, which explains revisions.
    if not re.fullmatch(r"[\w.-]+/[\w.@-]+", hub_id, re.ASCII) or ".." in hub_id or hub_id.startswith("."):
        raise WeightsError(
            f"no model named {name!r}",
            f"{did_you_mean(name, hub.SHORT)}one of {', '.join(hub.SHORT)}, or a hub id (owner/name)",
        )
    if hub.is_offline():
        raise hub.offline_error(hub_id)
    planned = fetching.plan_for(
        fetching.Wanted(hub_id, "half precision" if half else "full precision", half), hub.listing(hub_id)
    )
    if planned.download.missing:
        fetching.agree([planned], screen, agreed.yes)
    with resumable(planned.download.place), hub.watched(fetching.Bar(screen)):
        folder = hub.fetch(planned.listing, planned.names, verify=True)
    screen.say(f"{hub_id}: {len(planned.names)} files, {hub.gigabytes(planned.download.total)}, verified")
    screen.result(str(folder), {"folder": folder, **planned.table()})


@app.command("check")
@spread
def check(
    messages: MessageOptions,
    part: Annotated[
        list[str] | None,
        typer.Option(
            "--part", show_default=False,
            help="autoencoder, clip, captioner, text-to-image, editing, composition-judge, compositions, "
            "upscaler or controlnet. Repeatable. [default: all]",
        ),
    ] = None,
    count: Annotated[int, typer.Option("--count", min=1, help="Held-out scenes per part.")] = 100,
    pairs: Annotated[
        int, typer.Option("--pairs", min=1, help="Clips to tune on; each is edited three ways.")
    ] = 20,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Random seed.")] = 7,
    weights: Annotated[
        Path | None,
        typer.Option("--weights", help="Folder of models. [default: the built-in ones]", show_default=False),
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(
            "--work", show_default=False,
            help="Keep clips and runs here, so that an interrupted check can resume. [default: temporary]",
        ),
    ] = None,
    save: Annotated[bool, typer.Option("--save", help="Write check.json beside the weights.")] = False,
) -> None:  # fmt: skip
    """Measure the models on held-out combinations of the drawn world and print a table."""
    import tempfile

    from ctxedit.cli.progress import teller
    from ctxedit.errors import WeightsError
    from ctxedit.media.temporary import check_writable
    from ctxedit.models.weights import BUILTIN_FOLDER
    from ctxedit.training import results
    from ctxedit.training.check import check as measure
    from ctxedit.training.checks.base import CheckConfig

    screen = Screen(messages.quiet, messages.json)
    if weights is not None and not weights.is_dir():
        raise WeightsError(f"no folder {weights}", "--weights is a folder that `ctxedit train --out` wrote")
    if weights is not None and not any(weights.glob("*/*.safetensors")):
        raise WeightsError(
            f"{weights} holds no models", "--weights is a folder that `ctxedit train --out` wrote"
        )
    if work is not None:
        check_writable(work / ".ctxedit", True)
    if save:
        check_writable((weights or BUILTIN_FOLDER) / results.FILE, True)
    with resumable(work), tempfile.TemporaryDirectory() as temporary:
        config = CheckConfig(weights or BUILTIN_FOLDER, count, pairs, seed, work or Path(temporary))
        rows = list(measure(config, part, teller(screen)))
    if save:
        screen.say(f"saved: {results.save(rows, config)}")
    table = [{**vars(row), "reached": row.reached} for row in rows]
    screen.result(check_table(table), {"weights": config.weights, "checked": table})


def check_table(rows: Sequence[dict[str, Any]]) -> str:
    """A check's rows as a table; figures of weights other than the installed ones are marked."""
    lines = [("part", "figure", "reached", "wanted", "on")]
    for row in rows:
        old = " (of earlier weights)" if row.get("current") is False else ""
        value, wanted = f"{row['value']:.3g}", f"{row['wanted']:g}"
        if row.get("interval"):
            value += " ({:.3g} to {:.3g})".format(*row["interval"])
        limit = f"{'at most ' if row.get('lower') else ''}{wanted}"
        lines.append((row["part"], f"{row['figure']}{old}", value, limit, str(row["count"])))
    return columns(lines)


def check_results() -> list[dict[str, Any]]:
    """The saved check of the built-in models; ``current``: whether it is for the installed weights."""
    from ctxedit.models.weights import BUILTIN_FOLDER
    from ctxedit.training import results

    keys = ("part", "figure", "value", "wanted", "count", "interval", "lower", "seed")
    return [
        {**{k: row.get(k) for k in keys}, "current": results.is_current(row, BUILTIN_FOLDER)}
        for row in results.load(BUILTIN_FOLDER)
    ]


def builtin() -> list[dict[str, Any]]:
    """The built-in parts with sizes and origin; raises WeightsError when they are not there or are broken."""
    from ctxedit.config import BUILTIN
    from ctxedit.models.sizes import folder_weight
    from ctxedit.models.weights import locate
    from ctxedit.training import record

    folder = locate(BUILTIN).path
    found = []
    for part in sorted({file.parent.name for file in folder.glob("*/*.safetensors")}):
        weight, made = folder_weight(folder / part), record.history(folder / part)
        known = made[0] if made else {}
        found.append(
            {
                "part": part, "parameters": weight.parameters, "bytes": weight.bytes,
                "trained_on": known.get("data", ""), "images": _total(made, "images"),
                "steps": _total(made, "steps"), "seconds": _total(made, "seconds"),
                "recorded": record.matches(folder, part),
                "licence": known.get("licence") or _licence(folder / "MODEL_CARD.md"),
            }
        )  # fmt: skip
    return found


def _total(records: list[dict[str, Any]], key: str) -> Any:
    """The sum over all records of a model; None if one lacks the value or there is none."""
    found = [made.get(key) for made in records]
    return sum(found) if found and None not in found else None


def _licence(card: Path) -> str:
    """What the model card says, for parts without a record."""
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    found = re.search(r"\*\*Licence:\*\* ([^\s,]+)", text)
    return found.group(1) if found else "?"


def knowledge() -> dict[str, list[str]]:
    """What the built-in models were taught."""
    from ctxedit.synthetic import vocabulary

    return {
        "objects": [thing.name for thing in vocabulary.THINGS],
        "backgrounds": list(vocabulary.BACKGROUNDS),
        "styles": list(vocabulary.STYLES),
        "colours": list(vocabulary.COLOURS),
    }


def named() -> list[dict[str, Any]]:
    """The short names: what they stand for, how large that is, and whether it is in the cache."""
    from ctxedit.models import hub, weights

    found = []
    for name, hub_id in hub.SHORT.items():
        full, half = hub.SIZES[hub_id]
        there = next((p for p in (False, True) if weights.in_cache(hub_id, p) is not None), None)
        state = {None: None, False: "full", True: "half"}[there]
        found.append({"name": name, "id": hub_id, "bytes": full, "half_bytes": half, "cached": state})
    return found


def _named_row(row: dict[str, Any]) -> tuple[str, ...]:
    sizes = (f"{row[key] / 1e9:.2f} GB" for key in ("bytes", "half_bytes"))
    state = {None: "no", "full": "yes", "half": "in half precision"}[row["cached"]]
    return (row["name"], row["id"], *sizes, state)


def cached() -> list[dict[str, Any]]:
    """Models in the hub's cache, by id."""
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except CacheNotFound:
        return []
    found = [r for r in repositories if r.repo_type == "model"]
    return [
        {"id": r.repo_id, "bytes": r.size_on_disk, "path": str(r.repo_path)}
        for r in sorted(found, key=lambda r: r.repo_id)
    ]
