"""``ctxedit eval``: figures of a run's edits, or of any clip."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ctxedit.cli import asked
from ctxedit.cli.edit import RunFolder
from ctxedit.cli.failures import resumable
from ctxedit.cli.options import Base, Place, Scoring, Span, Talk
from ctxedit.cli.output import Screen, print_table, put, to_json
from ctxedit.errors import ConfigError
from ctxedit.provenance import told_apart

Video = Annotated[
    Path | None,
    typer.Option("--video", metavar="FILE", help="Score this video instead of a run.", show_default=False),
]
Prompt = Annotated[str | None, typer.Option("--prompt", help="What --video should show.", show_default=False)]


def evaluate(
    base: Base,
    span: Span,
    scoring: Scoring,
    place: Place,
    talk: Talk,
    run: RunFolder = None,
    video: Video = None,
    prompt: Prompt = None,
) -> None:
    """Score the edits of a run, or any clip with --video and --prompt; prints a table.

    CLIP-text is the mean cosine of frames and prompt, CLIP-temp that of all pairs of frames (consec.: of
    neighbours), PSNR and SSIM compare with the source at working size. A figure that does not apply is a dash
    (null in JSON); the PSNR of an unchanged clip is inf (in JSON the text "inf"). The figures of a run are
    written to its metrics.json.
    """
    screen = Screen(talk.quiet, talk.json)
    if (video is None) != (prompt is None):
        raise ConfigError("--video and --prompt go together", "omit both to score the edits of a run")
    if video is not None and run is not None:
        raise ConfigError("--run and --video exclude each other", "use one of them")
    rows = _of_run(run, base, span, scoring, place, screen) if video is None else None
    if rows is None:
        assert video is not None and prompt is not None
        rows = _of_video(video, prompt, base, span, scoring, screen)
    if screen.json:
        put(to_json(rows))
    else:
        print_table(lines(rows.get("edits", [rows])))


def _of_run(
    run: Path | None, base: Base, span: Span, scoring: Scoring, place: Place, screen: Screen
) -> dict[str, Any]:
    changes = asked.for_run(base, screen, span, scoring)
    from ctxedit import api
    from ctxedit.cli import work
    from ctxedit.cli.progress import teller

    chosen = work.chosen_run(run, place.runs, screen)
    with resumable(None):
        rows = api.evaluate_run(
            chosen, changes, mask=scoring.mask, offline=base.offline, reporter=teller(screen)
        )
    screen.say(f"written to {chosen.folder / 'metrics.json'}")
    labels = told_apart([row["target"] for row in rows], [row.get("settings", {}) for row in rows])
    named = [{**row, "label": label} for row, label in zip(rows, labels, strict=True)]
    return {"run": chosen.folder, "edits": named}


def _of_video(
    video: Path, prompt: str, base: Base, span: Span, scoring: Scoring, screen: Screen
) -> dict[str, Any]:
    asked.not_empty(prompt, "prompt")
    if scoring.mask is not None:
        raise ConfigError("--mask needs a source to compare with", "it goes with the edits of a run")
    config = asked.settings(base, screen, scoring)
    asked.existing(video)
    from ctxedit import api
    from ctxedit.cli.progress import teller

    with resumable(None):
        figures = api.evaluate(
            video, prompt, config=config, frames=span.frames, start=span.start or 0,
            stride=1 if span.stride is None else span.stride,
            offline=base.offline, reporter=teller(screen),
        )  # fmt: skip
    return {"video": video, "prompt": prompt, **api.plain_figures(figures.table())}


def lines(rows: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Figures as a table of text; the CLIP model's name stands beside its figures."""
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
        "file",
    )
    table: list[tuple[str, ...]] = [head]
    for row in rows:
        keys = ("clip_text", "clip_temp", "clip_temp_consecutive", "frame_accuracy")
        compared = row["psnr"] is not None
        table.append(
            (
                row.get("label") or row.get("target") or row["prompt"],
                *[figure(row[key]) for key in keys],
                row["clip_model"],
                figure(row["psnr"], 2),
                figure(row["ssim"]),
                ("outside the mask" if row["outside_mask"] else "all") if compared else "-",
                Path(row["video"]).name,
            )
        )
    return table


def figure(value: Any, digits: int = 4) -> str:
    """One figure as text; a dash where it does not apply."""
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value:.{digits}f}"
