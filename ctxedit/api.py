"""The public Python API: six verbs over the pipeline. ``import ctxedit`` offers them lazily.

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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctxedit import pipeline, plan
from ctxedit.config import BUILTIN, Config, absolute, environment, load, merge, validated
from ctxedit.errors import ConfigError, InputError
from ctxedit.media.probe import probe
from ctxedit.media.read import read_frames
from ctxedit.media.sources import check_exists
from ctxedit.media.temporary import atomic, check_writable
from ctxedit.models.device import pick_device, pick_dtype
from ctxedit.models.weights import locate, own_folder
from ctxedit.naming import is_own
from ctxedit.pipeline import EditResult, Options, Reporter, Session
from ctxedit.runs import DEFAULT_ROOT, Run
from ctxedit.stages import caption as captioning
from ctxedit.stages import evaluate as evaluating
from ctxedit.stages.evaluate import Figures
from ctxedit.stages.prepare import fit_span, read_for_caption

PathLike = str | Path
Settings = Config | Mapping[str, Any] | None

#: What tuning depends on: an edit cannot change it.
_FIXED = ("model", "dtype", "clip", "attention", "adapter", "control", "tune")
#: Pixels of a clip to be scored that are held at once: 2 GiB.
_MOST_BYTES = 2 << 30


def settings(preset: str = "contextdiff", config: Settings = None) -> Config:
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
    preset: str = "contextdiff",
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
    chosen = _fitted(Path(clip), settings(preset, config), config, teller)
    device = pick_device(chosen.device)
    seen = read_for_caption(Path(clip), chosen.clip)
    for note in seen.notes:
        teller.warn(note)
    own = own_folder(chosen.model)
    model = captioning.make_captioner(
        chosen.captioner,
        own,
        device,
        pick_dtype(chosen.dtype, device),
        offline,
        Path(lavis_python) if lavis_python else None,
    )
    scorer = None
    if captioning.asks_clip(chosen, own is not None):
        scorer = evaluating.make_scorer(chosen.clip_model, own, device, offline)
    with teller.task("caption", 1) as progress:
        text = captioning.caption(seen.frames, model, scorer)
        progress(1, "")
    return text


def tune(
    clip: PathLike,
    prompt: str | None = None,
    preset: str = "contextdiff",
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
    options = Options(
        prompt=prompt,
        offline=offline,
        runs=Path(runs),
        lavis_python=Path(lavis_python) if lavis_python else None,
    )
    chosen = _fitted(Path(clip), settings(preset, config), config, reporter or Reporter())
    with Session(Path(clip), chosen, preset, options, reporter) as session:
        plan.make(session, last="tune").check()
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
    options = Options(
        mask=Path(mask) if mask else None,
        output=Path(output) if output else None,
        source_size=source_size,
        audio=audio,
        chroma=chroma,
        metadata=metadata,
        overwrite=overwrite,
        offline=offline,
        runs=opened.folder.parent,
    )
    with Session.reopen(opened, rebased(opened, config or {}), options, reporter) as session:
        plan.make(session, [target], "edit").check()
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
    preset: str = "contextdiff",
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
    return pipeline.generate(text, chosen, Options(offline=offline), reporter or Reporter(), count)


def evaluate(
    video: PathLike,
    prompt: str,
    preset: str = "contextdiff",
    config: Settings = None,
    *,
    frames: int | None = None,
    start: int = 0,
    stride: int = 1,
    offline: bool = False,
    reporter: Reporter | None = None,
) -> Figures:
    """Score any clip against a prompt: CLIP-text, and CLIP-temp over all pairs and over consecutive frames.

    Args:
        video: a video, GIF or folder of images.
        prompt: what it should show.
        preset, config: as for :func:`settings`; ``clip_model`` names the CLIP.
        frames: how many; None is every one from ``start`` on, ``stride`` apart.
        start, stride: as for clips.
        offline, reporter: as for :func:`caption`.

    Raises:
        InputError: an unreadable clip, or one of too many frames to hold at once.
    """
    chosen, teller = settings(preset, config), reporter or Reporter()
    if not prompt.strip():
        raise InputError("the prompt is empty", "say what the clip should show")
    info = probe(Path(video))
    if stride < 1:
        raise ConfigError(f"--stride must be at least 1, not {stride}", "2 takes every other frame")
    count = max(1, -(-(info.frames - start) // stride)) if frames is None else frames
    if count * info.width * info.height * 3 > _MOST_BYTES:
        raise InputError(
            f"{video}: {count} frames of {info.width}×{info.height} are too many at once",
            "score some of them: --frames 24 --stride 10",
        )
    seen = read_frames(Path(video), frames=count, start=start, stride=stride)
    for note in seen.info.notes:
        teller.warn(note)
    own = own_folder(chosen.model)
    scorer = evaluating.make_scorer(chosen.clip_model, own, pick_device(chosen.device), offline)
    with teller.task("evaluate", 1) as progress:
        figures = evaluating.evaluate(seen.frames, prompt, scorer)
        progress(1, "")
    return figures


def evaluate_run(
    run: Run | PathLike,
    config: Mapping[str, Any] | None = None,
    *,
    mask: PathLike | None = None,
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
        offline, reporter: as for :func:`caption`.
    """
    opened = run if isinstance(run, Run) else Run(Path(run))
    chosen = rebased(opened, config or {})
    options = Options(mask=Path(mask) if mask else None, offline=offline, runs=opened.folder.parent)
    locate(chosen.model, offline)
    check_writable(opened.folder / "metrics.json", True)
    teller = reporter or Reporter()
    with Session.reopen(opened, chosen, options, reporter) as session, teller.task("evaluate", 1) as progress:
        rows = [plain_figures(row) for row in session.evaluate_run()]
        progress(1, "")
    write_metrics(opened, rows)
    return rows


def plain_figures(row: Mapping[str, Any]) -> dict[str, Any]:
    """Figures as JSON can hold them: infinity becomes the text ``"inf"``."""
    return {k: str(v) if isinstance(v, float) and math.isinf(v) else v for k, v in row.items()}


def write_metrics(run: Run, rows: list[dict[str, Any]]) -> Path:
    """Put rows into the run's ``metrics.json``; a row of the same video is replaced, the others stay."""
    path = run.folder / "metrics.json"
    with run.noting():
        try:
            known = {row["video"]: row for row in json.loads(path.read_text(encoding="utf-8"))}
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            known = {}
        known |= {row["video"]: row for row in rows}
        with atomic(path, True) as temporary:
            temporary.write_text(json.dumps(list(known.values()), indent=2, allow_nan=False) + "\n")
    return path
