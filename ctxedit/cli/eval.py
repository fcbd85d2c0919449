"""``ctxedit eval``: a run's edits, or any clip; ``ctxedit eval images``: sets of images."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ctxedit.cli import arguments, eval_images, eval_labels, eval_likelihood, eval_sweeps
from ctxedit.cli.edit import RunFolder
from ctxedit.cli.failures import resumable
from ctxedit.cli.options import FrameOptions, MessageOptions, ScoringOptions, SettingOptions
from ctxedit.cli.output import Screen, print_table, put, to_json
from ctxedit.cli.output_options import RunsOptions
from ctxedit.cli.spread import spread
from ctxedit.errors import ConfigError
from ctxedit.provenance import distinct_labels

EDITS = "edits"


class EditsUnlessNamed(TyperGroup):
    """A group whose ``edits`` command can be left out: ``ctxedit eval --run DIR``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or args[0].startswith("-"):  # options only: a word is a command, or a mistake
            args = [EDITS, *args]
        elif args[0] not in self.commands and os.path.exists(args[0]):
            option = "--run" if Path(args[0], "run.toml").is_file() else "--prompt TEXT --video"
            raise ConfigError(
                f"{args[0]} is not a command of eval", f"to score it: ctxedit eval {option} {args[0]}"
            )
        return super().parse_args(ctx, args)


app = typer.Typer(cls=EditsUnlessNamed, help="Score edits or, with `ctxedit eval images`, sets of images.")

Video = Annotated[
    Path | None,
    typer.Option("--video", metavar="FILE", help="Score this video instead of a run.", show_default=False),
]
Prompt = Annotated[
    str | None, typer.Option("--prompt", metavar="TEXT", help="What --video should show.", show_default=False)
]
Source = Annotated[
    Path | None,
    typer.Option(
        "--source",
        metavar="FILE",
        help="The clip that --video was made from. --start and --stride select frames of it.",
        show_default=False,
    ),
]
SourcePrompt = Annotated[
    str | None,
    typer.Option("--source-prompt", metavar="TEXT", help="What --source shows.", show_default=False),
]
Metrics = Annotated[
    str | None,
    typer.Option(
        "--metrics",
        metavar="A,B,C",
        help="Compute these metrics instead of the usual ones; `--metrics help` lists them.",
        show_default=False,
    ),
]
Weights = Annotated[
    list[str] | None,
    typer.Option(
        "--weights",
        metavar="METRIC=PATH",
        help="Where the weights of pickscore, dino_structure or lpips are: a path or hub id. Repeatable.",
        show_default=False,
    ),
]


@app.command(
    EDITS,
    epilog="Other commands: `ctxedit eval images` (sets of images: FID, KID, CMMD, …), `classes`, `layouts`, "
    "`guidance`, `convergence`, `likelihood`, `cost`; see `ctxedit eval images --help`.",
)
@spread
def edits(
    base: SettingOptions,
    span: FrameOptions,
    scoring: ScoringOptions,
    place: RunsOptions,
    messages: MessageOptions,
    run: RunFolder = None,
    video: Video = None,
    prompt: Prompt = None,
    source: Source = None,
    source_prompt: SourcePrompt = None,
    metrics: Metrics = None,
    weights: Weights = None,
) -> None:
    """Score the edits of a run, or any clip with --video and --prompt, and print a table.

    CLIP-text is the mean cosine of frames and prompt, CLIP-temp that of all pairs of frames (consec.: of
    neighbours), PSNR and SSIM compare with the source. Edits of a run are measured at working size, before
    they are upscaled. A figure that does not apply is a dash (null in JSON); the PSNR of an unchanged clip is
    inf (in JSON the text "inf"). The figures of a run are written to its metrics.json. With --source, --video
    is scored against the clip it was made from, by every metric that the inputs allow, whatever program made
    it. The word `edits` can be left out.
    """
    screen = Screen(messages.quiet, messages.json)
    if metrics == "help":
        _list_metrics(screen)
        return
    _check(video, prompt, run, source, source_prompt, scoring.mask)
    keys = None if metrics is None else arguments.split_names(metrics)
    places = _weights(weights or [], keys or ())
    if video is None:
        rows = _of_run(run, base, span, scoring, place, keys, places, screen)
    else:
        assert prompt is not None
        rows = _of_video(video, prompt, source, source_prompt, base, span, scoring, keys, places, screen)
    if screen.json:
        put(to_json(rows))
    elif source is not None or (keys is not None and video is not None):
        print_table(one_by_one(rows))
    elif keys is not None:
        print_table(chosen_only(rows["edits"], keys))
    else:
        print_table(lines(rows.get("edits", [rows])))


app.command("images")(spread(eval_images.images))
app.command("classes")(spread(eval_labels.classes))
app.command("layouts")(spread(eval_labels.layouts))
app.command("guidance")(spread(eval_sweeps.guidance))
app.command("convergence")(spread(eval_sweeps.convergence))
app.command("likelihood")(spread(eval_likelihood.likelihood))
app.command("cost")(spread(eval_sweeps.cost))


def _check(
    video: Path | None, prompt: str | None, run: Path | None,
    source: Path | None, source_prompt: str | None, mask: Path | None,
) -> None:  # fmt: skip
    if (video is None) != (prompt is None):
        raise ConfigError("--video and --prompt go together", "without both, the edits of a run are scored")
    if video is not None and run is not None:
        raise ConfigError("--run and --video exclude each other", "score one at a time")
    if source is not None and video is None:
        raise ConfigError("--source needs --video", "it is the clip that --video was made from")
    if source_prompt is not None and source is None:
        raise ConfigError("--source-prompt needs --source", "it says what --source shows")
    if mask is not None and video is not None and source is None:
        raise ConfigError(
            "--mask needs a source to compare with", "add --source, or score the edits of a run"
        )


def _of_run(
    run: Path | None, base: SettingOptions, span: FrameOptions, scoring: ScoringOptions, place: RunsOptions,
    keys: tuple[str, ...] | None, places: dict[str, str], screen: Screen,
) -> dict[str, Any]:  # fmt: skip
    changes = arguments.for_run(base, screen, span, scoring)
    from ctxedit import api
    from ctxedit.cli import fetching, work
    from ctxedit.cli.progress import teller

    chosen = work.chosen_run(run, place.runs, screen)
    needs = fetching.wanted(api.rebased(chosen, changes), scores=True)
    fetching.settle([one for one in needs if one.what == "scoring"], screen, False, base.offline)
    with resumable(None):
        rows = api.evaluate_run(
            chosen,
            changes,
            mask=scoring.mask,
            metrics=keys,
            weights=places,
            offline=base.offline,
            reporter=teller(screen),
        )
    screen.say(f"written to {chosen.folder / 'metrics.json'}")
    labels = distinct_labels([row["target"] for row in rows], [row.get("settings", {}) for row in rows])
    named = [{**row, "label": label} for row, label in zip(rows, labels, strict=True)]
    return {"run": chosen.folder, "edits": named}


def _of_video(
    video: Path,
    prompt: str,
    source: Path | None,
    source_prompt: str | None,
    base: SettingOptions,
    span: FrameOptions,
    scoring: ScoringOptions,
    keys: tuple[str, ...] | None,
    places: dict[str, str],
    screen: Screen,
) -> dict[str, Any]:
    arguments.not_empty(prompt, "prompt")
    arguments.not_empty(source_prompt, "source prompt")
    config = arguments.settings(base, screen, scoring)
    for path in (video, source, scoring.mask):
        if path is not None:
            arguments.existing(path)
    from ctxedit import api
    from ctxedit.cli import fetching
    from ctxedit.cli.progress import teller

    needs = fetching.wanted(config, scores=True)
    fetching.settle([one for one in needs if one.what == "scoring"], screen, False, base.offline)
    with resumable(None):
        figures = api.evaluate(
            video, prompt, config=config, source=source, source_prompt=source_prompt, mask=scoring.mask,
            metrics=keys, weights=places, frames=span.frames or None, start=span.start or 0,
            stride=1 if span.stride is None else span.stride,
            offline=base.offline, reporter=teller(screen),
        )  # fmt: skip
    if source is None and keys is None:
        return {"video": video, "prompt": prompt, **api.plain_figures(figures.table())}
    values = api.plain_figures(figures.values)
    about = {"video": video, "prompt": prompt, "source": source, "source_prompt": source_prompt}
    facts = {"clip_model": figures.clip_model, "measured_size": list(figures.size)}
    return {**about, "mask": scoring.mask, **facts, **values}


def _weights(texts: list[str], keys: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for text in texts:
        key, equals, path = (part.strip() for part in text.partition("="))
        if not (key and equals and path):
            raise ConfigError(f"--weights {text}", "it takes METRIC=PATH: --weights lpips=alexnet.pth")
        if key not in keys:
            raise ConfigError(f"--weights {text}: {key!r} is not computed", f"add --metrics {key}")
        found[key] = path
    return found


def _list_metrics(screen: Screen) -> None:
    from ctxedit.metrics import metrics

    found = [{**one.table(), "needs": list(one.needs), "usual_in": list(one.where)} for one in metrics()]
    if screen.json:
        screen.result("", {"metrics": found})
        return
    rows = [("metric", "better", "needs", "measures")]
    rows += [
        (m["key"], m["better"], ", ".join(m["needs"]).replace("_", " ") or "-", m["about"]) for m in found
    ]
    print_table(rows)


def lines(rows: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Figures as a table of text; the CLIP model's name next to its figures, plugins' metrics last."""
    head = (
        "target",
        "CLIP-text",
        "CLIP-temp",
        "(consec.)",
        "frame acc.",
        "of CLIP",
        "PSNR dB",
        "SSIM",
        "fidelity of",
        "measured",
        "file",
    )
    from ctxedit.metrics.registry import usual

    keys = ("clip_text", "clip_temp", "clip_temp_consecutive", "frame_accuracy")
    more = [one for one in usual("run") if one.key not in (*keys, "psnr", "ssim")]
    table: list[tuple[str, ...]] = [(*head, *[one.title for one in more])]
    for row in rows:
        compared = row["psnr"] is not None
        table.append(
            (
                row.get("label") or row.get("target") or row["prompt"],
                *[figure(row[key]) for key in keys],
                row["clip_model"],
                figure(row["psnr"], 2),
                figure(row["ssim"]),
                ("outside the mask" if row["outside_mask"] else "all") if compared else "-",
                measured_at(row),
                Path(row["video"]).name,
                *[figure(row[one.key], one.digits) for one in more],
            )
        )
    return table


def one_by_one(row: dict[str, Any]) -> list[tuple[str, ...]]:
    """One video's scores, one per line."""
    from ctxedit.metrics import metrics

    table = [("metric", "value", "better", "measures")]
    for one in metrics():
        if one.key in row:
            table.append((one.title, figure(row[one.key], max(one.digits, 3)), one.better, one.about))
    size = measured_at(row).removeprefix("at ")
    table.append(("size", size, "", "width and height of the frames that were measured, in pixels"))
    return [*table, ("CLIP", row["clip_model"], "", "the model of the CLIP metrics")]


def chosen_only(rows: list[dict[str, Any]], keys: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The chosen metrics of a run's edits, one line per edit."""
    from ctxedit.metrics.registry import named

    chosen = named(keys)
    table = [("target", *[one.title for one in chosen], "measured")]
    return table + [
        (r["target"], *[figure(r[m.key], max(m.digits, 3)) for m in chosen], measured_at(r)) for r in rows
    ]


def measured_at(row: Mapping[str, Any]) -> str:
    """The size at which figures were measured: for a run's edits, always the working size."""
    width, height = row["measured_size"]
    return f"at {width}×{height}"


def figure(value: Any, digits: int = 4) -> str:
    """One figure as text; a dash where it does not apply."""
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value:.{digits}f}"
