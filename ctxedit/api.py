"""The public Python API: six verbs over the session. ``import ctxedit`` offers them lazily.

Settings come from a preset, ``CTXEDIT_*`` variables and the ``config`` argument, in rising precedence;
``config`` is a nested table such as ``{"edit": {"guidance": 5.0}}``, or a whole :class:`Config`, which is
taken as it is. Every function raises the errors of :mod:`ctxedit.errors`, and checks what it can before it
loads weights.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctxedit.config import BUILTIN, Config, absolute, environment, load, merge, validated
from ctxedit.editing import captioning, plan, text_to_image
from ctxedit.editing.reporter import Reporter
from ctxedit.editing.request import Request
from ctxedit.editing.session import EditResult, Session
from ctxedit.errors import ConfigError, InputError
from ctxedit.media.sources import check_exists
from ctxedit.media.temporary import atomic, check_writable
from ctxedit.metrics import Edit, Networks, compare
from ctxedit.metrics import evaluate as evaluating
from ctxedit.metrics.evaluate import Figures
from ctxedit.models.device import pick_device, pick_dtype
from ctxedit.models.weights import is_half, locate, own_folder
from ctxedit.naming import is_own
from ctxedit.runs import DEFAULT_ROOT, Run
from ctxedit.stages.prepare import fit_span
from ctxedit.tables import DEFAULT_PRESET

__all__ = [
    "Config", "EditResult", "Figures", "Reporter", "Run", "caption", "edit", "evaluate", "evaluate_run",
    "generate", "settings", "tune",
]  # fmt: skip

PathLike = str | Path
Settings = Config | Mapping[str, Any] | None

#: What tuning depends on: an edit cannot change it.
_FIXED = ("model", "lora", "dtype", "clip", "attention", "adapter", "control", "tune")


def settings(preset: str = DEFAULT_PRESET, config: Settings = None) -> Config:
    """All settings: a preset with ``config`` laid over it.

    Args:
        preset: a preset's name, or the path of a TOML file.
        config: a nested table, or a :class:`Config` that is taken as it is.

    Raises:
        ConfigError: unknown preset, key or value.
    """
    return config if isinstance(config, Config) else load(preset, flags=config)


def _fitted(clip: Path, chosen: Config, given: Settings, teller: Reporter) -> Config:
    """Settings whose frames the clip has, where the caller left their number to the preset."""
    if isinstance(given, Config):
        return chosen
    named = {**(given or {}).get("clip", {}), **environment(os.environ).get("clip", {})}
    span, note = fit_span(check_exists(clip), chosen.clip, named)
    if note is not None:
        teller.say(note)
    return dataclasses.replace(chosen, clip=span)


def caption(
    clip: PathLike,
    *,
    preset: str = DEFAULT_PRESET,
    config: Settings = None,
    lavis_python: PathLike | None = None,
    offline: bool = False,
    reporter: Reporter | None = None,
) -> str:
    """Say in one sentence what a clip shows: BLIP-2 on five of its frames, then one caption for all.

    Args:
        clip: a video, GIF or folder of images; ``config``'s ``clip`` table says which frames.
        preset, config: as for :func:`settings`; ``captioner`` names the checkpoint, ``caption_by``
            says how one caption is chosen.
        lavis_python: LAVIS's interpreter, for ``captioner = "lavis"``.
        offline: use the hub's cache only.
        reporter: is told what goes on.

    Raises:
        InputError, WeightsError, ConfigError, ResourceError.
    """
    teller = reporter or Reporter()
    request = Request(
        Path(clip), _fitted(Path(clip), settings(preset, config), config, teller), preset, offline=offline,
        lavis_python=Path(lavis_python) if lavis_python else None,
    )  # fmt: skip
    return captioning.caption(request, teller)


def tune(
    clip: PathLike,
    prompt: str | None = None,
    preset: str = DEFAULT_PRESET,
    config: Settings = None,
    *,
    runs: PathLike = DEFAULT_ROOT,
    lavis_python: PathLike | None = None,
    offline: bool = False,
    reporter: Reporter | None = None,
) -> Run:
    """Tune on one clip; nothing is done twice, and a tuning that was killed goes on.

    Args:
        clip: a video, GIF or folder of images.
        prompt: what it shows; None captions it.
        preset, config: as for :func:`settings`.
        runs: folder for runs.
        lavis_python, offline, reporter: as for :func:`caption`.

    Returns:
        The run, for :func:`edit`; its ``folder`` holds all of it.
    """
    request = Request(
        Path(clip), _fitted(Path(clip), settings(preset, config), config, reporter or Reporter()), preset,
        prompt=prompt, offline=offline, runs=Path(runs),
        lavis_python=Path(lavis_python) if lavis_python else None,
    )  # fmt: skip
    plan.make(request, last="tune").check()
    with Session(request, reporter) as session:
        return session.tune()


def edit(
    run: Run | PathLike,
    target: str,
    config: Mapping[str, Any] | None = None,
    *,
    mask: PathLike | None = None,
    output: PathLike | None = None,
    source_size: bool = False,
    audio: bool = True,
    chroma: str = "420",
    metadata: bool = True,
    overwrite: bool = False,
    offline: bool = False,
    reporter: Reporter | None = None,
) -> EditResult:
    """Edit a tuned clip: inverts it, or reuses the inversion, and samples towards the target.

    Args:
        run: what :func:`tune` gave, or a run folder.
        target: target prompt, what the edited clip should show.
        config: a table over the run's own settings; tables ``edit``, ``fusion``, ``invert``, and ``seed``.
        mask: image, video or folder; white may change.
        output: the edited file; None is inside the run folder.
        source_size: write at the source's size instead of the working size.
        audio: copy the source's sound.
        overwrite: replace existing files and redo a finished edit.
        metadata: say inside the files how they were made.
        chroma: of H.264: "420", or "444", which keeps odd sizes but plays in few players.
        offline, reporter: as for :func:`caption`.

    Returns:
        The edit: ``files.video``, ``files.side_by_side``, ``files.sheet``, and whether it was there already.

    Raises:
        ConfigError: a setting that tuning depends on was changed.
    """
    opened = run if isinstance(run, Run) else Run(Path(run))
    teller = reporter or Reporter()
    request = Request.of_run(
        opened, rebased(opened, config or {}), teller.warn, targets=(target,),
        mask=Path(mask) if mask else None, output=Path(output) if output else None,
        source_size=source_size, audio=audio, chroma=chroma, metadata=metadata, overwrite=overwrite,
        offline=offline,
    )  # fmt: skip
    plan.make(request, "edit").check()
    with Session(request, teller) as session:
        return session.edit(target)


def rebased(run: Run, table: Mapping[str, Any]) -> Config:
    """A run's settings with a table laid over them; a ``builtin`` table acts as in a preset.

    Raises:
        ConfigError: unknown key or value, or a setting that tuning depends on was changed.
    """
    plain = {k: v for k, v in table.items() if k not in ("about", BUILTIN)}
    config = merge(run.config, plain)
    if is_own(run.config.model) and isinstance(table.get(BUILTIN), Mapping):
        config = merge(config, table[BUILTIN], f"{BUILTIN}.")
    config = absolute(config)
    for name in _FIXED:
        old, new = getattr(run.config, name), getattr(config, name)
        if old == new:
            continue
        if dataclasses.is_dataclass(old):
            key = next(
                f.name for f in dataclasses.fields(old) if getattr(old, f.name) != getattr(new, f.name)
            )
            name, old, new = f"{name}.{key}", getattr(old, key), getattr(new, key)
        raise ConfigError(
            f"{name} = {new!r}, but {run.folder} was tuned with {old!r}",
            "tune again with it, or leave it out; edits of a run may differ in edit, fusion, invert and seed",
        )
    return validated(config)


def generate(
    text: str,
    preset: str = DEFAULT_PRESET,
    config: Settings = None,
    *,
    count: int = 1,
    offline: bool = False,
    reporter: Reporter | None = None,
) -> NDArray[np.uint8]:
    """Text to image: RGB uint8 (count, H, W, 3), on the same schedule, sampler and guidance as edits.

    Args:
        text: what the images should show.
        preset, config: as for :func:`settings`; ``clip.size`` is the side, 0 the model's own.
        count: pictures.
        offline, reporter: as for :func:`caption`.
    """
    chosen = settings(preset, config)
    return text_to_image.generate(text, chosen, offline, reporter or Reporter(), count)


def evaluate(
    video: PathLike,
    prompt: str,
    preset: str = DEFAULT_PRESET,
    config: Settings = None,
    *,
    source: PathLike | None = None,
    source_prompt: str | None = None,
    mask: PathLike | None = None,
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
        video: a video, GIF or folder of images.
        prompt: what it should show.
        preset, config: as for :func:`settings`; ``clip_model`` names the CLIP.
        source: the clip that ``video`` is an edit of; it is resized to the edit's size.
        source_prompt: what the source shows.
        mask: image, video or folder beside the source; white may change.
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
    chosen, teller = settings(preset, config), reporter or Reporter()
    if not prompt.strip():
        raise InputError("the prompt is empty", "say what the clip should show")
    inputs = {"target": prompt, "source": source, "source_prompt": source_prompt, "mask": mask}
    given = {name for name, value in inputs.items() if value is not None}
    wanted = evaluating.chosen_for("run" if source is None else "eval", metrics, given)
    if source is None:
        material = compare.Material(compare.read_video(Path(video), frames, start, stride))
    else:
        material = compare.read_pair(
            Path(video), Path(source), Path(mask) if mask else None, frames, start, stride, teller.say
        )
    device = pick_device(chosen.device)
    scorer = evaluating.make_scorer(chosen.clip_model, own_folder(chosen.model), device, offline)
    networks = Networks(scorer, device, offline, weights)
    evaluating.prepare(wanted, networks)
    with teller.task("evaluate", 1) as progress:
        edit = Edit(material.frames, networks, prompt, material.source, source_prompt, material.mask)
        figures = Figures(scorer.name, evaluating.scores(edit, wanted))
        progress(1, "")
    return figures


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
    opened = run if isinstance(run, Run) else Run(Path(run))
    chosen = rebased(opened, config or {})
    dtype = pick_dtype(chosen.dtype, pick_device(chosen.device))
    locate(chosen.model, offline, is_half(dtype))
    wanted = evaluating.chosen_for("run", metrics, ("target", "source", "source_prompt", "mask"))
    check_writable(opened.folder / "metrics.json", True)
    teller = reporter or Reporter()
    request = Request.of_run(
        opened, chosen, teller.warn, mask=Path(mask) if mask else None, offline=offline
    )  # fmt: skip
    with Session(request, teller) as session, teller.task("evaluate", 1) as progress:
        rows = [plain_figures(row) for row in session.evaluate_run(wanted, weights)]
        progress(1, "")
    write_metrics(opened, rows)
    return rows


def plain_figures(row: Mapping[str, Any]) -> dict[str, Any]:
    """Figures as JSON can hold them: infinity becomes the text ``"inf"``."""
    return {k: str(v) if isinstance(v, float) and math.isinf(v) else v for k, v in row.items()}


def write_metrics(run: Run, rows: list[dict[str, Any]]) -> Path:
    """Put rows into the run's ``metrics.json``; the other videos' rows stay.

    Metrics of the same video that were not computed again stay too, unless they are of another CLIP or of
    other pixels (outside a mask, or all).
    """
    path = run.folder / "metrics.json"
    with run.noting():
        try:
            known = {row["video"]: row for row in json.loads(path.read_text(encoding="utf-8"))}
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            known = {}
        for row in rows:
            old = known.get(row["video"], {})
            same = all(old.get(key) == row.get(key) for key in ("clip_model", "outside_mask"))
            known[row["video"]] = {**old, **row} if same else row
        with atomic(path, True) as temporary:
            temporary.write_text(json.dumps(list(known.values()), indent=2, allow_nan=False) + "\n")
    return path
