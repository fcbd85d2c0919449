"""Scoring of clips and of runs, from Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ctxedit.api_settings import PathLike, Settings, opened_run, settings
from ctxedit.editing.rebase import rebased
from ctxedit.editing.reporter import Reporter
from ctxedit.editing.request import Request
from ctxedit.editing.session import Session
from ctxedit.errors import InputError
from ctxedit.media.arrays import ClipLike, clip_path, mask_path
from ctxedit.media.temporary import check_writable
from ctxedit.metrics import Edit, Networks, compare
from ctxedit.metrics import evaluate as evaluating
from ctxedit.metrics.evaluate import Figures
from ctxedit.metrics_file import plain_figures, write_metrics
from ctxedit.models.device import pick_device, pick_dtype
from ctxedit.models.weights import is_half, locate, own_folder
from ctxedit.notebook import default_reporter, quietly
from ctxedit.prompts import check_text
from ctxedit.runs import Run
from ctxedit.tables import DEFAULT_PRESET


@quietly
def evaluate(
    video: ClipLike,
    prompt: str,
    preset: str = DEFAULT_PRESET,
    config: Settings = None,
    *,
    source: ClipLike | None = None,
    source_prompt: str | None = None,
    mask: ClipLike | None = None,
    metrics: Sequence[str] | None = None,
    weights: Mapping[str, str] | None = None,
    frames: int | None = None,
    start: int = 0,
    stride: int = 1,
    offline: bool = False,
    reporter: Reporter | None = None,
) -> Figures:
    """Score any clip against a prompt and, where it is given, against the source that it was made from.

    Without a source the result holds CLIP-text, and CLIP-temp over all pairs and over consecutive frames;
    with one, every usual metric that the inputs allow.

    Args:
        video: as the clip of :func:`caption`; so is ``source``.
        prompt: what it should show.
        preset, config: as for :func:`settings`; ``clip_model`` names the CLIP.
        source: the clip that ``video`` is an edit of; it is resized to the edit's size.
        source_prompt: what the source shows.
        mask: as for :func:`edit`, beside the source.
        metrics: keys of the metrics to compute instead of the usual ones.
        weights: paths or hub ids of the networks of metrics that have their own, by the metric's key.
        frames: how many; None is every one from ``start`` on, ``stride`` apart.
        start, stride: as for clips; with a source, which of its frames the edit's were made from.
        offline, reporter: as for :func:`caption`.

    Raises:
        InputError: an unreadable clip, one of too many frames to hold at once, or a source of another shape
            or with too few frames.
        ConfigError: an unknown metric, or one that needs what is not given.
        WeightsError: a metric's network that is not there.
    """
    chosen, teller = settings(preset, config), reporter or default_reporter()
    check_text(prompt, "prompt")
    if not prompt.strip():
        raise InputError("the prompt is empty", "say what the clip should show")
    inputs = {"target": prompt, "source": source, "source_prompt": source_prompt, "mask": mask}
    given = {name for name, value in inputs.items() if value is not None}
    wanted = evaluating.chosen_for("run" if source is None else "eval", metrics, given)
    material = _material(video, source, mask, (frames, start, stride), teller)
    device = pick_device(chosen.device)
    scorer = evaluating.make_scorer(chosen.clip_model, own_folder(chosen.model), device, offline)
    networks = Networks(scorer, device, offline, weights)
    evaluating.prepare(wanted, networks)
    with teller.task("evaluate", 1) as progress:
        edit = Edit(material.frames, networks, prompt, material.source, source_prompt, material.mask)
        values = evaluating.scores(edit, wanted)
        figures = Figures(scorer.name, values, clip_version=scorer.version, size=edit.size)
        progress(1, "")
    return figures


def _material(
    video: ClipLike,
    source: ClipLike | None,
    mask: ClipLike | None,
    span: tuple[int | None, int, int],
    teller: Reporter,
) -> compare.Material:
    """Read what is scored; arrays are written to temporary files for that."""
    with TemporaryDirectory(prefix="ctxedit-") as folder:
        path = clip_path(video, Path(folder), "video")
        if source is None:
            return compare.Material(compare.read_video(path, *span))
        mask_file = None if mask is None else mask_path(mask, Path(folder))
        return compare.read_pair(
            path, clip_path(source, Path(folder), "source"), mask_file, *span, teller.say
        )


@quietly
def evaluate_run(
    run: Run | PathLike,
    config: Mapping[str, Any] | None = None,
    *,
    mask: PathLike | None = None,
    metrics: Sequence[str] | None = None,
    weights: Mapping[str, str] | None = None,
    offline: bool = False,
    reporter: Reporter | None = None,
) -> list[dict[str, Any]]:
    """Figures of every edit of a run, one table each; written to the run's ``metrics.json`` as well.

    An infinite PSNR (an edit equal to its source) is the text ``"inf"``: JSON has no infinity, and null means
    that a figure does not apply.

    Args:
        run: a run, or its folder.
        config: a table over the run's settings; ``clip_model`` names the CLIP.
        mask: fidelity is taken outside it.
        metrics: keys of the metrics to compute instead of the usual ones.
        weights: as for :func:`evaluate`.
        offline, reporter: as for :func:`caption`.
    """
    opened = opened_run(run)
    chosen = rebased(opened, config or {})
    dtype = pick_dtype(chosen.dtype, pick_device(chosen.device))
    locate(chosen.model, offline, is_half(dtype))
    wanted = evaluating.chosen_for("run", metrics, ("target", "source", "source_prompt", "mask"))
    check_writable(opened.folder / "metrics.json", True)
    teller = reporter or default_reporter()
    request = Request.of_run(
        opened, chosen, teller.warn, mask=Path(mask) if mask else None, offline=offline
    )  # fmt: skip
    with Session(request, teller) as session, teller.task("evaluate", 1) as progress:
        rows = [plain_figures(row) for row in session.evaluate_run(wanted, weights)]
        progress(1, "")
    write_metrics(opened, rows)
    return rows
